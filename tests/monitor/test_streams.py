"""levi_serve.monitor.streams: the bets by hand, and that they promise what they say."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from levi_serve.bundle.reference import Reference
from levi_serve.bundle.scores import BINS
from levi_serve.monitor.streams import (
    BETS,
    BLOCK,
    ROUND,
    Streams,
    _bounds,
    advance,
    at_end,
    pooled,
    threshold,
    two_valued,
)
from levi_serve.monitor.watch import block_counts

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
    grown = streams.growth(counts[..., None])[..., 0]
    np.testing.assert_allclose(grown[0], expected, atol=1e-8)
    m = streams.levels[1]  # the upper tail pays 1 in the last bin and 0 elsewhere
    expected = 2 * np.log(1 + BETS / m * (1 - m)) + np.log(1 - BETS)
    np.testing.assert_allclose(grown[1], expected, atol=1e-8)


def test_blocks_add_up(reference: Reference) -> None:
    """Many blocks grow by the very bits of their sum: workers are merged by adding counts."""
    streams = Streams.of(reference)
    blocks = np.random.default_rng(0).integers(0, 9, (8, 20, 50))
    assert (streams.growth(blocks).sum(-1) == streams.growth(blocks.sum(-1, keepdims=True))[..., 0]).all()


@pytest.mark.parametrize("new", [True, False])
@settings(max_examples=20)
@given(data=st.data())
def test_growth_is_the_sum_of_factors(reference: Reference, new: bool, data: st.DataObject) -> None:
    """To the last bit what adding each stream's factor of each prediction's bin, one after the other, gives."""
    streams = Streams.of(reference, new)
    rows, blocks = len(streams.scores), data.draw(st.integers(1, 3))
    bins = data.draw(st.lists(st.integers(0, BINS - 1), min_size=rows * blocks * BLOCK, max_size=rows * blocks * BLOCK))
    placed = np.array(bins, np.uint8).reshape(rows, -1)
    expected = np.zeros((*streams.shape, blocks))
    for stream, row in enumerate(streams.rows):
        for place, bin_ in enumerate(placed[row]):
            expected[stream, :, place // BLOCK] += streams.factors[stream, :, bin_]
    np.testing.assert_array_equal(streams.growth(block_counts(placed)), expected)


def test_growth_of_some_streams(reference: Reference) -> None:
    """Scores may have any number of streams, or none."""
    whole = Streams.of(reference)
    kept = np.array([stream.kind != "mean" or stream.score == "level" for stream in whole.streams])
    some = Streams(
        whole.scores,
        tuple(stream for stream, keep in zip(whole.streams, kept, strict=True) if keep),
        *(values[kept] for values in (whole.rows, whole.shares, whole.levels, whole.factors)),
    )
    blocks = np.random.default_rng(0).integers(0, 9, (8, 20, 5))
    np.testing.assert_array_equal(some.growth(blocks), whole.growth(blocks)[kept])


def test_no_factor_exceeds_one_on_average_in_distribution(reference: Reference) -> None:
    """Under both weightings of the calibration part, with one user of a round anywhere, every bet loses on average."""
    streams = Streams.of(reference)
    for weights, new in zip(reference.weights, reference.new, strict=True):
        rows = np.concatenate([weights, two_valued(new)])[streams.rows]  # [T, BINS]
        mean = np.einsum("tb,tkb->tk", rows, np.exp(streams.factors))
        worst = np.exp(streams.factors).max(axis=-1)
        assert ((ROUND - 1) / ROUND * mean + worst / ROUND <= 1 + 1e-9).all()


def test_advance_by_hand() -> None:
    """M ← max(M, 1) · L from nothing: 2, 8, 1/2, then from 1 again 1/4, 4."""
    growth = np.log2([2.0, 4.0, 1 / 16, 1 / 4, 4.0])
    path = advance(np.array(-np.inf), growth.cumsum())
    assert path.tolist() == [1, 3, -1, -2, 2]
    assert advance(path[0], growth[1:].cumsum()).tolist() == [3, -1, -2, 2]


@given(st.data())
def test_however_blocks_are_handed_over(data: st.DataObject) -> None:
    """Whole numbers of grains end with the same bits, one step at a time or several."""
    steps = data.draw(st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=30))
    ends = sorted(data.draw(st.sets(st.integers(1, len(steps)))) | {len(steps)})
    growth = np.array(steps) * 2.0**-30
    evidence, start = np.array(-np.inf), 0
    for end in ends:
        evidence, start = advance(evidence, growth[start:end].cumsum())[-1], end
    alone = -math.inf
    for step in steps:
        alone = max(alone, 0.0) + step * 2.0**-30
    assert evidence.item() == alone


@given(st.data())
def test_at_end(data: st.DataObject) -> None:
    """The same bits as at the end of the whole path, and what happened on the way."""
    grains = st.integers(-(2**40), 2**40)
    steps = np.array(data.draw(st.lists(st.tuples(grains, grains), min_size=1, max_size=20)))
    total = steps.T[None].cumsum(axis=-1) * 2.0**-30  # [1, 2, N]
    before = np.array([[-math.inf, data.draw(grains) * 2.0**-30]])
    path = advance(before, total)
    evidence, anew, highest = at_end(before, total)
    np.testing.assert_array_equal(evidence, path[..., -1])
    np.testing.assert_array_equal(anew, (before <= 0) | (path[..., :-1] <= 0).any(axis=-1))
    assert highest >= path.max()


def test_pooled() -> None:
    """The logarithm of a mean, far beyond what a float's exponential holds, and of nothing."""
    half = np.full(2, 0.5)
    assert pooled(np.log([1.0, 3.0]), half) == pytest.approx(math.log(2))
    assert pooled(np.log([1.0, 3.0]), np.array([0.75, 0.25])) == pytest.approx(math.log(1.5))
    assert pooled(np.array([2000.0, 2000.0]), half) == pytest.approx(2000)
    assert pooled(np.array([-np.inf, -np.inf]), half) == -np.inf
    assert pooled(np.array([-np.inf, 0.0]), half) == pytest.approx(math.log(0.5))


