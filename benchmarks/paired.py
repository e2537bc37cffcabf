"""Two models on the same ratings: the difference of their errors, with an interval that knows that items differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from levi_serve.bundle import BoolArray, DoubleArray, Int64Array

RESAMPLES = 2000


@dataclass(frozen=True)
class Errors:
    """One model's squared errors under one seed."""

    item: Int64Array  # [r]
    squared: DoubleArray  # [r]
    shifted: BoolArray  # [r]

    def rmse(self, *, ood: bool) -> float:
        """RMSE of the one part."""
        return float(np.sqrt(self.squared[self.shifted == ood].mean()))

    def sums(self, items: int, *, ood: bool) -> tuple[DoubleArray, DoubleArray]:
        """Each item's squared errors and ratings in one part: [items] and [items]."""
        here = self.shifted == ood
        item = self.item[here]
        total = np.bincount(item, self.squared[here], items).astype(np.float64)
        return total, np.bincount(item, minlength=items).astype(np.float64)


def difference(ours: Sequence[Errors], theirs: Sequence[Errors], ood: bool) -> dict[str, float]:
    """RMSE of `ours` minus RMSE of `theirs`, each averaged over seeds; 95 % bootstrap interval over resampled items.

    A resample draws whole items, the same ones for both models and all seeds.
    """
    items = 1 + max(int(e.item.max()) for e in ours)
    totals = [np.array([e.sums(items, ood=ood)[0] for e in side]) for side in (ours, theirs)]  # [seeds, items]
    count = np.array([e.sums(items, ood=ood)[1] for e in ours])
    present = np.flatnonzero(count.sum(0))
    rng = np.random.default_rng(0)
    drawn = np.empty(RESAMPLES)
    for k in range(RESAMPLES):
        times = np.bincount(rng.choice(present, len(present)), minlength=items)
        mine, other = (np.sqrt((total @ times) / (count @ times)).mean() for total in totals)
        drawn[k] = mine - other
    mine, other = (np.sqrt(total.sum(1) / count.sum(1)).mean() for total in totals)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return {"difference": float(mine - other), "low": float(low), "high": float(high)}
