"""Detectors that others use, each over one score (the heads' spread), matched at one mean run length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from levi_serve.bundle import AnyArray, DoubleArray, Int64Array


class Peer(Protocol):
    """One detector: the request at which each stream rings first."""

    name: str
    knobs: Sequence[float]
    """Settings, from touchy to patient."""

    def rings(self, streams: DoubleArray, knob: float) -> Int64Array:
        """[C] for streams [C, L] of scores; L where it never rings."""


class River:
    """One of River's detectors."""

    def __init__(self, name: str, make: Callable[[float], object], knobs: Sequence[float]) -> None:
        self.name, self._make, self.knobs = name, make, knobs

    def rings(self, streams: DoubleArray, knob: float) -> Int64Array:
        found = np.full(len(streams), streams.shape[1], np.int64)
        for i, stream in enumerate(streams.tolist()):
            detector = self._make(knob)
            update = detector.update  # type: ignore[attr-defined]
            for at, value in enumerate(stream, start=1):
                update(value)
                if detector.drift_detected:  # type: ignore[attr-defined]
                    found[i] = at
                    break
        return found


class Windowed:
    """A statistic of the last `window` requests against the reference, every `step` requests."""

    def __init__(
        self, name: str, statistic: Callable[[DoubleArray], DoubleArray], knobs: Sequence[float], window: int, step: int
    ) -> None:
        """`statistic` of windows [C, window] is [C]."""
        self.name, self._statistic, self.knobs = name, statistic, knobs
        self._window, self._step = window, step
        self._known: tuple[DoubleArray, Int64Array, DoubleArray] | None = None

    def rings(self, streams: DoubleArray, knob: float) -> Int64Array:
        if self._known is None or self._known[0] is not streams:  # the statistic does not depend on the knob
            ends = np.arange(self._window, streams.shape[1] + 1, self._step)
            values = np.stack([self._statistic(streams[:, end - self._window : end]) for end in ends], 1)
            self._known = streams, ends, values
        _, ends, values = self._known
        rung = values >= knob
        first: Int64Array = np.where(rung.any(1), ends[rung.argmax(1)], streams.shape[1])
        return first


class EveryNth:
    """Rings every n requests, whatever comes."""

    name = "every n-th request"
    knobs: Sequence[float] = (20_000.0,)

    def rings(self, streams: DoubleArray, knob: float) -> Int64Array:
        """At a moment of its own in each stream: half of n after its beginning, on average."""
        first = np.random.default_rng(0).integers(1, int(knob) + 1, len(streams))
        return np.minimum(first, streams.shape[1])


def peers(reference: AnyArray) -> list[Peer]:
    """All of them, against a sorted reference [N] of the score."""
    from river.drift import ADWIN, PageHinkley  # noqa: PLC0415 - only this benchmark needs it

    scale = float(reference.std())
    return [
        River("River ADWIN", lambda delta: ADWIN(delta=delta), (0.5, 0.2, 0.05, 0.02, 0.005, 0.002, 5e-4, 1e-4)),
        River(
            "River PageHinkley",
            lambda threshold: PageHinkley(min_instances=30, delta=0.1 * scale, threshold=threshold * scale, mode="up"),
            np.geomspace(5, 120, 41).tolist(),
        ),
        Windowed("windowed KS", lambda w: _ks(reference, w), np.linspace(0.05, 0.2, 301).tolist(), 500, 50),
        Windowed("windowed MMD", lambda w: _mmd(reference, w), np.linspace(0.0, 0.03, 61).tolist(), 200, 50),
        Windowed("PSI, matched", lambda w: _psi(reference, w), np.linspace(0.01, 0.2, 77).tolist(), 1000, 100),
        Windowed("PSI at 0.2", lambda w: _psi(reference, w), (0.2,), 1000, 100),
        EveryNth(),
    ]


def matched(peer: Peer, quiet: DoubleArray, run_length: float) -> tuple[float, float]:
    """The first knob whose mean run length over in-distribution streams [C, L] reaches `run_length`, and that length.

    Of streams without a ring only the length is known: for memoryless rings, total time over rings is the mean.
    """
    for knob in peer.knobs:
        rings = peer.rings(quiet, knob)
        mean = rings.sum() / max(1, int((rings < quiet.shape[1]).sum()))
        if mean >= run_length or knob == peer.knobs[-1]:
            return float(knob), float(mean)
    raise AssertionError("a peer has knobs")


def _ks(reference: AnyArray, windows: DoubleArray) -> DoubleArray:
    n = windows.shape[1]
    below = np.searchsorted(reference, np.sort(windows, 1)) / len(reference)  # [C, n]
    steps = np.arange(n + 1) / n
    distance: DoubleArray = np.maximum(np.abs(below - steps[:-1]), np.abs(below - steps[1:])).max(1)
    return distance


def _mmd(reference: AnyArray, windows: DoubleArray) -> DoubleArray:
    """With random Fourier features of a Gaussian kernel, whose width is the reference's deviation."""
    rng = np.random.default_rng(0)
    frequency, phase = rng.normal(size=64) / reference.std(), rng.uniform(0, 2 * np.pi, 64)

    def mean(values: AnyArray) -> DoubleArray:
        return np.asarray(np.cos(values[..., None] * frequency + phase).mean(-2))

    gap: DoubleArray = np.square(mean(windows) - mean(reference)).sum(-1) * 2 / 64
    return gap


def _psi(reference: AnyArray, windows: DoubleArray) -> DoubleArray:
    edges = np.quantile(reference, np.arange(1, 10) / 10)
    bins = np.searchsorted(edges, windows)
    share = np.stack([(bins == b).mean(1) for b in range(10)], 1).clip(1e-4)
    psi: DoubleArray = ((share - 0.1) * np.log(share / 0.1)).sum(1)
    return psi
