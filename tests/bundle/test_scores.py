"""levi_serve.bundle.scores: scores, quantiles and bins by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from levi_serve.bundle.scores import BINS, MAX_POINTS, Scorer, bin_edges, bins_of, names, quantile, spread, table


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


def test_five_scores_by_hand() -> None:
    """Four heads: spread, the late pair less the early pair, the mean, and both supports."""
    heads = np.random.default_rng(0).normal(3, 1, (200, 4)).astype(np.float32)
    scorer = Scorer.fitted(heads)
    given = np.array([[1, 2, 4, 5], [3, 3, 3, 3]], np.float32)
    found = scorer(given, (np.array([1, 2], np.float32), np.array([7], np.float32)))
    assert names(support=True) == ("spread", "contrast", "depth_gap", "level", "support_user", "support_item")
    np.testing.assert_allclose(found[:, 0], [np.sqrt(2.5), 0], atol=1e-5)
    np.testing.assert_allclose(found[:, 2], [3, 0], atol=1e-5)
    np.testing.assert_allclose(found[:, 3], [3, 3], atol=1e-5)
    assert found[:, 4:].tolist() == [[1, 7], [2, 7]]
    assert scorer(given).shape == (2, 4)


def test_contrast_is_the_mahalanobis_distance() -> None:
    """Contrast is the distance of the heads without their mean, in units of their covariance in distribution."""
    rng = np.random.default_rng(0)
    heads = (rng.normal(3, 1, (500, 1)) + rng.normal(size=(500, 4)) @ rng.normal(size=(4, 4))).astype(np.float32)
    off = heads.astype(np.float64) - heads.mean(1, keepdims=True)
    away = off - off.mean(0)
    expected = np.sqrt(np.einsum("bn,nm,bm->b", away, np.linalg.pinv(np.cov(off, rowvar=False), rcond=1e-6), away))
    np.testing.assert_allclose(Scorer.fitted(heads)(heads)[:, 1], expected, rtol=2e-3)


def test_a_shift_of_all_heads() -> None:
    """A number added to all heads moves the level and nothing else."""
    heads = np.random.default_rng(0).normal(3, 1, (200, 5)).astype(np.float32)
    scorer = Scorer.fitted(heads)
    np.testing.assert_allclose(scorer(heads + 2) - scorer(heads), np.tile([0, 0, 0, 2.0], (200, 1)), atol=1e-4)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_or_equal_heads(n: int) -> None:
    """One head disagrees with nobody, and heads that never differed give finite scores, not NaN."""
    heads = np.repeat(np.random.default_rng(0).normal(3, 1, (50, 1)), n, 1).astype(np.float32)
    found = Scorer.fitted(heads)(heads)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[:, [0, 2]], 0, atol=1e-5)
    assert (found[:, 1] < 1).all()


@given(st.lists(st.integers(0, 6), min_size=1, max_size=80), st.lists(st.integers(-1, 7), min_size=1, max_size=9))
def test_bins_are_those_of_mid_quantiles(values: list[int], asked: list[int]) -> None:
    """Whatever the ties, the bin of a value is that of its mid-quantile."""
    reference = table(np.array(values, np.float32))
    scores = np.array(asked, np.float32)[:, None]
    expected = np.floor(BINS * (quantile(reference, scores[:, 0]) + 1e-6)).astype(int).clip(0, BINS - 1)
    assert bins_of(scores, bin_edges(reference)[None]).tolist() == [expected.tolist()]


def test_bins_are_even_and_nan_is_beyond() -> None:
    """Each bin holds a twentieth of a reference without ties; NaN is in the last one."""
    reference = table(np.arange(1000, dtype=np.float32))
    assert np.bincount(bins_of(reference[:, None], bin_edges(reference)[None])[0]).tolist() == [50] * BINS
    assert bins_of(np.array([[np.nan]], np.float32), bin_edges(reference)[None]).tolist() == [[BINS - 1]]
