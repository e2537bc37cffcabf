"""What is tested, and against what: each stream bets that one property of one score has risen.

A mixture Shiryaev–Roberts e-detector (Shin, Ramdas, Rinaldo 2022) over streams t and bets λ_k. A prediction whose
score lies in bin b pays g_t[b] in [0, 1] to stream t, which multiplies the stream's evidence by 1 + λ (g − m₀). As long
as the mean payoff is at most m₀, no factor exceeds 1 on average, and the mean run length to a false alarm is at least
the threshold, whatever the distribution.

m₀ is known from a sample only. It is an upper bound of the true mean that holds for all streams at once with 95 %
confidence (the better of a Chernoff and an empirical Bernstein bound), for the worse of two ways to weigh the sample,
every rating alike or every user alike, and leaves room for one user in each block who is unlike all others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from levi_serve.bundle import AnyArray, DoubleArray, Int64Array
from levi_serve.bundle.reference import Reference
from levi_serve.bundle.scores import BINS

BLOCK = 64
"""Predictions, each of another user, that are judged together: one user has no more than this share of the evidence."""
BETS = 0.95 * 0.5 ** np.arange(8)
"""λ as a share of its largest value 1/m₀: from bold bets, which see a full switch at once, to careful ones."""
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
    """[T], the row of each stream's score."""
    levels: DoubleArray
    """[T], m₀."""
    factors: DoubleArray
    """[T, BINS, K], logarithm of the factor that one prediction in a bin brings."""

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
        levels = np.array(
            [
                max(
                    _bound(w[row], payoff, size, len(streams)) for w, size in zip(weights, reference.sizes, strict=True)
                )
                for row, payoff in zip(rows, payoffs, strict=True)
            ]
        )
        levels = ((BLOCK - 1) * levels + 1) / BLOCK
        bets = BETS / levels[:, None]  # [T, K]
        factors = np.log1p(bets[:, None, :] * (payoffs - levels[:, None])[:, :, None])
        return cls(scores, streams, rows, levels, factors)

    @property
    def shape(self) -> tuple[int, int]:
        """T streams, K bets."""
        return self.factors.shape[0], self.factors.shape[2]

    def growth(self, counts: AnyArray) -> DoubleArray:
        """Logarithm [T, K] of the factors of a block of bin counts [R, BINS]."""
        grown: DoubleArray = np.matmul(counts[self.rows, None, :].astype(np.float64), self.factors)[:, 0]
        return grown


def advance(evidence: DoubleArray, growth: DoubleArray) -> DoubleArray:
    """One step of M ← (M + 1) · ΠL, in logarithms; minus infinity at the start."""
    return np.logaddexp(evidence, 0.0) + growth


def pooled(evidence: DoubleArray) -> DoubleArray:
    """Logarithm of the mean over the last axis."""
    top = evidence.max(axis=-1, keepdims=True)
    safe = np.where(np.isneginf(top), 0.0, top)
    with np.errstate(divide="ignore"):
        return np.asarray(safe[..., 0] + np.log(np.exp(evidence - safe).mean(axis=-1)))


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


def _bound(weights: DoubleArray, payoff: DoubleArray, size: float, streams: int) -> float:
    """Upper bound of a mean payoff: the true one exceeds it in CONFIDENCE / streams of all samples at most."""
    mean = float(weights @ payoff)
    variance = float(weights @ np.square(payoff - mean)) * size / max(size - 1, 1)
    needed = math.log(4 * streams / CONFIDENCE)  # the risk is shared by two bounds and two ways to weigh
    bernstein = mean + math.sqrt(2 * variance * needed / size) + 7 * needed / (3 * max(size - 1, 1))
    return min(bernstein, _chernoff(mean, needed / size))


def _chernoff(mean: float, divergence: float) -> float:
    """The largest m with kl(mean, m) ≤ divergence."""
    low, high = mean, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        kl = 0.0
        if mean > 0:
            kl += mean * math.log(mean / middle)
        if mean < 1:
            kl += (1 - mean) * math.log((1 - mean) / (1 - middle)) if middle < 1 else math.inf
        low, high = (middle, high) if kl <= divergence else (low, middle)
    return high
