"""What is tested, and against what: each stream bets that one property of one score has risen.

A mixture CUSUM e-detector (Shin, Ramdas, Rinaldo 2022) over streams t and bets λ_k. A prediction whose score lies in
bin b pays g_t[b] in [0, 1] to stream t, which multiplies the stream's evidence by 1 + λ (g − m₀). As long as the mean
payoff is at most m₀, no factor exceeds 1 on average, and the mean run length to a false alarm is at least the
threshold, whatever the distribution.

m₀ is known from a sample only. It is an upper bound of the true mean that holds for all streams at once with 95 %
confidence, for the worse of two ways to weigh the sample, every rating alike or every user alike. And it leaves room
for one user in each round who is unlike all others: over a round no factor exceeds 1 on average even with that user,
whose own is at most 1/m₀.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np

from levi_serve.bundle import AnyArray, BoolArray, DoubleArray, Int64Array
from levi_serve.bundle.reference import Reference
from levi_serve.bundle.scores import BINS

BLOCK = 8
"""Predictions that are judged together."""
ROUND = 128
"""Users of whom each is heard once before anybody is heard again: one has no more than this share of the evidence."""
BETS = 0.9 * 0.45 ** np.arange(6)
"""λ as a share of its largest value 1/m₀: from bold bets, which see a full switch at once, to careful ones."""
_GRAIN = 2.0**-30
"""Factors are rounded down to whole numbers of it: sums are then exact, in whatever order and parts they are made."""
CONFIDENCE = 0.05
Kind: TypeAlias = Literal["mean", "upper", "lower"]
KINDS: tuple[Kind, ...] = ("mean", "upper", "lower")
"""The score is higher, is very high too often, is lower."""
_MIDDLES = (np.arange(BINS) + 0.5) / BINS
_PAYOFFS = {"mean": _MIDDLES, "upper": (np.arange(BINS) == BINS - 1).astype(np.float64), "lower": 1 - _MIDDLES}
NEW = ("new_user", "new_item")
"""Scores of two values, 0 and 1: whether an entity was not trained on. They stand in the first and the last bin."""


@dataclass(frozen=True)
class Stream:
    """One property of one score."""

    score: str
    kind: Kind

    @property
    def name(self) -> str:
        """As a label."""
        return f"{self.score}_{self.kind}"


@dataclass(frozen=True)
class Streams:
    """All T streams over R scores and their tables."""

    scores: tuple[str, ...]
    """R, in the order of a block's rows: those of the reference, then NEW."""
    streams: tuple[Stream, ...]
    rows: Int64Array
    """[T], the row of each stream's score: those of one score stand together."""
    shares: DoubleArray
    """[T], of all evidence: scores have equal ones, and so have the streams of one score."""
    levels: DoubleArray
    """[T], m₀."""
    factors: DoubleArray
    """[T, K, BINS], logarithm of the factor that one prediction in a bin brings."""

    @classmethod
    def of(cls, reference: Reference, new: bool = True) -> Streams:
        """Streams of a model; without `new`, unseen ids are no evidence."""
        scores = (*reference.names, *NEW) if new else reference.names
        streams = tuple(Stream(score, kind) for score in scores for kind in (KINDS[:1] if score in NEW else KINDS))
        rows = np.array([scores.index(stream.score) for stream in streams])
        weights = np.stack(
            [np.concatenate([w, two_valued(n)]) for w, n in zip(reference.weights, reference.new, strict=True)]
        )
        payoffs = np.stack([_PAYOFFS["upper" if stream.score in NEW else stream.kind] for stream in streams])
        shares = 1 / (np.bincount(rows)[rows] * len(scores))
        levels = np.max(
            [
                # The risk is shared like the evidence, and by the two ways to weigh.
                _bounds(w[rows], payoffs, size, CONFIDENCE * shares / 2)
                for w, size in zip(weights, reference.sizes.tolist(), strict=True)
            ],
            axis=0,
        )
        levels = ((ROUND - 1) * levels + 1) / ROUND
        bets = BETS / levels[:, None]  # [T, K]
        factors = np.log1p(bets[:, :, None] * (payoffs - levels[:, None])[:, None, :])
        return cls(scores, streams, rows, shares, levels, np.floor(factors / _GRAIN) * _GRAIN)

    @property
    def shape(self) -> tuple[int, int]:
        """T streams, K bets."""
        return self.factors.shape[0], self.factors.shape[1]

    def growth(self, counts: AnyArray) -> DoubleArray:
        """Logarithm [T, K, N] of the factors of N blocks of bin counts [R, BINS, N]."""
        exact, grown = counts.astype(np.float64), np.empty((*self.shape, counts.shape[-1]))
        for rows, streams, factors in self._alike:
            np.matmul(factors, exact[rows], out=grown[streams].reshape(*factors.shape[:2], counts.shape[-1]))
        return grown

    @cached_property
    def _alike(self) -> list[tuple[slice, slice, DoubleArray]]:
        """Runs of scores with equally many streams: their rows, their streams, and factors [scores, S · K, BINS], for
        one product per score.
        """
        many = np.bincount(self.rows, minlength=len(self.scores))
        begins = [0, *(np.flatnonzero(np.diff(many)) + 1).tolist()]
        runs, at = [], 0
        for begin, end in zip(begins, [*begins[1:], len(many)], strict=True):
            streams = slice(at, at := at + int(many[begin:end].sum()))
            runs.append((slice(begin, end), streams, self.factors[streams].reshape(end - begin, -1, BINS)))
        return runs

    def by_stream(self, evidence: DoubleArray) -> DoubleArray:
        """Logarithm [..., T] of each stream's evidence from that of its bets [..., T, K]: their mean."""
        return pooled(evidence, np.full(self.shape[1], 1 / self.shape[1]))

    def total(self, evidence: DoubleArray) -> DoubleArray:
        """Logarithm [...] of all evidence together."""
        return pooled(self.by_stream(evidence), self.shares)


