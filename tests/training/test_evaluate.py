"""training.evaluate, training.baselines and training.report: a case small enough to do by hand."""

from __future__ import annotations

import io
import itertools
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from sklearn.linear_model import Ridge

from levi_serve.bundle.schema import Attribute, Entity, Schema, Template
from training import baselines, report
from training import evaluate as module
from training.baselines import ridge, user_mean
from training.datasets.dataset import Dataset, GenreShift, Ratings
from training.evaluate import Evaluation, evaluate, item_interval
from training.options import Options
from training.run import Run, open_run
from training.splits import Split, item_folds

NOTHING = np.array([], np.int64)
GENRES = [["A"], ["B"], ["A", "B"], ["C"], ["A"], ["C", "B"], ["X"], ["X", "Y"], ["Y"]]
YEARS = [1950, 1960, None, 1970, 1955, 1990, 1991, 1992, 1993]


def dataset(pairs: list[tuple[int, int, float]]) -> Dataset:
    """Ratings of up to four users of nine items with genres and years."""
    user, item, value = zip(*pairs, strict=True)
    schema = Schema(
        user=Entity(name="user"),
        item=Entity(
            name="movie",
            attributes=(
                Attribute(name="genres", kind="category", many=True, slots=2),
                Attribute(name="year", kind="number", edges=(1960, 1980)),
                Attribute(name="stars", kind="number"),
                Attribute(name="title", kind="text"),
            ),
        ),
        rating_min=1,
        rating_max=5,
        user_template=Template(clauses=()),
        item_template=Template(clauses=()),
        pair_template=Template(clauses=()),
    )
    items = {"id": range(9), "genres": GENRES, "year": YEARS, "stars": [0.5] * 9, "title": ["A title"] * 9}
    return Dataset(
        "test",
        schema,
        pa.table({"id": list(range(4))}),
        pa.table({name: list(column) for name, column in items.items()}),
        Ratings(
            np.array(user, np.int32),
            np.array(item, np.int32),
            np.array(value, np.float32),
            np.zeros(len(pairs), np.int64),
        ),
        GenreShift("genres", frozenset("ABC"), 1),
    )


TRAIN = [(u, i, 1 + (u * i + i) % 5) for u, i in itertools.product(range(3), range(6))]
"""18 ratings: rows 0 to 17."""


def fake_run(folder: Path, heads: list[list[float]], weights: list[float], **options: Any) -> Run:
    """A run that gives these heads on test (values 1, 5, 3) and then OOD (values 2, 4)."""
    data = dataset([*TRAIN, (0, 1, 1), (1, 1, 5), (2, 3, 3), (0, 6, 2), (1, 7, 4)])
    test, ood = np.arange(18, 21), np.arange(21, 23)
    if not options.pop("shift", True):
        ood = NOTHING
    slices = {"X": ood, "Y": ood[1:]} if len(ood) else {}
    given_heads = torch.tensor(heads)
    model = SimpleNamespace(center=torch.zeros(()), rating=lambda h: h.mv(torch.tensor(weights)), heads=given_heads)
    nothing: Any = None
    return Run(
        folder=folder,
        record=SimpleNamespace(options=Options(**options)),  # type: ignore[arg-type]
        dataset=data,
        split=Split(np.arange(18), NOTHING, NOTHING, test, ood, slices),
        train=np.arange(18),
        backbone=None,
        prepared=SimpleNamespace(features=nothing),  # type: ignore[arg-type]
        model=model,  # type: ignore[arg-type]
        ids=nothing,
    )


@pytest.fixture
def _given_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "predict", lambda model, *_: model.heads)


HEADS = [[0.0, 0.0], [6.0, 6.0], [3.0, 5.0], [2.0, 3.0], [4.0, 2.0]]


@pytest.mark.usefixtures("_given_heads")
def test_by_hand(tmp_path: Path) -> None:
    """Errors of the clipped mean, each head's own, slices and the spread's AUROC are those computed by hand."""
    found = evaluate(fake_run(tmp_path, HEADS, [0.5, 0.5], seed=3))
    levi = found.rows[0]
    assert [row.name for row in found.rows][:2] == ["LEVI, entity views", "shrunk user mean"]
    # ID: 0 clips to 1, 6 to 5, and 4 is 1 off. OOD: 2.5 for 2 and 3 for 4.
    assert (levi.id.ratings, levi.id.items) == (3, 2)
    assert levi.id.rmse == pytest.approx(np.sqrt(1 / 3))
    assert levi.id.mae == pytest.approx(1 / 3)
    assert levi.ood is not None
    assert (levi.ood.ratings, levi.ood.items) == (2, 2)
    assert levi.ood.rmse == pytest.approx(np.sqrt((0.25 + 1) / 2))
    assert levi.ood.mae == pytest.approx(0.75)
    assert list(levi.slices) == ["X", "Y"]
    assert levi.slices["Y"].rmse == pytest.approx(1)
    assert levi.slice_mean == pytest.approx((np.sqrt(0.625) + 1) / 2)
    assert found.heads_id == pytest.approx([0, np.sqrt(4 / 3)])
    assert found.heads_ood == pytest.approx([0, np.sqrt((1 + 4) / 2)])
    # Spreads: 0, 0, 1 on ID and 0.5, 1 on OOD: of six pairs OOD is above in four and equal in one.
    assert found.auroc_spread == pytest.approx(4.5 / 6)
    assert (found.seed, found.run) == (3, str(tmp_path))


