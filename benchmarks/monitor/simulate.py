"""Streams of requests drawn from pools, many at once, through the detector's own arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.monitor.pools import Pool
from levi_serve.bundle import AnyArray, BoolArray, DoubleArray, Int64Array
from levi_serve.bundle.reference import Reference
from levi_serve.bundle.scores import BINS, bins_of
from levi_serve.monitor.streams import BLOCK, ROUND, Streams, advance

AHEAD = BLOCK + BLOCK // 2
"""Requests drawn at a time: mostly enough to fill a block."""


def pool_bins(reference: Reference, pool: Pool, new: bool) -> Int64Array:
    """Bin [N, R] of each score of each prediction, unseen ids as the last two."""
    bins = bins_of(pool.scores, reference.edges).T
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
    before: int = 1280,
) -> tuple[Int64Array, int]:
    """Requests [count] from the change to the alarm in so many streams, `limit` where there was none; and how many
    streams had an alarm before the change and were left out.
    """
    crowd = _Crowd(streams, inside, shifted, count, np.random.default_rng(seed))
    change = before + crowd.rng.integers(0, ROUND, count)
    found, early = np.full(count, limit, np.int64), np.zeros(count, bool)
    running = np.arange(count)
    while len(running):
        full = crowd.ask(running, share, change)
        elapsed = crowd.at - change
        rung = full[crowd.total(full) >= threshold]
        early[rung[elapsed[rung] <= 0]] = True
        late = rung[elapsed[rung] > 0]
        found[late] = elapsed[late]
        running = np.setdiff1d(running[elapsed[running] < limit], rung)
    return np.minimum(found, limit)[~early], int(early.sum())


def run_lengths(
    streams: Streams, inside: Source, threshold: float, count: int, limit: int, seed: int
) -> tuple[Int64Array, DoubleArray]:
    """Requests to the first alarm in `count` in-distribution streams, `limit` where there was none; and the largest
    evidence of each up to there.
    """
    crowd = _Crowd(streams, inside, inside, count, np.random.default_rng(seed))
    lengths, most = np.full(count, limit, np.int64), np.full(count, -np.inf)
    running = np.arange(count)
    while len(running):
        full = crowd.ask(running, switch(0.0), crowd.at)
        total = crowd.total(full)
        most[full] = np.maximum(most[full], total)
        rung = full[total >= threshold]
        lengths[rung] = crowd.at[rung]
        running = np.setdiff1d(running[crowd.at[running] < limit], rung)
    return np.minimum(lengths, limit), most


class _Crowd:
    """`count` monitors, each with traffic of its own."""

    def __init__(self, streams: Streams, inside: Source, shifted: Source, count: int, rng: np.random.Generator) -> None:
        self.rng, self._streams, self._inside, self._shifted = rng, streams, inside, shifted
        self.at = np.zeros(count, np.int64)
        """Requests so far [count]."""
        self._evidence = np.full((count, *streams.shape), -np.inf)
        self._counts = np.zeros((count, len(streams.scores), BINS), np.int64)
        self._heard = np.zeros((count, max(inside.user.max(), shifted.user.max()) + 1), np.int32)
        """The round in which each user was last heard."""
        self._round = np.ones(count, np.int32)
        self._in_block, self._in_round = np.zeros((2, count), np.int64)

    def ask(self, running: Int64Array, share: Share, change: Int64Array) -> Int64Array:
        """Requests to these of them, up to the end of a block; those whose block was filled. `change` [count] is the
        request from which on a `share` is shifted.
        """
        number = self.at[running][:, None] + np.arange(AHEAD)  # [C, AHEAD]
        strange = self.rng.random(number.shape) < share(number - change[running][:, None])
        usual = self.rng.integers(0, len(self._inside.user), number.shape)
        other = self.rng.integers(0, len(self._shifted.user), number.shape)
        user = np.where(strange, self._shifted.user[other], self._inside.user[usual])
        heard = (self._heard[running[:, None], user] != self._round[running][:, None]) & ~_repeated(user)
        nth, room = heard.cumsum(1), (BLOCK - self._in_block[running])[:, None]
        self.at[running] += np.minimum((nth < room).sum(1) + 1, AHEAD)
        c, i = np.nonzero(heard & (nth <= room))
        self._heard[running[c], user[c, i]] = self._round[running[c]]
        bins = np.where(strange[c, i][:, None], self._shifted.bins[other[c, i]], self._inside.bins[usual[c, i]])
        np.add.at(self._counts, (running[c][:, None], np.arange(bins.shape[1]), bins), 1)
        for filled in (self._in_block, self._in_round):
            np.add.at(filled, running[c], 1)
        return self._judge(running[self._in_block[running] == BLOCK])

    def total(self, of: Int64Array) -> DoubleArray:
        """All evidence of some of them."""
        return self._streams.total(self._evidence[of])

    def _judge(self, full: Int64Array) -> Int64Array:
        growth = self._streams.growth(self._counts[full].transpose(1, 2, 0))  # a block each
        self._evidence[full] = advance(self._evidence[full], np.moveaxis(growth, -1, 0)[..., None])[..., 0]
        self._counts[full] = 0
        self._in_block[full] = 0
        over = full[self._in_round[full] >= ROUND]
        self._round[over] += 1
        self._in_round[over] = 0
        return full


def _repeated(user: Int64Array) -> BoolArray:
    """Whether the same user [C, L] stands further left."""
    order = np.argsort(user, axis=1, kind="stable")
    ordered = np.take_along_axis(user, order, 1)
    repeated = np.zeros(user.shape, bool)
    np.put_along_axis(repeated, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], 1)
    return repeated
