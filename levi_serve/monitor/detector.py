"""The recursion: blocks of bin counts in; evidence, alarms and recent averages out. A clock only dates what happens.

All of it lies in one record of fixed size, so that workers can share it in a mapped file, which is the checkpoint, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from levi_serve.bundle import DoubleArray, Int64Array
from levi_serve.bundle.reference import Reference
from levi_serve.bundle.scores import BINS
from levi_serve.monitor.streams import Stream, Streams, advance, at_end

Record: TypeAlias = Any
"""One element of a structured array, changed in place."""

ALARMS = 32
"""Alarms that are remembered."""
RECENT = 20_000
"""Predictions after which what is called recent has faded to 1/e."""
WARM = 1280
"""Predictions that must have been heard before live traffic is judged."""
DISAGREEMENT = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
"""Upper ends [rating units] of the histogram of spreads."""


@dataclass
class Watched:
    """What some predictions, and true ratings that came, add up to, for display."""

    predictions: int
    passed_over: int
    """Predictions that were not watched, being more a second than are to be; they are in nothing else."""
    new: Int64Array
    """[2], of them those with a user, and an item, that was not trained on."""
    heads: DoubleArray
    """[2, n], sums of head ratings and of their squares."""
    rated: int
    """Predictions behind `heads`: those that are finite."""
    spreads: Int64Array
    """[len(DISAGREEMENT) + 1], predictions by the spread of their heads."""
    spread_sum: float
    errors: DoubleArray
    """[2], how many true ratings came, and the sum of their squared errors."""
    seconds: float
    """What watching took."""

    @classmethod
    def nothing(cls, heads: int) -> Watched:
        """Before the first prediction."""
        return cls(
            predictions=0,
            passed_over=0,
            new=np.zeros(2, np.int64),
            heads=np.zeros((2, heads)),
            rated=0,
            spreads=np.zeros(len(DISAGREEMENT) + 1, np.int64),
            spread_sum=0.0,
            errors=np.zeros(2),
            seconds=0.0,
        )


def record_type(streams: Streams, heads: int) -> np.dtype[np.void]:
    """The record of a detector; its numbers are little-endian on every machine."""
    (t, k), r = streams.shape, len(streams.scores)
    alarm = [
        ("id", "<i8"),
        ("raised", "<f8"),
        ("since", "<f8"),
        ("seen", "<f8"),
        ("stream", "<i8"),
        ("evidence", "<f8"),
    ]
    return np.dtype(
        [
            ("sequence", "<i8"),
            ("blocks", "<i8"),
            ("predictions", "<i8"),
            ("passed_over", "<i8"),
            ("new", "<i8", (2,)),
            ("spreads", "<i8", (len(DISAGREEMENT) + 1,)),
            ("spread_sum", "<f8"),
            ("seconds", "<f8"),
            ("true_ratings", "<i8"),
            ("counts", "<i8", (r, BINS)),
            ("evidence", "<f8", (t, k)),
            ("onset", "<f8", (t, k)),  # [Unix seconds], when the evidence last began from nothing
            ("recent_counts", "<f8", (r, BINS)),
            ("recent_new", "<f8", (2,)),
            ("recent_predictions", "<f8"),
            ("recent_heads", "<f8", (2, heads)),
            ("recent_rated", "<f8"),
            ("recent_errors", "<f8", (2,)),
            ("alarms", alarm, (ALARMS,)),
            ("alarm_count", "<i8"),
            ("alarms_total", "<i8", (t,)),
            ("active", "<i8"),
            ("checksum", "<u8"),
        ]
    )


@dataclass(frozen=True)
class Detector:
    """Applies blocks to a record."""

    streams: Streams
    threshold: float
    """Logarithm of the evidence that raises an alarm."""
    dtype: np.dtype[np.void]

    @classmethod
    def of(cls, reference: Reference, threshold: float, new: bool = True) -> Detector:
        """A detector for one model."""
        streams = Streams.of(reference, new)
        return cls(streams, threshold, record_type(streams, reference.heads.shape[1]))

    def start(self) -> Record:
        """A record that has seen nothing."""
        (record,) = np.zeros(1, self.dtype)
        record["evidence"] = -np.inf
        return record

    def apply(self, record: Record, blocks: Int64Array, now: float) -> bool:
        """Take in blocks of bin counts [R, BINS, N] at `now` [Unix seconds]; whether one raised an alarm. Counts of
        several workers are one block when they are added.

        An alarm latches: until somebody has seen it there is no second one, and the evidence goes on.
        """
        before, upto = record["evidence"].copy(), blocks.cumsum(axis=-1)
        # Exact sums are the same in whatever order, and whole numbers add up sooner.
        total, counts = self.streams.growth(upto), upto[..., -1]
        record["evidence"], began, highest = at_end(before, total)
        record["onset"][began] = now
        record["blocks"] += blocks.shape[-1]
        record["counts"] += counts
        record["recent_counts"] *= math.exp(-int(counts[0].sum()) / RECENT)
        record["recent_counts"] += counts
        if record["active"] or not highest >= self.threshold:
            return False
        path = np.moveaxis(advance(before, total), -1, 0)  # [N, T, K]
        rung = np.flatnonzero(self.streams.total(path) >= self.threshold)
        if not len(rung):
            return False
        self._raise(record, path[rung[0]], now)
        return True

    @staticmethod
    def note(record: Record, watched: Watched) -> None:
        """Add up what is only shown."""
        keep = math.exp(-watched.predictions / RECENT)
        for name, added in (
            ("predictions", watched.predictions),
            ("new", watched.new),
            ("heads", watched.heads),
            ("rated", watched.rated),
        ):
            record[f"recent_{name}"] = record[f"recent_{name}"] * keep + added
        if watched.errors[0]:
            record["recent_errors"] *= math.exp(-watched.errors[0] / RECENT)
            record["recent_errors"] += watched.errors
        for name in ("predictions", "passed_over", "new", "spreads", "spread_sum", "seconds"):
            record[name] += getattr(watched, name)
        record["true_ratings"] += int(watched.errors[0])

    def acknowledge(self, record: Record, alarm: int, now: float) -> bool:
        """Somebody has seen an alarm; whether there is such. The evidence begins anew: what lasts is reported again."""
        for one in record["alarms"]:
            if one["id"] == alarm and alarm > 0:
                if not one["seen"]:
                    one["seen"] = now
                    if record["active"] == alarm:
                        record["active"] = 0
                        record["evidence"] = -np.inf
                return True
        return False

    def total(self, record: Record) -> float:
        """Logarithm of all evidence together: the mean over scores, their streams and bets."""
        return float(self.streams.total(record["evidence"]))

    def by_stream(self, record: Record) -> list[tuple[Stream, float]]:
        """Logarithm of each stream's evidence."""
        return list(zip(self.streams.streams, self.streams.by_stream(record["evidence"]).tolist(), strict=True))

    def alarms(self, record: Record) -> list[tuple[Record, Stream]]:
        """Those remembered, oldest first."""
        known = sorted((one for one in record["alarms"] if one["id"]), key=lambda one: int(one["id"]))
        return [(one, self.streams.streams[int(one["stream"])]) for one in known]

    def warm(self, record: Record) -> bool:
        """Whether there was enough traffic to judge."""
        return bool(record["counts"][0].sum() >= WARM)

    def _raise(self, record: Record, evidence: DoubleArray, now: float) -> None:
        """An alarm for what the evidence [T, K] of every bet is."""
        stream = int(self.streams.by_stream(evidence).argmax())
        bet = int(evidence[stream].argmax())
        record["alarm_count"] += 1
        record["alarms_total"][stream] += 1
        number = int(record["alarm_count"])
        record["active"] = number
        record["alarms"][number % ALARMS] = (
            number,
            now,
            record["onset"][stream, bet],
            0.0,
            stream,
            self.streams.total(evidence),
        )
