"""The monitor of one process: it watches predictions, and hands full blocks to the state that all processes share."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from levi_serve.bundle import AnyArray, BoolArray, DoubleArray
from levi_serve.bundle.commands import RunError
from levi_serve.bundle.manifest import Manifest
from levi_serve.bundle.reference import Reference
from levi_serve.bundle.scores import BINS, bin_counts
from levi_serve.monitor.detector import DISAGREEMENT, Detector, Record, Watched
from levi_serve.monitor.state import State
from levi_serve.monitor.streams import BLOCK, NEW

log = logging.getLogger("levi")

LONGEST = 64 * BLOCK
"""Predictions after which a block ends even if they were of fewer than BLOCK users."""
_NOTED = 8 * BLOCK
"""Predictions after which what is only shown is handed over even if the block is not full."""
_EDGES = np.array(DISAGREEMENT, np.float32)


class _Batch(NamedTuple):
    """What `Monitor.observe` is given."""

    users: Sequence[Hashable]
    scores: AnyArray
    heads: DoubleArray
    usable: BoolArray
    trained_users: BoolArray
    trained_items: BoolArray


class Monitor:
    """Watches the predictions of one model."""

    def __init__(
        self, reference: Reference, detector: Detector, state: Path | None, clock: Callable[[], float] = time.time
    ) -> None:
        """`state` is the file that processes share; without one the state is this process's own. The `clock` only
        dates what happens.

        Raises:
            RunError: the file cannot be opened.

        """
        self.reference = reference
        self.detector = detector
        self._clock = clock
        layout = f"{detector.dtype.descr}{detector.streams.streams}".encode()
        owner = hashlib.sha256(reference.model.encode() + layout + reference.edges.tobytes()).hexdigest().encode()
        self._state = State(detector, owner[:48], state)
        self._seen: set[Hashable] = set()
        """Users of the block that is being filled."""
        self._counts = np.zeros((len(detector.streams.scores), BINS), np.int64)
        self._since = 0
        """Predictions of the block that is being filled."""
        self._new = NEW[0] in detector.streams.scores
        self._heads = reference.heads.shape[1]
        self._watched = Watched.nothing(self._heads)
        self._lock = threading.Lock()  # backbones run in threads, metrics are read in the event loop
        self._held: list[_Batch] = []
        self._waiting = 0
        """Predictions held."""

    def observe(
        self,
        users: Sequence[Hashable],
        scores: AnyArray,
        heads: DoubleArray,
        usable: BoolArray,
        trained: tuple[BoolArray, BoolArray],
    ) -> None:
        """Watch B predictions. Of each user only the first in a block is evidence.

        Args:
            users: [B], who they are for.
            scores: [B, S] as `Scorer` gives them.
            heads: [B, n] head ratings.
            usable: [B], whether they are finite; what is not is as strange as can be.
            trained: [B] each, whether the user and the item were trained on.

        """
        with self._lock:
            self._held.append(_Batch(users, scores, heads, usable, *trained))
            self._waiting += len(users)
            # A few predictions by themselves cost nearly as much as a block: they wait until they may complete it.
            if self._waiting >= BLOCK - len(self._seen):
                self._take_in()
                if len(self._seen) >= BLOCK or self._watched.predictions >= _NOTED:
                    self._hand_over()

    def _take_in(self) -> None:
        """Count what is held."""
        if not self._held:
            return
        start = time.perf_counter()
        users = [user for batch in self._held for user in batch.users]
        scores, heads, usable, *trained = (np.concatenate(column) for column in list(zip(*self._held, strict=True))[1:])
        self._held.clear()
        n, self._waiting = self._waiting, 0
        seen = self._seen
        first = [i for i, user in enumerate(users) if not (user in seen or seen.add(user))]  # type: ignore[func-returns-value]
        new = ~trained[0], ~trained[1]
        watched = self._watched
        if not usable.all():
            scores[~usable] = np.nan
            heads = heads[usable]
        if first:
            s = self.reference.edges.shape[0]
            self._counts[:s] += bin_counts(scores[first], self.reference.edges)
            for row, side in enumerate(new, start=s):
                if self._new:
                    strangers = int(np.count_nonzero(side[first]))
                    self._counts[row, -1] += strangers
                    self._counts[row, 0] += len(first) - strangers
        watched.predictions += n
        watched.new += np.count_nonzero(new[0]), np.count_nonzero(new[1])
        watched.heads[0] += heads.sum(axis=0)
        watched.heads[1] += np.einsum("bn,bn->n", heads, heads)
        watched.rated += len(heads)
        spreads = scores[:, 0]
        watched.spreads += np.bincount(np.searchsorted(_EDGES, spreads), minlength=len(DISAGREEMENT) + 1)
        watched.spread_sum += float(np.nansum(spreads))
        self._since += n
        watched.seconds += time.perf_counter() - start

    def settle(self) -> None:
        """Hand over what was watched, and the block if it is full; another time, if another process is just at it."""
        with self._lock:
            self._take_in()
            self._hand_over()

    def _hand_over(self) -> None:
        start = time.perf_counter()
        full = len(self._seen) >= BLOCK or (self._since >= LONGEST and bool(self._seen))
        with self._state.try_change() as record:
            if record is None:
                return
            watched, self._watched = self._watched, Watched.nothing(self._heads)
            self.detector.note(record, watched)
            if full:
                self._apply(record)
        self._watched.seconds += time.perf_counter() - start

    def read(self) -> Record:
        """A copy of the record, with what this process has watched."""
        self.settle()
        return self._state.read()

    def acknowledge(self, alarm: int) -> bool:
        """Note that somebody has seen an alarm; whether there is such."""
        with self._state.change() as record:
            return self.detector.acknowledge(record, alarm, self._clock())

    def observe_errors(self, squared: DoubleArray) -> None:
        """True ratings came in: squared errors [N] of the predictions that were answered."""
        with self._state.change() as record:
            self.detector.observe_errors(record, squared)

    def close(self) -> None:
        """Hand over what is left."""
        self.settle()
        self._state.close()

    def _apply(self, record: Record) -> None:
        if self.detector.apply(record, self._counts, self._clock()):
            one, stream = self.detector.alarms(record)[-1]
            log.warning("shift alarm %d: %s %s, evidence %.1f", one["id"], stream.score, stream.kind, one["evidence"])
        self._counts = np.zeros_like(self._counts)
        self._seen.clear()
        self._since = 0


def state_file(folder: Path, manifest: Manifest, reference: Reference) -> Path:
    """Where the state of a version lies: each has its own, since two may serve for a while.

    Raises:
        RunError: the folder cannot be made.

    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"--monitor-state {folder}: {error.strerror}") from None
    return folder / f"{manifest.name}-{manifest.version}-{reference.model[:12]}.state"


def estimated_rmse(reference: Reference, record: Record) -> float | None:
    """Root of the mean squared error that predictions with live traffic's disagreement had in distribution.

    It knows errors only through the heads' disagreement: what all heads get wrong together it does not see, and beyond
    the disagreement of the last bin it stays where it is. None before anything was counted.
    """
    counts = record["recent_counts"][0]
    total = counts.sum()
    return float(np.sqrt(counts @ reference.squared_error / total)) if total else None


def true_rmse(record: Record) -> float | None:
    """Of the predictions whose true rating came, lately; None before one did."""
    count, squared = record["recent_errors"]
    return float(np.sqrt(squared / count)) if count else None


def head_ratings(record: Record) -> tuple[DoubleArray, DoubleArray] | None:
    """Each head's recent mean and deviation [n]; None before anything was watched."""
    if not record["recent_rated"]:
        return None
    mean, square = record["recent_heads"] / record["recent_rated"]
    return mean, np.sqrt(np.maximum(square - np.square(mean), 0))
