"""training.run: one folder, one run; killed, full, finished, moved or changed."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from levi_serve.bundle.rated import Rated
from tests.tiny import write_bert
from tests.training.disk import files_of_at_most
from training import run as module
from training.errors import RunError, UsageError
from training.export import export
from training.fit import Fitter, predict
from training.options import Options
from training.run import Run, data_hash, fit, open_run

ROOT = Path(__file__).parents[2]


def with_options(options: Options, **changes: Any) -> Options:
    return options.model_copy(update=changes)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def test_a_finished_run(entity_run: Run, options: Options) -> None:
    """A finished run holds its plan, its record and its parameters, and nothing that was only needed on the way."""
    assert names(entity_run.folder) == ["model.safetensors", "plan.json", "run.json"]
    record = entity_run.record
    assert record.options == options
    assert len(record.curve) == options.epochs
    assert record.epochs == 1 + int(np.argmin(record.curve))
    assert record.learning_rate == 2e-3
    assert {"python", "torch", "levi-serve"} <= set(record.versions)


def test_the_opened_model_is_the_fitted_one(entity_run: Run) -> None:
    """A run read from disk predicts what its record says: the validation RMSE of its best epoch."""
    rows = torch.from_numpy(entity_run.split.selection)
    heads = predict(entity_run.model, entity_run.prepared.features, rows, entity_run.ids)
    error = entity_run.model.rating(heads).clamp(1, 5) - entity_run.prepared.features.value[rows]
    assert float(error.square().mean().sqrt()) == pytest.approx(min(entity_run.record.curve), abs=1e-6)
    assert not entity_run.model.training


@pytest.mark.parametrize("select", ["item", "genre"])
def test_grouped_selection(options: Options, cache: Path, tmp_path: Path, select: str) -> None:
    """A run can be selected on held-out items or genres; it ends with a model of all training ratings."""
    record = fit(with_options(options, select=select, epochs=1), tmp_path / "run", cache, "cpu")
    assert len(record.curve) == record.epochs == 1
    assert record.random is not None
    assert (record.random.epochs, record.random.learning_rate) == (1, record.learning_rate)
    # The random part has items that are known, so it is told beside as what it is: the easier test.
    assert record.random.curve[0] < record.curve[0]
    assert (open_run(tmp_path / "run", cache, "cpu").ids[1] > 0).any()


def test_a_finished_run_is_not_fitted_again(
    options: Options, entity_run: Run, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`fit` on a finished run gives its record and touches nothing."""
    before = {path.name: path.stat().st_mtime_ns for path in entity_run.folder.iterdir()}
    monkeypatch.setattr(Fitter, "fit", None)
    assert fit(options, entity_run.folder, cache, "cpu") == entity_run.record
    assert {path.name: path.stat().st_mtime_ns for path in entity_run.folder.iterdir()} == before


@pytest.fixture
def begun(options: Options, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run that was killed before its first step."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patches:
        patches.setattr(Fitter, "fit", killed)
        with pytest.raises(KeyboardInterrupt):
            fit(options, tmp_path / "begun", cache, "cpu")
    return tmp_path / "begun"


@pytest.fixture(params=["begun", "finished"])
def taken(request: pytest.FixtureRequest, begun: Path, entity_run: Run, tmp_path: Path) -> Path:
    """The folder of a run that was begun or finished."""
    return begun if request.param == "begun" else Path(shutil.copytree(entity_run.folder, tmp_path / "finished"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"epochs": 3}, "holds another run (epochs: 2 is not 3); choose another folder"),
        ({"seed": 1, "size": "paper"}, "(size: ref is not paper; seed: 0 is not 1)"),
        ({"learning_rate": (1e-3, 1e-2)}, "learning_rate: [0.002] is not [0.001, 0.01]"),
    ],
)
def test_a_taken_folder(options: Options, taken: Path, cache: Path, changes: dict[str, Any], says: str) -> None:
    """A folder that holds a run with other options is refused, and says what differs."""
    with pytest.raises(UsageError) as caught:
        fit(with_options(options, **changes), taken, cache, "cpu")
    assert says in str(caught.value)


def test_changed_data(options: Options, taken: Path, cache: Path, tables: Path, tmp_path: Path) -> None:
    """Data that was moved is the same data; data with one other rating is not."""
    moved = Path(shutil.copytree(tables, tmp_path / "moved"))
    fit(with_options(options, data=moved), taken, cache, "cpu")
    lines = (moved / "ratings.csv").read_text().splitlines()
    user, movie, rating = lines[1].split(",")
    lines[1] = f"{user},{movie},{6 - int(rating) if rating != '3' else 4}"
    (moved / "ratings.csv").write_text("\n".join(lines))
    for attempt in (
        lambda: fit(with_options(options, data=moved), taken, cache, "cpu"),
        lambda: open_run(taken, cache, "cpu", data=moved),
    ):
        with pytest.raises(UsageError, match="the data changed"):
            attempt()


