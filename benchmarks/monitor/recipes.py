"""What in a recipe decides whether heads tell a movie of another kind: its price in RMSE stands beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.monitor.pools import Fitted, Runs, refitted
from benchmarks.monitor.separation import separation
from levi_serve.bundle import Int64Array
from training.model import SIZES, Size
from training.run import Run

CHANGES: Mapping[str, Mapping[str, Any]] = {
    "views as they are": {"unit_views": False},
    "no view dropout": {"view_dropout": 0.0},
    "views as they are, no view dropout": {"unit_views": False, "view_dropout": 0.0},
}
"""Of the size `ref`."""


def recipes(runs: Runs, cache: Path) -> Any:
    """RMSE, and AUROC of scores with ids hidden, ID against OOD genres; means over seeds."""
    found: dict[str, list[dict[str, float]]] = {}
    for text, of in runs.items():
        for run in of:
            found.setdefault(text, []).append(_told(Fitted.of(run), run))
            if run.record.options.size == "ref":
                for name, change in CHANGES.items():
                    found.setdefault(f"{text}: {name}", []).append(_told(_changed(run, cache, change), run))
    return {name: {k: float(np.mean([one[k] for one in each])) for k in each[0]} for name, each in found.items()}


def _changed(run: Run, cache: Path, change: Mapping[str, Any]) -> Fitted:
    """The run's recipe once more with another size."""
    reference = SIZES["ref"]
    assert isinstance(reference, Size)
    return refitted(run, cache, reference.model_copy(update=change), run.split.train, run.split.selection)


def _told(fitted: Fitted, run: Run) -> dict[str, float]:
    parts, hidden = run.split, fitted.hidden()
    reference = hidden.reference(parts.calibration, run.record.options.seed)
    told = separation(reference, hidden.pool(parts.test, reference), hidden.pool(parts.ood, reference))
    scores = {name: told[name] for name in ("spread", "contrast", "support_item", "combined")}
    return {"ID": _rmse(fitted, parts.test), "OOD": _rmse(fitted, parts.ood), **scores}


def _rmse(fitted: Fitted, rows: Int64Array) -> float:
    off = fitted.rating(fitted.heads(rows)).astype(np.float64) - fitted.dataset.ratings.value[rows]
    return float(np.sqrt(np.square(off).mean()))
