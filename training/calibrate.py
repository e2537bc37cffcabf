"""The monitor's reference, measured on the split's calibration part, which nothing else reads."""

from __future__ import annotations

import numpy as np
import torch

from levi_serve.bundle import AnyArray, FloatArray
from levi_serve.bundle.reference import Reference, measure
from levi_serve.bundle.rows import STORED
from training.chain import Chain
from training.fit import predict
from training.run import Run

SCORE = "spread"
"""The score that `ood_score` reports."""


def calibrate(run: Run, exported: Chain, tables: tuple[FloatArray, FloatArray], digest: str) -> Reference:
    """Measure the exported graph, whose SHA-256 is `digest`, over both sides' rows [N + 1, W] as they are stored."""
    part, ratings = run.split.calibration, run.dataset.ratings
    rows = torch.from_numpy(part)
    support = None
    if run.model.shape.views == "entity":
        sides = [table.astype(STORED)[column[part]] for table, column in zip(tables, _columns(run), strict=True)]
        heads = exported.join(*sides)
        support = (sides[0][:, -1], sides[1][:, -1])
    else:  # a backbone pass per pair: the views of the fit are the same
        heads = predict(run.model, run.prepared.features, rows, run.ids).numpy()
    weights = run.model.weights.numpy()
    trained = [(ids > 0).numpy()[column[part]] for ids, column in zip(run.ids, _columns(run), strict=True)]
    return measure(
        heads,
        support,
        (heads @ weights).clip(*run.bounds),
        ratings.value[part].astype(np.float64),
        ratings.user[part],
        (trained[0], trained[1]),
        run.record.options.seed,
        digest,
    )


def _columns(run: Run) -> tuple[AnyArray, AnyArray]:
    return run.dataset.ratings.user, run.dataset.ratings.item