def test_changed_backbone(options: Options, cache: Path, tmp_path: Path) -> None:
    """A run belongs to its backbone's files: with other weights under the same name it is refused."""
    (tmp_path / "bert").mkdir()
    mine = with_options(options, backbone=str(write_bert(tmp_path / "bert")), epochs=1)
    fit(mine, tmp_path / "run", cache, "cpu")
    write_bert(tmp_path / "bert", seed=1)
    with pytest.raises(UsageError, match="the backbone's files changed"):
        fit(mine, tmp_path / "run", cache, "cpu")
    with pytest.raises(UsageError, match="the backbone's files changed since the fit"):
        open_run(tmp_path / "run", cache, "cpu")


def test_foreign_folders(options: Options, cache: Path, tmp_path: Path) -> None:
    """A folder with other things in it is refused; what a kill left of the very first file is not in the way."""
    out = tmp_path / "run"
    out.mkdir()
    (out / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match="is not empty and holds no run; choose another folder"):
        fit(options, out, cache, "cpu")
    (out / "thesis.tex").rename(out / ".plan.json.4711.tmp")
    assert fit(with_options(options, epochs=1), out, cache, "cpu").epochs == 1


@pytest.mark.parametrize("name", ["plan.json", "run.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", '{"surprise": 1}'])
def test_damaged_records(options: Options, taken: Path, cache: Path, name: str, content: str) -> None:
    """A plan or record that cannot be read is named; nothing is fitted over it."""
    if name == "plan.json":
        (taken / "run.json").unlink(missing_ok=True)
    (taken / name).write_text(content)
    with pytest.raises(UsageError, match=rf"{name}: not readable"):
        fit(options, taken, cache, "cpu")


def without_shift(tables: Path, folder: Path) -> Path:
    data = Path(shutil.copytree(tables, folder))
    text = (data / "dataset.toml").read_text()
    (data / "dataset.toml").write_text(text[: text.index("[shift]")])
    return data


def test_wrong_options_write_nothing(
    options: Options, tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options that do not fit data, backbone or machine are refused before a folder or a view appears."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out, cache = tmp_path / "run", tmp_path / "cache"
    no_shift = with_options(options, data=without_shift(tables, tmp_path / "tables"), select="genre")
    for wrong, device, says in (
        (with_options(options, weights="1,2"), "cpu", "--weights 1,2: 2 weights for 3 layers"),
        (with_options(options, weights="1,2,3", views="none"), "cpu", "3 weights for 1 layers"),
        (no_shift, "cpu", "has no shift whose values could be held out"),
        (options, "cuda", "--device cuda: no CUDA device is visible"),
        (options, "xla", "--device xla: torch_xla is not installed"),
        (with_options(options, backbone="./nowhere"), "cpu", "no such folder"),
        (with_options(options, data=tmp_path / "nowhere"), "cpu", "nowhere"),
    ):
        with pytest.raises(UsageError) as caught:
            fit(wrong, out, cache, device)
        assert says in str(caught.value)
        assert not out.exists()
        assert not cache.exists()


def test_without_a_shift(options: Options, tables: Path, cache: Path, tmp_path: Path) -> None:
    """Data without a shift has no OOD part and is fitted like any other."""
    data = without_shift(tables, tmp_path / "tables")
    fit(with_options(options, data=data, views="none", epochs=1), tmp_path / "run", cache, "cpu")
    opened = open_run(tmp_path / "run", cache, "cpu")
    assert len(opened.split.ood) == 0
    assert opened.backbone is None
    assert opened.model.shape.layers == 1


def test_a_user_without_ratings(options: Options, tables: Path, cache: Path, tmp_path: Path) -> None:
    """Who is in the table and rated nothing has no id that was fitted: rated by attributes, and exported."""
    data = Path(shutil.copytree(tables, tmp_path / "tables"))
    with (data / "users.csv").open("a") as file:
        file.write("9999,doctor,12345,30\n")
    fit(with_options(options, data=data), tmp_path / "run", cache, "cpu")
    run = open_run(tmp_path / "run", cache, "cpu")
    assert run.dataset.users["id"].to_pylist()[-1] == 9999
    assert int(run.ids[0][-1]) == 0
    version = export(run, tmp_path / "repository", "levi", 20)
    assert Rated(version).items_of(len(Rated(version)) - 1).size == 0


def spoil(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-100])


