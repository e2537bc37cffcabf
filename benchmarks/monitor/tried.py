"""What was tried to tell more than the monitor does, and is not in it: the figures say why.

Each is chosen without a look at OOD: scores by how well they tell one in-distribution genre that is kept apart from the
others (*kept genre*), tables of errors on the calibration part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from benchmarks.monitor.pools import Fitted, Pool, Runs, Traffic, hidden_traffic, traffic
from benchmarks.monitor.separation import BROKEN, area
from levi_serve.bundle import AnyArray, BoolArray, DoubleArray, FloatArray
from levi_serve.bundle.scores import BINS, bins_of, quantile
from training.datasets.movielens import SHIFT
from training.run import Run

Scored = Mapping[str, DoubleArray]
"""[N] each: scores of which more means stranger."""
NEAREST = 5
_JOINED = ("spread", "support_item", "nearest")
_GROUPS, _SHRINK = 10, 100
"""Bins of support beside those of spread; ratings that a cell must have to count half."""


def heads(runs: Runs, cache: Path) -> Any:
    """AUROC of the head that differs most from what the others make expected, and of the spread, when one is broken."""
    found: dict[str, dict[str, list[float]]] = {}
    for text, of in runs.items():
        for run in of:
            whole, known = traffic(run, None, cache), Fitted.of(run).heads(run.split.calibration)
            for name, score in (("spread", lambda h: h.std(1)), ("head that differs most", most_different(known))):
                inside = whole.pools["id"].heads
                ordinary = score(inside)
                constant = [area(ordinary, score(BROKEN["constant"](head)(inside))) for head in range(inside.shape[1])]
                row = found.setdefault(f"{text}: {name}", {})
                row.setdefault("constant", []).append(float(np.mean(constant)))
                row.setdefault("constant, worst head", []).append(min(constant))
                row.setdefault("OOD genres", []).append(area(ordinary, score(whole.pools["OOD genres"].heads)))
    return {name: {case: float(np.mean(values)) for case, values in row.items()} for name, row in found.items()}


def most_different(known: FloatArray) -> Callable[[FloatArray], DoubleArray]:
    """The largest |z| over heads, z being a head's residual given all others: one product with the precision matrix."""
    mean, precision = known.mean(0), np.linalg.inv(np.cov(known.astype(np.float64), rowvar=False))
    residual = precision / np.sqrt(np.diag(precision))
    return lambda rated: np.abs((rated - mean) @ residual).max(1)


def content(runs: Runs, cache: Path) -> Any:
    """AUROC without ids: a kept in-distribution genre against the others, and ID against OOD genres."""
    found: dict[str, list[tuple[float, float]]] = {}
    for text, of in runs.items():
        for run in of:
            for name, pair in _content(run, hidden_traffic(run)).items():
                found.setdefault(f"{text}: {name}", []).append(pair)
    return {
        name: dict(zip(("kept genre", "OOD genres"), np.mean(pairs, axis=0).tolist(), strict=True))
        for name, pairs in found.items()
    }


def _content(run: Run, hidden: Traffic) -> dict[str, tuple[float, float]]:
    fitted, reference = Fitted.of(run).hidden(), hidden.reference
    known = fitted.pool(run.split.calibration, reference)
    of_item = [set(genres or ()) for genres in run.dataset.items.column("genres").to_pylist()]
    trained = np.unique(run.dataset.ratings.item[run.split.train])
    views = fitted.features.components[1]
    assert views is not None
    unit = views.numpy() / np.linalg.norm(views.numpy(), axis=2, keepdims=True)
    kept = []
    for genre in sorted(SHIFT.id_values):
        has = np.array([genre in genres for genres in of_item])
        kept.append((_scored(known, _nearest(unit, trained[~has[trained]]), reference.tables), has[known.item]))
    near = _nearest(unit, trained)
    inside, outside = (_scored(hidden.pools[name], near, reference.tables) for name in ("id", "OOD genres"))
    found = {
        name: (float(np.mean([area(s[name][~m], s[name][m]) for s, m in kept])), area(inside[name], outside[name]))
        for name in inside
    }
    apart = []
    for k, (scored, mask) in enumerate(kept):
        model = _fitted([pair for i, pair in enumerate(kept) if i != k])
        told = model(scored)
        apart.append(area(told[~mask], told[mask]))
    model = _fitted(kept)
    found["logistic, of three"] = (float(np.mean(apart)), area(model(inside), model(outside)))
    return found


