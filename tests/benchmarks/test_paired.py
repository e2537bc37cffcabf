"""benchmarks.paired: the difference of two models by hand, and an interval that items, not ratings, decide."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.paired import Errors, difference


def errors(squared: list[float], items: list[int], shifted: list[bool]) -> Errors:
    return Errors(np.array(items), np.array(squared, dtype=float), np.array(shifted))


def test_by_hand() -> None:
    """One seed, ID and OOD apart: √((1+4+4)/3) and √9 against √1 and √16."""
    ours = errors([1, 4, 4, 9], [0, 0, 1, 2], [False, False, False, True])
    theirs = errors([1, 1, 1, 16], [0, 0, 1, 2], [False, False, False, True])
    assert ours.rmse(ood=True) == 3
    assert difference([ours], [theirs], ood=False)["difference"] == pytest.approx(3**0.5 - 1)
    assert difference([ours], [theirs], ood=True) == {"difference": -1, "low": -1, "high": -1}


def test_seeds_count_alike() -> None:
    """The difference is the mean of the seeds' differences, however many ratings each has."""
    one, two = errors([4], [0], [True]), errors([9] * 5, [0] * 5, [True] * 5)
    base = [errors([1], [0], [True]), errors([1] * 5, [0] * 5, [True] * 5)]
    assert difference([one, two], base, ood=True)["difference"] == pytest.approx((1 + 2) / 2)


def test_the_interval_is_over_items() -> None:
    """Many ratings of two unlike items leave a wide interval; as many items make it narrow."""
    rng = np.random.default_rng(0)
    widths = []
    for items in (2, 500):
        item = rng.integers(0, items, 5000)
        offset = np.where(item % 2 == 0, 2.0, 0.5)
        ours = errors(offset.tolist(), item.tolist(), [True] * 5000)
        theirs = errors([1.0] * 5000, item.tolist(), [True] * 5000)
        found = difference([ours], [theirs], ood=True)
        assert found["low"] <= found["difference"] <= found["high"]
        widths.append(found["high"] - found["low"])
    assert widths[0] > 5 * widths[1]
