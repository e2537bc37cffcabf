"""Per request: how well scores tell shifted ratings, and broken heads, from what is in distribution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from benchmarks.monitor.pools import Fitted, Pool, Runs, broken_layer, hidden_traffic, traffic, without_items
from levi_serve.bundle import AnyArray, DoubleArray
from levi_serve.bundle.reference import Reference
from levi_serve.bundle.scores import quantile
from training.run import Run

_COMBINED = ("contrast", "support_item")


def auroc(runs: Runs, cache: Path) -> Any:
    """Per request: how well each score tells shifted ratings from in-distribution ones."""
    return {text: _mean([_auroc(one, cache) for one in of]) for text, of in runs.items()}


def _auroc(run: Run, cache: Path) -> dict[str, dict[str, float]]:
    fitted, parts, seed = Fitted.of(run), run.split, run.record.options.seed
    whole, hidden = traffic(run, None, cache), hidden_traffic(run)
    other, new = without_items(run, cache)
    blind = other.hidden()
    reference = blind.reference(parts.calibration, seed)
    fresh, ood = blind.pool(new, reference), blind.pool(parts.ood, reference)
    inside = whole.pools["id"]
    found = {
        "ids as they are, ID against OOD genres": separation(whole.reference, inside, whole.pools["OOD genres"]),
        "ids hidden, ID against OOD genres": separation(
            hidden.reference, hidden.pools["id"], hidden.pools["OOD genres"]
        ),
        "ids hidden, new items of ID genres against OOD genres": separation(reference, fresh, ood),
    }
    seen = other.reference(parts.calibration, seed)
    found["control: ID against new items of ID genres"] = separation(
        seen, other.pool(parts.test, seen), other.pool(new, seen)
    )
    for name in ("cold users", "cold movies", "corrupt text"):
        found[f"ID against {name}"] = separation(whole.reference, inside, whole.pools[name])
    layers = [
        separation(whole.reference, inside, broken_layer(fitted, layer, seed).pool(parts.test, whole.reference))
        for layer in range(fitted.model.shape.layers)
    ]
    found["one layer of other items"] = _mean(layers)
    for name, change in BROKEN.items():
        broken = [
            separation(whole.reference, inside, fitted.pool(parts.test, whole.reference, change(head)))
            for head in range(fitted.model.shape.layers)
        ]
        found[f"one head {name}"] = _mean(broken)
        found[f"one head {name}, worst head"] = {k: min(b[k] for b in broken) for k in broken[0]}
    return found


def _changed(head: int, how: Any) -> Any:
    def change(heads: AnyArray) -> AnyArray:
        out = heads.copy()
        out[:, head] = how(heads[:, head])
        return out

    return change


BROKEN: dict[str, Callable[[int], Callable[[AnyArray], AnyArray]]] = {
    "constant": lambda head: _changed(head, lambda x: np.full_like(x, x.mean())),
    "shuffled": lambda head: _changed(head, lambda x: np.random.default_rng(0).permutation(x)),
    "off by 0.5": lambda head: _changed(head, lambda x: x + np.float32(0.5)),
}


def separation(reference: Reference, inside: Pool, outside: Pool) -> dict[str, float]:
    """AUROC of each score; two-sided ones by their distance from the middle; and of the combination."""
    found = {}
    for column, name in enumerate(reference.names):
        a, b = inside.scores[:, column], outside.scores[:, column]
        if name in {"level", "depth_gap"}:
            middle = np.median(reference.tables[name])
            a, b = np.abs(a - middle), np.abs(b - middle)
        found[name] = area(a, b)
    found["combined"] = area(_combined(reference, inside), _combined(reference, outside))
    found["new item"] = area(inside.new[1], outside.new[1])
    return found


def _combined(reference: Reference, pool: Pool) -> DoubleArray:
    """Fisher's combination of two calibrated quantiles; nothing in it is fitted."""
    out = np.zeros(len(pool))
    for name in _COMBINED:
        q = quantile(reference.tables[name], pool.scores[:, reference.names.index(name)])
        out -= np.log((1 - q).clip(0.5 / reference.size))
    return out


def area(inside: AnyArray, outside: AnyArray) -> float:
    """AUROC of a score of which more means stranger."""
    truth = np.r_[np.zeros(len(inside)), np.ones(len(outside))]
    return float(roc_auc_score(truth, np.r_[inside, outside]))


def _mean(parts: Sequence[Any]) -> Any:
    """Mean of numbers at the same place of nested dicts."""
    if isinstance(parts[0], dict):
        return {key: _mean([part[key] for part in parts]) for key in parts[0]}
    return float(np.mean(parts))
