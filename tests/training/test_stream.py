"""training.stream: ratings from a Parquet file are fitted as those in memory, within a bounded buffer."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from levi_serve.bundle.rated import Rated
from training import stream as module
from training.backbones import load_backbone
from training.datasets.dataset import Dataset, RatingFile, Ratings
from training.errors import DataError, UsageError
from training.evaluate import evaluate
from training.export import export
from training.features import prepare
from training.fit import Fitter, Fold, Views, cut, one_cycle
from training.model import SIZES
from training.options import Options, Recipe
from training.run import Run, accelerator, fit, open_run
from training.stream import Stream

RECIPE = Recipe(epochs=2, batch=100, learning_rate=(2e-3,), select="random")
GROUP = 90


@dataclasses.dataclass
class Halved:
    """The tiny dataset, and the same of which a half of the training ratings lie in a file with all the others."""

    dataset: Dataset
    own: np.ndarray
    selection: np.ndarray
    whole: Run


@pytest.fixture
def halved(entity_run: Run, tmp_path: Path) -> Halved:
    """The file holds every rating of the dataset, those held out too; training goes on in its order."""
    data, parts = entity_run.dataset, entity_run.split
    moved = parts.train[400:]
    stays = np.setdiff1d(np.arange(len(data.ratings)), moved)
    r = data.ratings
    path = tmp_path / "all.parquet"
    ids = [np.array(t["id"].to_pylist()) for t in (data.users, data.items)]
    table = {"user": ids[0][r.user], "movie": ids[1][r.item], "rating": r.value.astype(np.float64)}
    pq.write_table(pa.table(table), path, row_group_size=GROUP)
    fewer = Ratings(r.user[stays], r.item[stays], r.value[stays], r.time[stays])
    more = RatingFile(path, ("user", "movie", "rating"), (path, path))
    return Halved(
        dataclasses.replace(data, ratings=fewer, more=more),
        np.searchsorted(stays, parts.train[:400]),
        np.searchsorted(stays, parts.selection),
        entity_run,
    )


def triples(dataset: Dataset, rows: np.ndarray) -> list[tuple[float, ...]]:
    r = dataset.ratings
    return sorted(zip(r.user[rows].tolist(), r.item[rows].tolist(), r.value[rows].tolist(), strict=True))


def in_one(blocks: list[Tensor]) -> list[tuple[float, ...]]:
    return sorted(tuple(row) for block in blocks for row in block.tolist())


def test_what_counts(halved: Halved) -> None:
    """What the dataset holds itself and what is out of distribution is not read again; the rest is, with who occurs."""
    found = Stream.open(halved.dataset, halved.own)
    run = halved.whole
    train, data = run.split.train, run.dataset
    assert len(found) == len(train)
    assert len(found.counts) == found.groups == -(-len(data.ratings) // GROUP)
    assert in_one([found.read(n) for n in range(found.groups + 1)]) == triples(data, train)
    assert found.mean == pytest.approx(data.ratings.value[train].astype(np.float64).mean())
    for known, column in zip(found.known, (data.ratings.user, data.ratings.item), strict=True):
        assert known.tolist() == np.unique(column[train]).tolist()
    assert sorted(zip(*map(np.ndarray.tolist, found.pairs()), strict=True)) == [t[:2] for t in triples(data, train)]


def test_held_out_items(halved: Halved) -> None:
    """Ratings of items that are left out are not read, so that folds of held-out items hold."""
    items = np.unique(halved.dataset.ratings.item[halved.own])[:5]
    found = Stream.open(halved.dataset, halved.own[:0], items)
    whole = Stream.open(halved.dataset, halved.own[:0])
    assert len(found) < len(whole)
    expected = [row for row in in_one([whole.read(n) for n in range(1, whole.groups + 1)]) if row[1] not in items]
    assert in_one([found.read(n) for n in range(1, found.groups + 1)]) == expected


@pytest.mark.parametrize("buffer", [1, 200, 300, 10_000])
def test_shuffling(halved: Halved, monkeypatch: pytest.MonkeyPatch, buffer: int) -> None:
    """An epoch has every rating once, in another order each time; a block is the buffer at most, or one group."""
    monkeypatch.setattr(module, "BUFFER", buffer)
    found = Stream.open(halved.dataset, halved.own)
    first, again, other = (list(found.shuffled(torch.Generator().manual_seed(seed))) for seed in (0, 0, 1))
    assert in_one(first) == in_one(other) == triples(halved.whole.dataset, halved.whole.split.train)
    assert torch.equal(torch.cat(first), torch.cat(again))
    assert not torch.equal(torch.cat(first), torch.cat(other))
    assert max(map(len, first)) <= max(buffer, 400)  # the dataset's own 400 are one group
    assert len(first) == 1 or buffer < len(found)


def test_batches_go_on_over_blocks() -> None:
    blocks = [torch.arange(5), torch.arange(5, 7), torch.arange(7, 14)]
    assert [b.tolist() for b in cut(iter(blocks), 3)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert [len(b) for b in cut(iter([torch.arange(6)]), 3)] == [3, 3]
    assert [len(b) for b in cut(iter([torch.arange(2), torch.arange(2)]), 5)] == [4]


def test_the_same_numbers(halved: Halved, bert: Path, cache: Path, tmp_path: Path) -> None:
    """While the buffer holds all, a fit from the file ends with the bits of one whose ratings are in memory."""
    run, device = halved.whole, torch.device("cpu")
    train, selection = torch.from_numpy(run.split.train), torch.from_numpy(run.split.selection)
    bounds = run.bounds
    whole = Fitter(Views(run.prepared), RECIPE, bounds, accelerator("cpu"), tmp_path / "a")
    expected = whole.fit(train, [Fold(train, selection)])
    found = Stream.open(halved.dataset, halved.own)
    prepared = prepare(halved.dataset, found, load_backbone(str(bert)), "entity", SIZES["ref"], cache, device)
    streamed = Fitter(Views(prepared), RECIPE, bounds, accelerator("cpu"), tmp_path / "b")
    fitted = streamed.fit(found, [Fold(found, torch.from_numpy(halved.selection))])
    assert fitted.curve == expected.curve
    states = [f.stage.model.state_dict() for f in (expected, fitted)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def with_file(tables: Path, folder: Path, change: Callable[[dict[str, np.ndarray]], object] | None = None) -> Path:
    """The tiny tables whose TOML file names a file with all ratings; the CSV file has every third."""
    data = Path(shutil.copytree(tables, folder))
    lines = (data / "ratings.csv").read_text().splitlines()
    columns = dict(
        zip(lines[0].split(","), np.array([line.split(",") for line in lines[1:]]).astype(int).T, strict=True)
    )
    if change:
        change(columns)
    pq.write_table(pa.table(columns), data / "all.parquet", row_group_size=GROUP)
    (data / "ratings.csv").write_text("\n".join([lines[0], *lines[1::3]]) + "\n")
    text = (data / "dataset.toml").read_text()
    (data / "dataset.toml").write_text(text.replace('rating = "rating"', 'rating = "rating"\nmore = "all.parquet"'))
    return data


def test_a_run(options: Options, tables: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run over several buffers, killed in mid-epoch, ends as one never stopped; its bundle knows who rated what."""
    monkeypatch.setattr(module, "BUFFER", 300)
    monkeypatch.setattr("training.fit.CHECKPOINT_SECONDS", -1)
    options = options.model_copy(update={"data": with_file(tables, tmp_path / "tables")})
    record = fit(options, tmp_path / "run", cache, "cpu")
    steps = iter(range(13))  # of twice nine
    with monkeypatch.context() as patches:
        patches.setattr("training.fit.one_cycle", lambda done: one_cycle(done) + 0 * next(steps))
        with pytest.raises(StopIteration):
            fit(options, tmp_path / "killed", cache, "cpu")
    assert fit(options, tmp_path / "killed", cache, "cpu").curve == record.curve
    parameters = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("killed", "run")]
    assert parameters[0] == parameters[1]
    run = open_run(tmp_path / "run", cache, "cpu")
    assert isinstance(run.train, Stream)
    assert len(run.train) > 2 * len(run.split.train)
    assert evaluate(run).rows[0].id.rmse < 2
    bundle = export(run, tmp_path / "repository", "levi", 20)
    assert len(Rated(bundle).items) == len(run.train)
    (options.data / "all.parquet").touch()  # type: ignore[operator]
    assert open_run(tmp_path / "run", cache, "cpu").record == record
    with_file(tables, tmp_path / "other", lambda c: c["rating"].__setitem__(0, 6 - c["rating"][0]))
    with pytest.raises(UsageError, match="the data changed since the fit"):
        open_run(tmp_path / "run", cache, "cpu", tmp_path / "other")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c["user"].__setitem__(200, 9999), r"all\.parquet, row 201: user 9999 has no row in .*users\.csv"),
        (lambda c: c["rating"].__setitem__(3, 7), r"all\.parquet, row 4: rating 7 is not on the scale 1 to 5"),
        (lambda c: c.pop("movie"), r"all\.parquet: there is no column 'movie'"),
    ],
)
def test_bad_files(
    tables: Path,
    options: Options,
    cache: Path,
    tmp_path: Path,
    change: Callable[[dict[str, np.ndarray]], object],
    says: str,
) -> None:
    """What is wrong in the file is named with its row, before anything is written."""
    data = with_file(tables, tmp_path / "tables", change)
    with pytest.raises(DataError, match=says):
        fit(options.model_copy(update={"data": data}), tmp_path / "run", cache, "cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("changes", [{"views": "pair"}, {"size": "best"}, {"select": "genre"}, {"sample": 10}])
def test_what_needs_memory(
    tables: Path, options: Options, cache: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    """Options that need all ratings in memory are refused."""
    data = with_file(tables, tmp_path / "tables")
    with pytest.raises(UsageError, match=rf"^--{next(iter(changes))} .* not held in memory"):
        fit(options.model_copy(update={"data": data, **changes}), tmp_path / "run", cache, "cpu")


def test_a_file_that_is_missing(tables: Path, options: Options, cache: Path, tmp_path: Path) -> None:
    data = with_file(tables, tmp_path / "tables")
    (data / "all.parquet").unlink()
    with pytest.raises(DataError, match=r"all\.parquet is missing"):
        fit(options.model_copy(update={"data": data}), tmp_path / "run", cache, "cpu")
