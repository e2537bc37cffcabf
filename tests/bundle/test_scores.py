"""levi_serve.bundle.scores: spread and quantiles by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from levi_serve.bundle.scores import MAX_POINTS, quantile, spread, table


def test_spread() -> None:
    """Spread is the population standard deviation of the heads, per rating."""
    heads = np.array([[1, 3], [2, 2], [0, 4]], np.float32)
    assert spread(heads).tolist() == [1, 0, 2]
    assert spread(np.array([1, 2, 3, 4], np.float32)) == pytest.approx(np.sqrt(1.25))
    assert spread(np.ones((2, 3, 1), np.float32)).tolist() == [[0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("value", "share"), [(0.5, 0), (1, 0.125), (1.5, 0.25), (2, 0.5), (3, 0.75), (5, 0.875), (9, 1)]
)
def test_mid_quantile(value: float, share: float) -> None:
    """The quantile counts what lies below and half of what is equal: of 1, 2, 2, 5, half lie at or below 2."""
    reference = np.array([1, 2, 2, 5], np.float32)
    assert quantile(reference, np.array([value], np.float32)).tolist() == [share]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_quantiles_of_the_reference_average_to_a_half(values: list[int]) -> None:
    """With ties or without, the reference's own quantiles average to one half."""
    reference = table(np.array(values, np.float32))
    assert quantile(reference, reference).mean() == pytest.approx(0.5, abs=1e-6)


def test_table_is_sorted() -> None:
    """A short reference is kept whole, sorted."""
    assert table(np.array([3, 1, 2, 1], np.float32)).tolist() == [1, 1, 2, 3]


def test_table_is_thinned() -> None:
    """A long reference keeps its ends, its middle and its quantiles in MAX_POINTS points."""
    rng = np.random.default_rng(0)
    values = rng.permutation(3 * (MAX_POINTS - 1) + 1).astype(np.float32)  # 0 to 30000: every third is a point
    thinned = table(values)
    assert thinned.tolist() == list(range(0, 3 * MAX_POINTS - 2, 3))
    assert thinned.dtype == np.float32
    assert quantile(thinned, np.array([7500.0])) == pytest.approx(0.25, abs=1e-4)
