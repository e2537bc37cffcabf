"""What a run is worth: errors in and out of distribution, with item-clustered intervals, beside reference rows."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from levi_serve.bundle import Int64Array
from levi_serve.bundle.schema import Frozen
from levi_serve.bundle.scores import spread
from training.baselines import Predictions, ridge, user_mean
from training.checkpoint import write_json
from training.fit import predict
from training.run import Run

METRICS = "metrics.json"
RESAMPLES = 2000
"""Bootstrap resamples of the items behind each interval."""


class Error(Frozen):
    """Errors of clipped predictions on some ratings."""

    ratings: int
    items: int
    rmse: float
    low: float
    """2.5 % quantile of the RMSE over resampled items: ratings of one item are not independent."""
    high: float
    mae: float
    accuracy: float | None = None
    """Share of ratings whose class is right, where the task is binary."""


class Row(Frozen):
    """One model's errors on every part."""

    name: str
    id: Error
    ood: Error | None
    slices: dict[str, Error]

    @property
    def slice_mean(self) -> float | None:
        """Mean RMSE over the slices, each counting once."""
        return float(np.mean([e.rmse for e in self.slices.values()])) if self.slices else None


class Evaluation(Frozen):
    """metrics.json."""

    rows: list[Row]
    """LEVI (or the scratch tower), then the reference rows."""
    heads_id: list[float]
    """RMSE of each head alone on ID test, early to late layer."""
    heads_ood: list[float]
    auroc_spread: float | None
    """How well the heads' disagreement alone tells OOD ratings from ID ones; None with one head or without a shift."""
    run: str
    seed: int
    evaluated: str


def evaluate(run: Run) -> Evaluation:
    """Evaluate on ID test and OOD, and write metrics.json into the run's folder."""
    parts, options = run.split, run.record.options
    rows = np.concatenate([parts.test, parts.ood])  # [r], ID test first
    tested = len(parts.test)
    heads = predict(run.model, run.prepared.features, torch.from_numpy(rows).to(run.model.center.device), run.ids)
    by_ridge, alpha = ridge(run.dataset, parts.train, rows, options.seed)
    predictions = {
        "scratch tower alone" if options.views == "none" else f"LEVI, {options.views} views": _numpy(
            run.model.rating(heads)
        ),
        "shrunk user mean": user_mean(run.dataset, parts.train, rows),
        f"ridge, user × content, α={alpha:g}": by_ridge,
    }
    shifted = np.arange(len(rows)) >= tested
    heads = heads.cpu()
    telling = shifted.any() and heads.shape[1] > 1
    evaluation = Evaluation(
        rows=[_row(run, name, rows, predicted) for name, predicted in predictions.items()],
        heads_id=[_rmse(run, parts.test, _numpy(head)) for head in heads[:tested].T],
        heads_ood=[_rmse(run, parts.ood, _numpy(head)) for head in heads[tested:].T] if shifted.any() else [],
        auroc_spread=float(roc_auc_score(shifted, spread(heads.numpy()))) if telling else None,
        run=str(run.folder),
        seed=options.seed,
        evaluated=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    write_json(run.folder / METRICS, evaluation.model_dump(mode="json"))
    return evaluation


def _row(run: Run, name: str, rows: Int64Array, predicted: Predictions) -> Row:
    """One model's errors from its predictions for `rows`, ID test first and then OOD."""
    parts = run.split
    place = np.full(len(run.dataset.ratings), -1, dtype=np.int64)
    place[rows] = np.arange(len(rows))
    score = {
        name: _error(run, part, predicted[place[part]])
        for name, part in {"id": parts.test, "ood": parts.ood, **parts.slices}.items()
        if len(part)
    }
    return Row(name=name, id=score.pop("id"), ood=score.pop("ood", None), slices=score)


def _error(run: Run, rows: Int64Array, predicted: Predictions) -> Error:
    error = _clipped_error(run, rows, predicted)
    low, high = item_interval(run.dataset.ratings.item[rows].astype(np.int64), np.square(error))
    return Error(
        ratings=len(rows),
        items=len(np.unique(run.dataset.ratings.item[rows])),
        rmse=float(np.sqrt(np.square(error).mean())),
        low=low,
        high=high,
        mae=float(np.abs(error).mean()),
        accuracy=float((np.abs(error) < 0.5).mean()) if run.dataset.binary else None,
    )


def _rmse(run: Run, rows: Int64Array, predicted: Predictions) -> float:
    return float(np.sqrt(np.square(_clipped_error(run, rows, predicted)).mean()))


def _clipped_error(run: Run, rows: Int64Array, predicted: Predictions) -> Predictions:
    error: Predictions = predicted.clip(*run.bounds) - run.dataset.ratings.value[rows].astype(np.float64)
    return error


def item_interval(item: Int64Array, squared: Predictions) -> tuple[float, float]:
    """95 % bootstrap interval of the RMSE, resampling whole items, since ratings of one item are not independent.

    Args:
        item: [r] item of each rating.
        squared: [r] squared errors.
    """
    _, cluster = np.unique(item, return_inverse=True)
    total = np.bincount(cluster, squared)  # [items]
    count = np.bincount(cluster)
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(RESAMPLES):
        times = np.bincount(rng.integers(len(count), size=len(count)), minlength=len(count))
        drawn.append((times @ total) / (times @ count))
    low, high = np.sqrt(np.quantile(drawn, (0.025, 0.975)))
    return float(low), float(high)


def _numpy(tensor: Tensor) -> Predictions:
    return tensor.cpu().numpy().astype(np.float64)