def test_shares(reference: Reference) -> None:
    """Each of eight scores has an eighth of the evidence, in equal parts of its streams."""
    streams = Streams.of(reference)
    assert streams.shares.tolist() == pytest.approx([1 / 24] * 18 + [1 / 8] * 2)
    evidence = np.full(streams.shape, -np.inf)
    evidence[-1] = 7.0
    assert streams.total(evidence) == pytest.approx(7 - math.log(8))


@pytest.mark.parametrize(("days", "rate", "blocks"), [(30, 1000, 30 * 86_400 * 1000 / BLOCK), (1e-9, 1e-9, 1)])
def test_threshold(days: float, rate: float, blocks: float) -> None:
    """As many blocks as predictions fill them in the time; never less than one."""
    assert math.exp(threshold(days, rate)) == pytest.approx(blocks)


def bound(shares: Any, payoff: Any, size: float, risk: float) -> float:
    """Of one stream."""
    return float(_bounds(np.array([shares]), np.array([payoff]), size, np.array([risk]))[0])


MEAN = (np.arange(BINS) + 0.5) / BINS
TOP = (np.arange(BINS) == BINS - 1).astype(np.float64)


def test_bounds_hold_for_nearly_all_samples() -> None:
    """Of 4,000 samples, as many have a bound below the true mean as the risk allows; and a bound is not far off."""
    rng = np.random.default_rng(0)
    samples = rng.multinomial(400, np.full(BINS, 1 / BINS), 4000) / 400
    for payoff, true in ((MEAN, 0.5), (MEAN**4, float((MEAN**4).mean())), (TOP, 0.05)):
        found = _bounds(samples, np.tile(payoff, (4000, 1)), 400, np.full(4000, 0.0025))
        assert np.mean(found < true) <= 0.005
        assert true < found.mean() < true + 4 * payoff.std() / 20


@pytest.mark.parametrize("payoff", [MEAN, MEAN**4, TOP])
@pytest.mark.parametrize("size", [50, 4000])
def test_bounds_are_those_of_dirichlet(payoff: Any, size: int) -> None:
    """The share of drawn means that exceed a bound is its risk."""
    shares = np.random.default_rng(1).multinomial(size, np.full(BINS, 1 / BINS)) / size
    drawn = np.random.default_rng(2).dirichlet(shares * size + TOP + 1e-9, 200_000) @ payoff
    assert np.mean(drawn > bound(shares, payoff, size, 0.01)) == pytest.approx(0.01, rel=0.1)


def test_exact_bounds() -> None:
    """Of none among n: 1 − risk^(1/n). Of three among 1,000: the share that leaves three or fewer with that risk. Of a
    sample in which all are, 1.
    """
    assert bound((1 - TOP) / (BINS - 1), TOP, 500, 0.01) == pytest.approx(1 - 0.01 ** (1 / 500), rel=5e-3)
    p = bound(np.where(TOP, 0.003, 0.997 / (BINS - 1)), TOP, 1000, 0.01)
    tail = sum(math.comb(1000, k) * p**k * (1 - p) ** (1000 - k) for k in range(4))
    assert tail == pytest.approx(0.01, rel=5e-3)
    assert bound(TOP, TOP, 50, 0.01) == 1


def test_a_small_sample_is_trusted_less() -> None:
    """The fewer calibration ratings, the higher every level."""
    small, large = (Streams.of(World().reference(size)).levels for size in (200, 4000))
    assert (small > large).all()
