"""training.gates: a model that became worse is stopped, chance and too few ratings are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training import gates
from training.gates import Judged, Margins, Slice, Verdict, candidate, in_service, interval, judge
from training.run import Run

MARGINS = Margins(id=0.005, newest=0.0, ood=0.01)


class Said(Judged):
    """A model that says what it is told to."""

    def __init__(self, run: Run, heads: np.ndarray) -> None:
        super().__init__(run, run.prepared.features, run.ids)
        object.__setattr__(self, "_heads", heads.astype(np.float32))

    def heads(self, rows: np.ndarray) -> np.ndarray:
        found: np.ndarray = self._heads[rows]  # type: ignore[attr-defined]
        return found


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "ENOUGH", 20)


@pytest.fixture
def truth(entity_run: Run) -> np.ndarray:
    """[m, n] heads that are right but for noise, alike in all parts."""
    value = entity_run.dataset.ratings.value
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.3, (len(value), entity_run.model.shape.layers))
    return np.clip(value[:, None] + noise, 1, 5)


def newest(run: Run) -> np.ndarray:
    """[m] every second rating is from night 1."""
    return (np.arange(len(run.dataset.ratings)) % 2).astype(np.int32)


def failed(verdict: Verdict) -> list[str]:
    return [gate.name for gate in verdict.gates if not gate.passed]


def test_interval_by_hand() -> None:
    """Two clusters: RMSE 1 against 2; every resample says −1. One model twice differs by nothing."""
    cluster, new, old = np.array([3, 3, 9]), np.array([1.0, 1.0, 1.0]), np.array([4.0, 4.0, 4.0])
    assert interval(cluster, new, old) == pytest.approx((-1, -1, -1))
    assert interval(cluster, old, old) == (0, 0, 0)
    difference, low, high = interval(np.array([0, 1]), np.array([0.0, 4.0]), np.array([1.0, 1.0]))
    assert (difference, low, high) == pytest.approx((2**0.5 - 1, -1, 1))


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({"difference": 0.02, "low": 0.01}, False),
        ({"difference": 0.02, "low": -0.001}, True),  # chance
        ({"difference": 0.009, "low": 0.001}, True),  # within the margin
        ({"difference": 0.02, "low": 0.01, "ratings": 19}, True),  # too few
    ],
)
def test_a_slice(changes: dict[str, Any], passes: bool) -> None:
    one = {"name": "x", "kind": "id", "ratings": 20, "old": 1, "new": 1, "high": 1, "margin": 0.01}
    assert Slice(**{**one, **changes}).passes is passes


def test_the_same_model_passes(entity_run: Run, truth: np.ndarray) -> None:
    """Nothing is worse, and its shift slices are called OOD, since nothing of theirs was fitted."""
    model = Said(entity_run, truth)
    verdict = judge(model, model, newest(entity_run), 0, MARGINS)
    assert failed(verdict) == []
    kinds = {one.name: one.kind for one in verdict.slices}
    assert kinds == {"ID test": "id", "newest": "newest", "OOD": "ood"} | dict.fromkeys(entity_run.split.slices, "ood")
    test = entity_run.split.test
    assert [one.ratings for one in verdict.slices[:2]] == [(test % 2 == 0).sum(), (test % 2 == 1).sum()]


@pytest.mark.parametrize("name", ["ID test", "newest", "OOD"])
def test_a_slice_that_became_worse(entity_run: Run, truth: np.ndarray, name: str) -> None:
    """Exactly that one stops the model; the reason tells it."""
    parts, night = entity_run.split, newest(entity_run)
    rows = {
        "ID test": parts.test[night[parts.test] == 0],
        "newest": parts.test[night[parts.test] == 1],
        "OOD": parts.ood,
    }[name]
    worse = truth.copy()
    worse[rows] += np.where(np.arange(len(rows)) % 2, 0.7, -0.7)[:, None]
    verdict = judge(Said(entity_run, truth), Said(entity_run, worse), night, 0, MARGINS)
    assert name in failed(verdict)
    assert set(failed(verdict)) <= {name, *entity_run.split.slices}
    assert f"{name}: +" in verdict.reasons


def test_ratings_without_sense(entity_run: Run, truth: np.ndarray) -> None:
    """Both models are as bad on the newest ratings: no slice became worse, but nothing of them is explained."""
    night, test = newest(entity_run), entity_run.split.test
    blind = truth.copy()
    blind[test[night[test] == 1]] = 3
    verdict = judge(Said(entity_run, blind), Said(entity_run, blind), night, 0, MARGINS)
    assert "newest ratings make sense" in failed(verdict)
    assert not any(one.difference for one in verdict.slices)


def test_sanity(entity_run: Run, truth: np.ndarray) -> None:
    """Bias, heads that disagree otherwise than in calibration, and no number at all."""
    night, test = newest(entity_run), entity_run.split.test
    biased, loud, broken = truth - 0.5, truth.copy(), truth.copy()
    loud[test] += np.array([1, -1, 0])
    broken[test[0], 0] = np.nan
    old = Said(entity_run, truth)
    assert "bias" in failed(judge(old, Said(entity_run, biased), night, 0, MARGINS))
    assert "calibration" in failed(judge(old, Said(entity_run, loud), night, 0, MARGINS))
    assert "finite" in failed(judge(old, Said(entity_run, broken), night, 0, MARGINS))


def test_an_earlier_model_on_its_own_data(entity_run: Run, pair_run: Run, cache: Path) -> None:
    """Seen as another run's data, its ratings are what they were."""
    rows = np.arange(50)
    for run in (entity_run, pair_run):
        np.testing.assert_allclose(
            in_service(run, run.dataset, cache).rating(rows), candidate(run).rating(rows), atol=1e-5
        )
