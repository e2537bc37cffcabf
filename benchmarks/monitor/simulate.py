"""Streams of requests drawn from pools, many at once, through the detector's own arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.monitor.pools import Pool
from levi_serve.bundle import AnyArray, BoolArray, DoubleArray, Int64Array
from levi_serve.bundle.reference import Reference
from levi_serve.bundle.scores import BINS
from levi_serve.monitor.streams import BLOCK, Streams, advance, pooled

AHEAD = BLOCK + BLOCK // 2
"""Requests drawn for a block: enough for BLOCK different users, or the block is what there is."""


def bins_of(reference: Reference, pool: Pool, new: bool) -> Int64Array:
    """Bin [N, R] of each score of each prediction, unseen ids as the last two."""
    bins = (~(pool.scores[:, :, None] < reference.edges)).sum(2)
    return np.column_stack([bins, *(pool.new * (BINS - 1))]) if new else bins


@dataclass(frozen=True)
class Source:
    """Bins and users of a pool."""

    bins: Int64Array
    user: Int64Array


Share = Callable[[AnyArray], DoubleArray]
"""Share of shifted requests by their number since the change, which is negative before it."""


def switch(share: float) -> Share:
    """So much from the change on."""
    return lambda since: np.where(since >= 0, share, 0.0)


def ramp(requests: int) -> Share:
    """Rising to all of it."""
    return lambda since: np.clip(since / requests, 0, 1)


def delays(
    streams: Streams,
    inside: Source,
    shifted: Source,
    share: Share,
    threshold: float,
    count: int,
    limit: int,
    seed: int,
    before: int = 20 * BLOCK,
) -> tuple[Int64Array, int]:
    """Requests [count] from the change to the alarm in so many streams, `limit` where there was none; and how many
    streams had an alarm before the change and were left out.
    """
    rng = np.random.default_rng(seed)
    change = before + rng.integers(0, BLOCK, count)
    at = np.zeros(count, np.int64)
    evidence = np.full((count, *streams.shape), -np.inf)
    found, early = np.full(count, limit, np.int64), np.zeros(count, bool)
    running = np.arange(count)
    factors = _by_row(streams)
    while len(running):
        since = (at - change)[running][:, None] + np.arange(AHEAD)  # [running, AHEAD]
        strange = rng.random(since.shape) < share(since)
        picked, used = _block(rng, inside, shifted, strange)
        at[running] += used
        counts = _counts(picked, inside.bins.shape[1])
        growth = (counts @ factors).reshape(len(running), *streams.shape)
        evidence[running] = advance(evidence[running], growth)
        total = pooled(evidence[running].reshape(len(running), -1))
        rung = total >= threshold
        elapsed = (at - change)[running]
        early[running[rung & (elapsed <= 0)]] = True
        late = rung & (elapsed > 0)
        found[running[late]] = elapsed[late]
        running = running[~rung & (elapsed < limit)]
    return np.minimum(found, limit)[~early], int(early.sum())


def run_lengths(
    streams: Streams, inside: Source, threshold: float, count: int, limit: int, seed: int
) -> tuple[Int64Array, DoubleArray]:
    """Requests to the first alarm in `count` in-distribution streams, `limit` where there was none; and the largest
    evidence of each.
    """
    rng = np.random.default_rng(seed)
    lengths = np.full(count, limit, np.int64)
    at, most = np.zeros(count, np.int64), np.full(count, -np.inf)
    evidence = np.full((count, *streams.shape), -np.inf)
    over = np.zeros(count, bool)
    nothing = np.zeros((count, AHEAD), bool)
    factors = _by_row(streams)
    while (at < limit).any():
        picked, used = _block(rng, inside, inside, nothing)
        at += used
        counts = _counts(picked, inside.bins.shape[1])
        growth = (counts @ factors).reshape(count, *streams.shape)
        evidence = advance(evidence, growth)
        total = pooled(evidence.reshape(count, -1))
        most = np.maximum(most, total)
        rung = ~over & (total >= threshold) & (at <= limit)
        lengths[rung] = at[rung]
        over |= rung
    return lengths, most


def _block(
    rng: np.random.Generator, inside: Source, shifted: Source, strange: BoolArray
) -> tuple[Int64Array, Int64Array]:
    """Bins [C, AHEAD, R] of each stream's next block, −1 for what is no evidence, and how many requests it took [C]."""
    shape = strange.shape
    usual = rng.integers(0, len(inside.user), shape)
    other = rng.integers(0, len(shifted.user), shape)
    user = np.where(strange, shifted.user[other], inside.user[usual])
    order = np.argsort(user, axis=1, kind="stable")
    ordered = np.take_along_axis(user, order, 1)
    repeated = np.zeros(shape, bool)
    np.put_along_axis(repeated, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], 1)
    nth = (~repeated).cumsum(1)
    kept = ~repeated & (nth <= BLOCK)
    used = np.minimum((nth < BLOCK).sum(1) + 1, shape[1])
    bins = np.where(strange[:, :, None], shifted.bins[other], inside.bins[usual])
    bins[~kept] = -1
    return bins, used


def _counts(bins: Int64Array, rows: int) -> DoubleArray:
    """[C, R · BINS]"""
    count = len(bins)
    code = np.where(bins >= 0, bins + BINS * np.arange(rows), -1)
    code = np.where(code >= 0, code + (BINS * rows) * np.arange(count)[:, None, None], count * rows * BINS)
    found = np.bincount(code.reshape(-1), minlength=count * rows * BINS + 1)[:-1]
    return found.reshape(count, rows * BINS).astype(np.float64)


def _by_row(streams: Streams) -> DoubleArray:
    """Factors [R · BINS, T · K] of every score's bins."""
    t, k = streams.shape
    out = np.zeros((len(streams.scores), BINS, t, k))
    for stream, row in enumerate(streams.rows):
        out[row, :, stream] = streams.factors[stream]
    return out.reshape(-1, t * k)