@pytest.mark.usefixtures("_given_heads")
def test_weighted_heads(tmp_path: Path) -> None:
    """The prediction is the model's weighted mean, here of its first head alone, which is right everywhere."""
    levi = evaluate(fake_run(tmp_path, HEADS, [1.0, 0.0])).rows[0]
    assert levi.id.rmse == 0
    assert levi.ood is not None
    assert levi.ood.rmse == levi.ood.mae == levi.ood.low == levi.ood.high == 0


@pytest.mark.usefixtures("_given_heads")
def test_without_shift_or_heads(tmp_path: Path) -> None:
    """Without a shift there is nothing OOD, and a scratch tower alone has no disagreement; its name says what it is."""
    found = evaluate(fake_run(tmp_path, HEADS[:3], [0.5, 0.5], shift=False, views="pair"))
    assert found.rows[0].name == "LEVI, pair views"
    assert found.rows[0].ood is found.rows[0].slice_mean is found.auroc_spread is None
    assert found.heads_ood == []
    alone = evaluate(fake_run(tmp_path, [h[:1] for h in HEADS], [1.0], views="none"))
    assert alone.rows[0].name == "scratch tower alone"
    assert alone.auroc_spread is None
    assert len(alone.heads_id) == len(alone.heads_ood) == 1
    for evaluation in (found, alone):
        report.show(evaluation)


@pytest.mark.usefixtures("_given_heads")
def test_metrics_file(tmp_path: Path) -> None:
    """metrics.json holds the evaluation, and an earlier one is replaced."""
    for weights in ([0.5, 0.5], [1.0, 0.0]):
        found = evaluate(fake_run(tmp_path, HEADS, weights))
        assert Evaluation.model_validate_json((tmp_path / "metrics.json").read_bytes()) == found
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


@pytest.mark.usefixtures("_given_heads")
def test_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The printed tables carry every number: errors with intervals, slices largest first, heads, AUROC."""
    found = evaluate(fake_run(tmp_path, HEADS, [0.5, 0.5]))
    report.show(found)
    text = capsys.readouterr().out
    for row in found.rows:
        for error in (row.id, row.ood, row.slices["Y"]):
            assert error is not None
            assert f"{error.rmse:.4f} [{error.low:.3f}, {error.high:.3f}]" in text
        assert f"{row.id.mae:.4f}" in text
        assert f"{row.slice_mean:.4f}" in text
    assert "0.5774 [" in text  # √⅓
    assert text.index("│ X ") < text.index("│ Y ")
    assert "│    1 │ 1.1547 │ 1.5811 │" in text
    assert "AUROC of head disagreement, ID test against OOD: 0.750" in text


def test_tables_of_an_evaluation_without_shift() -> None:
    """Without OOD ratings the columns hold dashes, and there is no table of slices."""
    error = {"ratings": 1, "items": 1, "rmse": 1.0, "low": 0.5, "high": 1.5, "mae": 0.25}
    found = Evaluation.model_validate(
        {
            "rows": [{"name": "LEVI", "id": error, "ood": None, "slices": {}}],
            "heads_id": [1.0],
            "heads_ood": [],
            "auroc_spread": None,
            "run": "runs/x",
            "seed": 0,
            "evaluated": "2026",
        }
    )
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(report.table(found), report.head_table(found))
    text = console.export_text()
    assert "│ LEVI  │ 1.0000 [0.500, 1.500] │ 0.2500 │        – │       – │                 – │" in text
    assert "│    0 │ 1.0000 │   – │" in text
    assert report.slice_table(found).row_count == 0


def test_interval_of_one_item() -> None:
    """Ratings of one item alone say nothing about other items: resampling it always gives the same."""
    assert item_interval(np.array([7, 7, 7]), np.array([0.0, 3.0, 6.0])) == pytest.approx((np.sqrt(3), np.sqrt(3)))


def test_interval_of_two_items() -> None:
    """One item with an error of 9 and one with three of 1 give 9, 1 or, both drawn, 12/4: the ends are 1 and 3."""
    assert item_interval(np.array([4, 2, 2, 2]), np.array([9.0, 1.0, 1.0, 1.0])) == (1, 3)


def test_interval_is_clustered() -> None:
    """Where items differ, the interval is wider than if their ratings were independent; where not, it is not."""
    rng = np.random.default_rng(1)
    item, single = np.repeat(np.arange(20), 50), np.arange(1000)
    same = rng.exponential(size=1000)
    differing = rng.exponential(size=20)[item] + 0.1 * same

    def width(clusters: np.ndarray, squared: np.ndarray) -> float:
        low, high = item_interval(clusters, squared)
        assert low < np.sqrt(squared.mean()) < high
        return high - low

    assert width(item, differing) > 3 * width(single, differing)
    assert width(item, same) == pytest.approx(width(single, same), rel=0.4)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 4), st.floats(0, 16)), min_size=1, max_size=30))
def test_interval_lies_between_the_items(rated: list[tuple[int, float]]) -> None:
    """An interval is ordered and between the best and the worst item's own error."""
    item, squared = (np.array(column) for column in zip(*rated, strict=True))
    low, high = item_interval(item, squared)
    own = [np.sqrt(squared[item == i].mean()) for i in np.unique(item)]
    assert min(own) - 1e-9 <= low <= high <= max(own) + 1e-9