def _scored(pool: Pool, near: DoubleArray, tables: Mapping[str, FloatArray]) -> dict[str, DoubleArray]:
    """The scores of ratings, `near` being that of every item; and Fisher's sum of two quantiles."""
    names = list(tables)
    found = {name: pool.scores[:, names.index(name)].astype(np.float64) for name in ("spread", "support_item")}
    tails = [np.log((1 - quantile(tables[name], values)).clip(1e-4)) for name, values in found.items()]
    return {**found, "nearest": near[pool.item], "Fisher, spread and support_item": -np.sum(tails, axis=0)}


def _nearest(unit: FloatArray, others: AnyArray) -> DoubleArray:
    """Mean distance [I] of every item's views to those of its nearest among `others`, itself left out."""
    flat = unit.reshape(len(unit), -1)
    square = np.square(flat).sum(1)
    far = square[:, None] + square[others] - 2 * flat @ flat[others].T
    far[others, np.arange(len(others))] = np.inf
    near = np.partition(far, NEAREST, axis=1)[:, :NEAREST]
    return np.asarray(np.sqrt(near.clip(0)).mean(1), np.float64)


def _fitted(pairs: Sequence[tuple[Scored, BoolArray]]) -> Callable[[Scored], DoubleArray]:
    """A logistic regression on ranks among what was not kept apart."""
    usual = {name: np.sort(np.concatenate([s[name][~m] for s, m in pairs])) for name in _JOINED}

    def ranks(scored: Scored) -> DoubleArray:
        return np.column_stack([np.searchsorted(usual[name], scored[name]) / len(usual[name]) for name in _JOINED])

    model = LogisticRegression(class_weight="balanced")
    model.fit(np.concatenate([ranks(s) for s, _ in pairs]), np.concatenate([m for _, m in pairs]))
    return lambda scored: np.asarray(model.decision_function(ranks(scored)))


def errors(runs: Runs, cache: Path) -> Any:
    """Median error of the estimated RMSE of the OOD genres, by how it is estimated; no label of a shift is used."""
    found: dict[str, Any] = {}
    for text, of in runs.items():
        parts: dict[str, list[DoubleArray]] = {}
        for run in of:
            for name, off in _errors(run, traffic(run, None, cache)).items():
                parts.setdefault(name, []).append(off)
        found[text] = {name: float(np.median(np.concatenate(off))) for name, off in parts.items()}
    return found


def _errors(run: Run, whole: Traffic) -> dict[str, DoubleArray]:
    reference, fitted = whole.reference, Fitted.of(run)
    known, cold = (one.pool(run.split.calibration, reference) for one in (fitted, fitted.hidden()))
    slices = [pool for name, pool in whole.pools.items() if name.startswith("genre ")]
    item = reference.names.index("support_item")

    def cells(pool: Pool) -> tuple[AnyArray, AnyArray]:
        bins = bins_of(pool.scores, reference.edges)
        return bins[0], bins[item] * _GROUPS // BINS

    one = reference.squared_error
    extra, count = np.zeros((2, BINS, _GROUPS))
    np.add.at(extra, cells(known), known.squared - one[cells(known)[0]])
    np.add.at(count, cells(known), 1)
    both = one[:, None] + extra / (count + _SHRINK)
    unseen = cold.squared.mean()
    told = {
        "by spread (the monitor's)": [one[cells(p)[0]].mean() for p in slices],
        "by spread and support_item": [both[cells(p)].mean() for p in slices],
        "new items: as with ids hidden": [np.where(p.new[1], unseen, one[cells(p)[0]]).mean() for p in slices],
        "assuming the ID value": [reference.rmse**2 for _ in slices],
    }
    true = np.sqrt([pool.squared.mean() for pool in slices])
    return {name: np.abs(np.sqrt(values) - true) for name, values in told.items()}


def tried(runs: Runs, cache: Path) -> Any:
    """All of it."""
    return {"heads": heads(runs, cache), "content": content(runs, cache), "errors": errors(runs, cache)}