@pytest.mark.parametrize(
    ("harm", "error", "says"),
    [
        (shutil.rmtree, UsageError, "holds no run"),
        (lambda f: (f / "run.json").unlink(), UsageError, "was begun but not finished; run the same fit again"),
        (lambda f: (f / "run.json").write_text("{}"), UsageError, "run.json: not a run record: Field required"),
        (lambda f: spoil(f / "model.safetensors"), RunError, "model.safetensors: not this run's parameters"),
        (lambda f: (f / "model.safetensors").unlink(), RunError, "model.safetensors: not this run's parameters"),
    ],
)
def test_runs_that_cannot_be_opened(
    entity_run: Run,
    cache: Path,
    tmp_path: Path,
    harm: Callable[[Path], None],
    error: type[Exception],
    says: str,
) -> None:
    """A folder without a finished run, or with damaged files, is refused with the file and what to do."""
    folder = Path(shutil.copytree(entity_run.folder, tmp_path / "run"))
    harm(folder)
    with pytest.raises(error) as caught:
        open_run(folder, cache, "cpu")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


KILLED_FIT = """
import os, signal, sys
calls, plain = 0, os.fsync

def fsync(descriptor):
    global calls
    calls += 1
    if calls == 11:
        os.kill(os.getpid(), signal.SIGKILL)
    plain(descriptor)

os.fsync = fsync
from training.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_process_that_is_killed(options: Options, cache: Path, tmp_path: Path) -> None:
    """`levi-train fit`, killed by SIGKILL while it writes a file, ends with the same bytes when it is run again."""
    options = with_options(options, epochs=6)
    flags = [
        f"--{name}={getattr(options, name)}" for name in ("dataset", "data", "backbone", "epochs", "batch", "select")
    ]
    flags += [f"--learning-rate={options.learning_rate[0]}"]
    killed = subprocess.run(
        [
            sys.executable,
            "-c",
            KILLED_FIT,
            "fit",
            *flags,
            f"--cache={cache}",
            f"--out={tmp_path}/killed",
            "--device=cpu",
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = names(tmp_path / "killed")
    assert "run.json" not in left
    assert "checkpoint.safetensors" in left
    assert any(name.endswith(".tmp") for name in left)
    record = fit(options, tmp_path / "killed", cache, "cpu")
    whole = fit(options, tmp_path / "whole", cache, "cpu")
    assert record.curve == whole.curve
    parameters = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("killed", "whole")]
    assert parameters[0] == parameters[1]


@pytest.mark.parametrize("size", [100, 1000, 50_000])
def test_a_full_disk(options: Options, tmp_path: Path, size: int) -> None:
    """When plan, views or checkpoints cannot be written, nothing looks finished; with space, the same fit ends well."""
    out, cache = tmp_path / "run", tmp_path / "cache"
    with files_of_at_most(size), pytest.raises(RunError, match=rf"^{tmp_path}/.*: cannot be written \("):
        fit(options, out, cache, "cpu")
    assert not [name for name in names(tmp_path) if name in {"run.json", "model.safetensors"} or name.endswith(".tmp")]
    with pytest.raises(UsageError, match="holds no run" if size == 100 else "was begun but not finished"):
        open_run(out, cache, "cpu")
    assert fit(options, out, cache, "cpu").options == options


def test_the_record_is_written_last(
    options: Options, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the parameters cannot be written, there is no record; when the record cannot, the run is not finished."""
    for name in ("save_model", "write_json"):
        out, original = tmp_path / name, getattr(module, name)

        def fails(path: Path, *args: Any, original: Any = original) -> None:
            if path.name == "plan.json":
                original(path, *args)
            else:
                raise OSError(28, "No space left on device")

        with monkeypatch.context() as patches:
            patches.setattr(module, name, fails)
            with pytest.raises(OSError, match="No space"):
                fit(options, out, cache, "cpu")
        assert not (out / "run.json").exists()
        assert (out / "model.safetensors").exists() == (name == "write_json")
        with pytest.raises(UsageError, match="was begun but not finished"):
            open_run(out, cache, "cpu")
        assert fit(options, out, cache, "cpu").epochs


def test_data_hash(entity_run: Run) -> None:
    """The hash of the data follows every rating, attribute, id and the schema, and nothing else."""
    data = entity_run.dataset
    ratings = data.ratings
    first = data_hash(data)
    values = ratings.value.copy()
    values[0] = 6 - values[0] if values[0] != 3 else 4
    ages = data.users["age"].to_pylist()
    users = data.users.set_column(data.users.schema.get_field_index("age"), "age", pa.array([ages[0] + 1, *ages[1:]]))
    others = [
        dataclasses.replace(data, ratings=dataclasses.replace(ratings, value=values)),
        dataclasses.replace(data, ratings=dataclasses.replace(ratings, time=ratings.time + 1)),
        dataclasses.replace(data, users=users),
        dataclasses.replace(data, users=data.items, items=data.users),
        dataclasses.replace(data, schema=data.schema.model_copy(update={"rating_max": 6.0})),
    ]
    assert len({first, *map(data_hash, others)}) == 6
    chunked = pa.concat_tables([data.users.slice(0, 5), data.users.slice(5)])
    assert data_hash(dataclasses.replace(data, users=chunked)) == first