def test_user_mean() -> None:
    """A user's mean counts with five more ratings at the global mean: of 5, 5 and 1, a mean of 11/3."""
    data = dataset([(0, 0, 5), (0, 1, 5), (1, 0, 1), (0, 2, 1), (1, 2, 1), (2, 2, 1)])
    train, rows = np.arange(3), np.array([5, 4, 3])
    mean = 11 / 3
    expected = [mean, mean + (1 - mean) / 6, mean + 2 * (5 - mean) / 7]
    assert user_mean(data, train, rows) == pytest.approx(expected)


def dense_design(data: Dataset, rows: np.ndarray) -> np.ndarray:
    """User indicators, indicators of genres and decade, and every product of the two: one row per rating."""
    levels = ["genres=A", "genres=B", "genres=C", "genres=X", "genres=Y", "year=0", "year=1", "year=2"]
    out = []
    for row in rows:
        user, item = data.ratings.user[row], data.ratings.item[row]
        year = YEARS[item]
        has = {f"genres={g}" for g in GENRES[item]}
        has |= set() if year is None else {f"year={(year >= 1960) + (year >= 1980)}"}
        who, what = np.eye(4)[user], np.array([level in has for level in levels], float)
        out.append([*who, *what, *np.outer(who, what).ravel()])
    return np.array(out)


def test_ridge() -> None:
    """Sparse ridge predicts what a dense one does, with the penalty that item-disjoint folds choose."""
    data = dataset([*TRAIN, (0, 7, 2), (3, 0, 4)])
    train, rows = np.arange(18), np.array([19, 18, 0])

    def predict(fitted: np.ndarray, alpha: float, on: np.ndarray) -> np.ndarray:
        model = Ridge(alpha=alpha, solver="cholesky").fit(dense_design(data, fitted), data.ratings.value[fitted])
        return model.predict(dense_design(data, on))

    errors = {
        alpha: np.mean(
            [
                np.square(predict(fitted, alpha, held_out) - data.ratings.value[held_out]).mean()
                for fitted, held_out in item_folds(data, train, baselines.FOLDS, seed=2)
            ]
        )
        for alpha in baselines.ALPHAS
    }
    predicted, alpha = ridge(data, train, rows, seed=2)
    assert alpha == min(errors, key=lambda a: errors[a])
    assert predicted == pytest.approx(predict(train, alpha, rows), abs=1e-4)


def test_a_real_run(entity_run: Run, cache: Path, tmp_path: Path) -> None:
    """A fitted run's evaluation covers its test and OOD ratings, and its RMSE is that of its own predictions."""
    folder = Path(shutil.copytree(entity_run.folder, tmp_path / "run"))
    run = open_run(folder, cache, "cpu")
    found = evaluate(run)
    levi, parts = found.rows[0], run.split
    assert levi.id.ratings == len(parts.test)
    assert levi.ood is not None
    assert levi.ood.ratings == len(parts.ood)
    assert {name: error.ratings for name, error in levi.slices.items()} == {n: len(r) for n, r in parts.slices.items()}
    with torch.inference_mode():
        batch = run.prepared.features.batch(torch.from_numpy(parts.ood), run.ids)
        rating = (run.model(batch).numpy() @ np.full(3, 1 / 3)).clip(1, 5)
    assert levi.ood.rmse == pytest.approx(
        np.sqrt(np.square(rating - run.dataset.ratings.value[parts.ood]).mean()), rel=1e-5
    )
    assert len(found.heads_id) == len(found.heads_ood) == 3
