"""The monitor's scores of a prediction, in numpy: calibration and the server compute them with the same code."""

from __future__ import annotations

import numpy as np

from levi_serve.bundle import AnyArray, FloatArray

SCORE = "spread"
"""The score that `ood_score` reports."""

MAX_POINTS = 10_001
"""A calibration table keeps at most this many order statistics."""


def spread(head_ratings: FloatArray) -> FloatArray:
    """Disagreement of the heads: population standard deviation over the last axis of [..., n] unclipped ratings."""
    return np.asarray(head_ratings.std(axis=-1), dtype=np.float32)


def table(values: FloatArray) -> FloatArray:
    """The ID reference of a score: its sorted values, thinned evenly to at most MAX_POINTS quantiles."""
    ordered = np.sort(values).astype(np.float32)
    if len(ordered) <= MAX_POINTS:
        return ordered
    return np.quantile(ordered, np.linspace(0.0, 1.0, MAX_POINTS)).astype(np.float32)


def quantile(reference: FloatArray, values: AnyArray) -> FloatArray:
    """The share of the ID reference below each value, 0 to 1; ties count half (mid-quantile)."""
    below = np.searchsorted(reference, values, side="left")
    upto = np.searchsorted(reference, values, side="right")
    return ((below + upto) / (2.0 * len(reference))).astype(np.float32)
