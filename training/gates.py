"""The gates: whether a new model may take the place of the one in service.

Both rate the same held-out ratings, on which neither was fitted: the base data's test part, the newest ratings, and the
base data's OOD slices. What differs by chance alone stops nobody: a slice fails when the new model is worse by more
than the margin and by more than a 95 % interval over resampled users (OOD: items) explains.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from levi_serve.bundle import DoubleArray, FloatArray, Int64Array
from levi_serve.bundle.schema import Frozen
from levi_serve.bundle.scores import spread
from training.datasets.dataset import Dataset
from training.features import Basis, Features, prepare
from training.fit import predict
from training.model import SIZES
from training.run import Run
from training.start import known_rows

RESAMPLES = 2000
ENOUGH = 50
"""Ratings of a slice below which nothing is decided by it."""
EXPLAINED = 0.25
"""The newest ratings must be at least so predictable as a share of how predictable the held-out ID ones are."""
CALIBRATED = (0.01, 0.12)
"""Share of test ratings, of 5 % expected, whose heads disagree more than in 95 % of the calibration part."""
BIAS = 0.05
"""Mean error on ID test, at most, as a share of the rating range."""

Kind: TypeAlias = Literal["id", "newest", "ood", "seen"]


class Margins(Frozen):
    """How much worse, in RMSE, a slice of each kind may become."""

    id: float
    newest: float
    ood: float


class Slice(Frozen):
    """Both models on some held-out ratings."""

    name: str
    kind: Kind
    """`seen`: a shift slice of the base data of whose items the new model was fitted on ratings from feedback."""
    ratings: int
    old: float
    """RMSE of the model in service."""
    new: float
    difference: float
    """New minus old; below zero the new one is better."""
    low: float
    high: float
    """95 % interval of the difference."""
    margin: float

    @property
    def judged(self) -> bool:
        """Whether there are enough ratings to decide by."""
        return self.ratings >= ENOUGH

    @property
    def passes(self) -> bool:
        """Not worse by more than the margin and by more than chance."""
        return not self.judged or self.difference <= self.margin or self.low <= 0


class Gate(Frozen):
    """One condition."""

    name: str
    passed: bool
    says: str


class Verdict(Frozen):
    """All of them."""

    slices: list[Slice]
    gates: list[Gate]

    @property
    def passed(self) -> bool:
        """Whether the new model may serve."""
        return all(gate.passed for gate in self.gates)

    @property
    def reasons(self) -> str:
        """Why it may not."""
        return "; ".join(f"{gate.name}: {gate.says}" for gate in self.gates if not gate.passed)


@dataclass(frozen=True)
class Judged:
    """What one model says of the candidate's data."""

    run: Run
    features: Features
    ids: tuple[torch.Tensor, torch.Tensor]

    def heads(self, rows: Int64Array) -> FloatArray:
        """Head ratings [len(rows), n], unclipped."""
        found: FloatArray = predict(self.run.model, self.features, torch.from_numpy(rows), self.ids).numpy()
        return found

    def rating(self, rows: Int64Array) -> DoubleArray:
        """Ratings [len(rows)], clipped."""
        heads = torch.from_numpy(self.heads(rows))
        found: DoubleArray = self.run.model.rating(heads).clamp(*self.run.bounds).double().numpy()
        return found


def candidate(run: Run) -> Judged:
    """A model on its own data."""
    return Judged(run, run.prepared.features, run.ids)


def in_service(run: Run, dataset: Dataset, cache: Path) -> Judged:
    """An earlier model on other data of its schema. Ids that it does not know are unknown to it."""
    options, device = run.record.options, run.model.center.device
    basis, nothing = Basis(run.prepared.vocabulary, run.prepared.projections), np.empty(0, np.int64)
    size = SIZES[options.size]
    prepared = prepare(dataset, nothing, run.backbone, options.views, size, cache, device, options.variant, basis)
    return Judged(run, prepared.features, known_rows(run, dataset))


