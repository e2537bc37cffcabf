"""The monitor's scores of a prediction, in numpy: calibration and the server compute them with the same code.

spread      how much the heads disagree: their standard deviation
contrast    how unusual the way is in which they disagree: whitened distance of the ratings with their mean removed
depth_gap   mean of the late heads less mean of the early ones, which differ where features stop to transfer
level       mean of the heads: a shift that moves all of them together leaves the three above as they are
support_*   how far the user's, and the item's, views lie from the fitted ones (entity views)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from levi_serve.bundle import AnyArray, FloatArray, Int64Array

HEAD_SCORES = ("spread", "contrast", "depth_gap", "level")
"""In the order of their columns; SUPPORT follows where rows tell it."""
SUPPORT = ("support_user", "support_item")
ONE_SIDED = ("spread", "contrast", *SUPPORT)
"""Scores of which more means stranger: `ood_score` is the quantile of one of them."""

BINS = 20
"""Quantile bins of a score: each holds 5 % of what is in distribution, ties apart."""
MAX_POINTS = 10_001
"""A calibration table keeps at most this many order statistics."""
_FLOOR = 1e-6
"""Share of the largest variance below which heads count as moving together."""


def spread(head_ratings: FloatArray) -> FloatArray:
    """Disagreement of the heads: population standard deviation over the last axis of [..., n] unclipped ratings."""
    return np.asarray(head_ratings.std(axis=-1), dtype=np.float32)


@dataclass(frozen=True)
class Scorer:
    """The scores of one model's predictions: all that is linear in the heads is one product."""

    linear: FloatArray
    """[n, n + 1]: n − 1 whitened contrasts, the depth gap, the level."""
    center: FloatArray
    """[n − 1], mean of the whitened contrasts in distribution."""

    @classmethod
    def fitted(cls, heads: FloatArray) -> Scorer:
        """From head ratings [N, n] in distribution."""
        n = heads.shape[1]
        exact = heads.astype(np.float64)
        centering = np.eye(n) - 1 / n
        variance, axes = np.linalg.eigh(np.atleast_2d(np.cov(exact @ centering, rowvar=False)))  # ascending
        variance, axes = variance[1:], axes[:, 1:]  # the first axis is that of the mean, which was removed
        whiten = centering @ axes / np.sqrt(np.maximum(variance, _FLOOR * variance.max(initial=0) + 1e-12))
        half = n // 2
        late = np.zeros(n)
        if half:
            late[-half:], late[:half] = 1 / half, -1 / half
        linear = np.column_stack([whiten, late, np.full(n, 1 / n)])
        return cls(linear.astype(np.float32), (exact.mean(0) @ whiten).astype(np.float32))

    def __call__(self, heads: FloatArray, support: tuple[AnyArray, AnyArray] | None = None) -> FloatArray:
        """Scores [B, S] of head ratings [B, n] and, where rows tell it, the `support` [B] or [1] of both sides."""
        n = heads.shape[1]
        found = np.empty((len(heads), len(names(support is not None))), np.float32)
        linear = heads @ self.linear
        contrasts = linear[:, : n - 1] - self.center
        level = linear[:, n]
        off = heads - level[:, None]
        found[:, 0] = np.einsum("bn,bn->b", off, off) / np.float32(n)
        found[:, 1] = np.einsum("bk,bk->b", contrasts, contrasts)
        np.sqrt(found[:, :2], out=found[:, :2])
        found[:, 2] = linear[:, n - 1]
        found[:, 3] = level
        if support is not None:
            found[:, 4], found[:, 5] = support
        return found


def names(support: bool) -> tuple[str, ...]:
    """The scores in the order of their columns."""
    return (*HEAD_SCORES, *SUPPORT) if support else HEAD_SCORES


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


def bin_edges(reference: FloatArray) -> FloatArray:
    """The BINS − 1 values at which the next bin begins, such that the bin of a value is ⌊BINS · its mid-quantile⌋.

    The mid-quantile is a step function with a step at each value of the reference and one just after it.
    """
    steps = np.unique(reference)
    steps = np.sort(np.concatenate([steps, np.nextafter(steps, np.float32(np.inf))]))
    bins = np.floor(BINS * (quantile(reference, steps) + 1e-6))  # what is a whole number must not round to just below
    first = np.searchsorted(bins, np.arange(1, BINS), side="left")
    return np.append(steps, np.float32(np.inf))[first].astype(np.float32)


def bins_of(values: FloatArray, edges: FloatArray) -> Int64Array:
    """The bin [S, B] of each of B rows of scores [B, S]; NaN is beyond everything."""
    columns = zip(edges, np.ascontiguousarray(values.T), strict=True)
    return np.stack([begin.searchsorted(column, side="right") for begin, column in columns])
