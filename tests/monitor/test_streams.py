"""levi_serve.monitor.streams: the bets by hand, and that they promise what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from levi_serve.bundle.reference import Reference
from levi_serve.monitor.streams import BETS, BLOCK, Streams, _bound, _chernoff, advance, pooled, threshold, two_valued

from .conftest import World


def test_names(reference: Reference) -> None:
    """Six scores are tested three ways each, unseen ids one way; without them, 18 streams are left."""
    streams = Streams.of(reference)
    assert len(streams.streams) == 6 * 3 + 2
    assert [s.name for s in streams.streams[:3]] == ["spread_mean", "spread_upper", "spread_lower"]
    assert [s.name for s in streams.streams[-2:]] == ["new_user_mean", "new_item_mean"]
    assert len(Streams.of(reference, new=False).streams) == 18


def test_growth_by_hand(reference: Reference) -> None:
    """Two predictions in the last bin and one in the first bring the product of their factors."""
    streams = Streams.of(reference)
    counts = np.zeros((8, 20), np.int64)
    counts[0, 19], counts[0, 0] = 2, 1
    m = streams.levels[0]
    bets = BETS / m
    expected = 2 * np.log(1 + bets * (0.975 - m)) + np.log(1 + bets * (0.025 - m))
    np.testing.assert_allclose(streams.growth(counts)[0], expected)
    m = streams.levels[1]  # the upper tail pays 1 in the last bin and 0 elsewhere
    expected = 2 * np.log(1 + BETS / m * (1 - m)) + np.log(1 - BETS)
    np.testing.assert_allclose(streams.growth(counts)[1], expected)


def test_blocks_add_up(reference: Reference) -> None:
    """The factors of two blocks are the factors of their sum: workers are merged by adding counts."""
    streams = Streams.of(reference)
    a, b = np.random.default_rng(0).integers(0, 9, (2, 8, 20))
    np.testing.assert_allclose(streams.growth(a) + streams.growth(b), streams.growth(a + b), rtol=1e-12)


def test_no_factor_exceeds_one_on_average_in_distribution(reference: Reference) -> None:
    """Under both weightings of the calibration part, with one user of a block anywhere, every bet loses on average."""
    streams = Streams.of(reference)
    for weights, new in zip(reference.weights, reference.new, strict=True):
        rows = np.concatenate([weights, two_valued(new)])[streams.rows]  # [T, BINS]
        mean = np.einsum("tb,tbk->tk", rows, np.exp(streams.factors))
        worst = np.exp(streams.factors).max(axis=1)
        assert ((BLOCK - 1) / BLOCK * mean + worst / BLOCK <= 1 + 1e-9).all()


def test_advance_by_hand() -> None:
    """M ← (M + 1) · L from nothing: 2, then (2 + 1) · 4."""
    evidence = advance(np.array([-np.inf]), np.log([2.0]))
    assert np.exp(evidence).tolist() == pytest.approx([2])
    assert np.exp(advance(evidence, np.log([4.0]))).tolist() == pytest.approx([12])


def test_pooled() -> None:
    """The logarithm of a mean, far beyond what a float's exponential holds, and of nothing."""
    assert pooled(np.log([1.0, 3.0])) == pytest.approx(math.log(2))
    assert pooled(np.array([2000.0, 2000.0])) == pytest.approx(2000)
    assert pooled(np.array([-np.inf, -np.inf])) == -np.inf
    assert pooled(np.array([-np.inf, 0.0])) == pytest.approx(math.log(0.5))


@pytest.mark.parametrize(("days", "rate", "blocks"), [(30, 1000, 30 * 86_400 * 1000 / 64), (1e-9, 1e-9, 1)])
def test_threshold(days: float, rate: float, blocks: float) -> None:
    """As many blocks as predictions fill them in the time; never less than one."""
    assert math.exp(threshold(days, rate)) == pytest.approx(blocks)


def test_chernoff() -> None:
    """The bound is where the divergence is used up: for no event among n it is 1 − e^(−divergence)."""
    assert _chernoff(0.0, 0.01) == pytest.approx(1 - math.exp(-0.01))
    m = _chernoff(0.3, 0.02)
    assert 0.3 * math.log(0.3 / m) + 0.7 * math.log(0.7 / (1 - m)) == pytest.approx(0.02)
    assert _chernoff(1.0, 0.1) == 1


def test_bounds_hold_for_nearly_all_samples() -> None:
    """Of 2,000 samples, as good as none has a bound below the true mean; and a bound is not far off."""
    rng, payoff = np.random.default_rng(0), (np.arange(20) + 0.5) / 20
    bounds = [_bound(rng.multinomial(400, np.full(20, 1 / 20)) / 400, payoff, 400, 20) for _ in range(2000)]
    assert np.mean(np.array(bounds) < 0.5) <= 0.05 / 20
    assert 0.5 < np.mean(bounds) < 0.6


def test_a_small_sample_is_trusted_less() -> None:
    """The fewer calibration ratings, the higher every level."""
    small, large = (Streams.of(World().reference(size)).levels for size in (200, 4000))
    assert (small > large).all()