def judge(old: Judged, new: Judged, batch: npt.NDArray[np.int32], since: int, margins: Margins) -> Verdict:
    """Compare the model in service with the `new` one, which knows the nights after `since` besides. `batch` [m] is the
    night that brought each rating of the new one's data.
    """
    run, parts = new.run, new.run.split
    ratings = run.dataset.ratings
    judged = np.concatenate([parts.test, parts.ood, parts.calibration])
    if not np.isfinite(new.heads(judged)).all():
        return Verdict(slices=[], gates=[Gate(name="finite", passed=False, says="a head gives no number for a rating")])
    newest = parts.test[batch[parts.test] > since]
    fitted = np.zeros(len(run.dataset.items), np.bool_)
    fitted[ratings.item[parts.train]] = True
    wanted: list[tuple[str, Kind, Int64Array]] = [
        ("ID test", "id", parts.test[batch[parts.test] <= since]),
        ("newest", "newest", newest),
    ]
    for name, rows in ({"OOD": parts.ood} | parts.slices).items():
        seen = len(rows) and fitted[ratings.item[rows]].any()
        wanted.append((name, "seen" if seen else "ood", rows))
    slices = [_slice(old, new, *one, margins) for one in wanted if len(one[2])]
    gates = [Gate(name=one.name, passed=one.passes, says=_told(one)) for one in slices]
    return Verdict(slices=slices, gates=[*gates, *_predictable(new, parts.test, newest), *_sane(new)])


def interval(cluster: Int64Array, new: DoubleArray, old: DoubleArray) -> tuple[float, float, float]:
    """RMSE of the new model minus that of the old, and its 95 % interval over resampled clusters, from the squared
    errors [r] of both and the cluster [r] of each rating.
    """
    _, place = np.unique(cluster, return_inverse=True)
    sums = np.stack([np.bincount(place, new), np.bincount(place, old), np.bincount(place)])  # [3, clusters]
    rng = np.random.default_rng(0)
    times = np.stack(
        [
            np.bincount(rng.integers(sums.shape[1], size=sums.shape[1]), minlength=sums.shape[1])
            for _ in range(RESAMPLES)
        ]
    )
    drawn = times @ sums.T  # [RESAMPLES, 3]
    low, high = np.quantile(np.sqrt(drawn[:, 0] / drawn[:, 2]) - np.sqrt(drawn[:, 1] / drawn[:, 2]), (0.025, 0.975))
    return float(np.sqrt(new.mean()) - np.sqrt(old.mean())), float(low), float(high)


def _slice(old: Judged, new: Judged, name: str, kind: Kind, rows: Int64Array, margins: Margins) -> Slice:
    ratings = new.run.dataset.ratings
    value = ratings.value[rows].astype(np.float64)
    before, after = np.square(old.rating(rows) - value), np.square(new.rating(rows) - value)
    cluster = (ratings.item if kind in {"ood", "seen"} else ratings.user)[rows].astype(np.int64)
    difference, low, high = interval(cluster, after, before)
    return Slice(
        name=name,
        kind=kind,
        ratings=len(rows),
        old=float(np.sqrt(before.mean())),
        new=float(np.sqrt(after.mean())),
        difference=difference,
        low=low,
        high=high,
        margin={"id": margins.id, "newest": margins.newest}.get(kind, margins.ood),
    )


def _told(one: Slice) -> str:
    said = f"{one.difference:+.4f} [{one.low:+.4f}, {one.high:+.4f}] RMSE, margin {one.margin:g}"
    return said if one.judged else f"{one.ratings} ratings are too few to decide by; {said}"


def _predictable(new: Judged, test: Int64Array, newest: Int64Array) -> list[Gate]:
    """Ratings without sense, such as random ones, cannot be predicted by a model that was fitted on their like."""
    name = "newest ratings make sense"
    if len(newest) < ENOUGH:
        return [Gate(name=name, passed=True, says=f"{len(newest)} are too few to decide by")]
    known, found = _explained(new, np.setdiff1d(test, newest)), _explained(new, newest)
    passed = found >= EXPLAINED * known
    says = f"{found:.1%} of their variance is explained, of older ones {known:.1%}; {EXPLAINED:.0%} of that are wanted"
    return [Gate(name=name, passed=passed, says=says)]


def _explained(new: Judged, rows: Int64Array) -> float:
    value = new.run.dataset.ratings.value[rows].astype(np.float64)
    return float(1 - np.square(new.rating(rows) - value).mean() / max(value.var(), 1e-9))


def _sane(new: Judged) -> list[Gate]:
    """Ratings are not biased, and heads disagree in the test part as they do in the calibration part."""
    parts, bounds = new.run.split, new.run.bounds
    heads = new.heads(parts.test)
    bias = float((new.rating(parts.test) - new.run.dataset.ratings.value[parts.test]).mean())
    usual = np.quantile(spread(new.heads(parts.calibration)), 0.95)
    share, (least, most) = float((spread(heads) > usual).mean()), CALIBRATED
    return [
        Gate(
            name="bias", passed=abs(bias) <= BIAS * (bounds[1] - bounds[0]), says=f"mean error {bias:+.3f} on ID test"
        ),
        Gate(
            name="calibration",
            passed=least <= share <= most,
            says=f"{share:.1%} of ID test disagree more than 95 % of the calibration part; {least:.0%}–{most:.0%} may",
        ),
    ]