def advance(evidence: DoubleArray, total: DoubleArray) -> DoubleArray:
    """Evidence [..., N] after each of N blocks: from what it was [...] before, and the `total` [..., N] that all up to
    each have brought.

    M ← max(M, 1) · ΠL in logarithms; minus infinity at the start.

    The N steps at once: a sum since the start, less the lowest of those at which the evidence could have begun anew.
    """
    begin = np.concatenate([np.maximum(evidence, 0.0)[..., None], -total[..., :-1]], axis=-1)
    return np.asarray(total + np.maximum.accumulate(begin, axis=-1))


def at_end(evidence: DoubleArray, total: DoubleArray) -> tuple[DoubleArray, BoolArray, float]:
    """What of `advance` is always asked for, in less time: evidence [T, K] after the last block; where it began anew on
    the way; and what neither any of it nor all of it together was ever above.
    """
    begin, lowest = -np.maximum(evidence, 0.0), total[..., :-1].min(axis=-1, initial=np.inf)
    anew = (evidence <= 0) | (lowest <= begin)
    lowest = np.minimum(begin, lowest)
    return total[..., -1] - lowest, anew, float((total.max(axis=-1) - lowest).max())


def pooled(evidence: DoubleArray, shares: DoubleArray) -> DoubleArray:
    """Logarithm of the mean over the last axis, in which each has its share."""
    top = evidence.max(axis=-1, keepdims=True)
    safe = np.where(np.isneginf(top), 0.0, top)
    with np.errstate(divide="ignore"):
        return np.asarray(safe[..., 0] + np.log(np.exp(evidence - safe) @ shares))


def threshold(days: float, rate: float) -> float:
    """Logarithm of the evidence that raises an alarm, for a mean time of so many days between false alarms at so many
    predictions a second: the mean run length in blocks is at least its exponential.
    """
    return math.log(max(1.0, days * 86_400 * rate / BLOCK))


def two_valued(share: AnyArray) -> DoubleArray:
    """Bins [..., BINS] of a score of two values, of which the larger has this share [...]."""
    bins = np.zeros((*share.shape, BINS))
    bins[..., 0], bins[..., -1] = 1 - share, share
    return bins


def _bounds(weights: DoubleArray, payoffs: DoubleArray, size: float, risks: DoubleArray) -> DoubleArray:
    """Upper bounds [T] of mean payoffs: a true one exceeds its bound in this share `risks` [T] of all samples at most.

    Of a sample of `size` with the shares `weights` [T, BINS]. The shares that it may have come from are spread like
    Dirichlet's, with one rating more in the bin that pays most: where payoffs are 0 and 1 this is the bound of Clopper
    and Pearson (1934), else Gaffke's (2005; Learned-Miller and Thomas 2019), of which it is conjectured, and not
    proven, that it holds for every distribution. Its tail is that of a sum of gamma variables, which Lugannani and
    Rice's formula (1980) gives to three digits.
    """
    best = payoffs == payoffs.max(axis=1, keepdims=True)
    alpha = weights * size + best / best.sum(axis=1, keepdims=True)
    low, high = np.zeros(len(alpha)), 1 / payoffs.max(axis=1)
    for _ in range(50):
        tilt = (low + high) / 2
        mean, tail = _tail(alpha, payoffs, tilt)
        low, high = np.where(tail > risks, tilt, low), np.where(tail > risks, high, tilt)
    return mean


def _tail(alpha: DoubleArray, payoffs: DoubleArray, tilt: DoubleArray) -> tuple[DoubleArray, DoubleArray]:
    """Means [T] of shares tilted towards high payoffs, and the probability [T] of more under Dirichlet(alpha)."""
    shares = alpha / (1 - tilt[:, None] * payoffs)
    mean = (shares * payoffs).sum(axis=1) / shares.sum(axis=1)
    point = tilt * shares.sum(axis=1) / alpha.sum(axis=1)  # the saddlepoint of Σ (payoff − mean) · Gamma(alpha)
    off = payoffs - mean[:, None]
    left = 1 - point[:, None] * off
    w = np.sqrt(np.maximum(2 * (alpha * np.log(left)).sum(axis=1), 0.0))
    v = point * np.sqrt((alpha * np.square(off / left)).sum(axis=1))
    normal = np.array([math.erfc(x) for x in (w / math.sqrt(2)).tolist()]) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        tail = normal + np.exp(-np.square(w) / 2) / math.sqrt(2 * math.pi) * (1 / v - 1 / w)
    return mean, np.where(w > 1, tail, 1.0)  # near the middle the formula is 0 / 0; risks are far from there
