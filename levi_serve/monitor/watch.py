"""The monitor of one process: it watches predictions, and hands full blocks to the state that all processes share."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from levi_serve.bundle import AnyArray, BoolArray, DoubleArray, Int64Array
from levi_serve.bundle.commands import RunError
from levi_serve.bundle.manifest import Manifest
from levi_serve.bundle.reference import Reference
from levi_serve.bundle.scores import BINS
from levi_serve.monitor.detector import DISAGREEMENT, Detector, Record, Watched
from levi_serve.monitor.rounds import Rounds
from levi_serve.monitor.state import State, owner_of
from levi_serve.monitor.streams import BLOCK, NEW

log = logging.getLogger("levi")

CHUNK, BATCHES = 256, 32
"""Predictions, and batches, that are counted together: by themselves a few cost nearly as much. Batches are small
when traffic is light, and nobody is to wait long for a count then.
"""
PAUSE_S = 0.02
"""Time between two changes of the shared state, at least: what a process that is killed may not have told."""
SHOWN = 8
"""Batches of those whose head ratings are shown: reading all costs as much as judging them."""
_KEPT = 64
"""Chunks of blocks that wait while other processes change the state; of more, all become one block."""
_EDGES = np.array(DISAGREEMENT, np.float32)


class _Batch(NamedTuple):
    """What `Monitor.observe` is given."""

    users: Sequence[Hashable]
    scores: AnyArray
    heads: DoubleArray
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
        self._state = State(detector, owner_of(reference, detector), state)
        self._rounds = Rounds()
        self._begun = np.empty((0, len(detector.streams.scores), BINS - 1), np.bool_)
        """[less than BLOCK, R, BINS − 1], whether the scores of the block that is being filled lie below each bin."""
        self._blocks: list[Int64Array] = []
        """[N, R, BINS] each, full blocks that the state does not have yet."""
        self._new = NEW[0] in detector.streams.scores
        self._heads = reference.heads.shape[1]
        self._watched = Watched.nothing(self._heads)
        self._lock = threading.Lock()  # backbones run in threads, metrics are read in the event loop
        self._held: list[_Batch] = []
        self._waiting = 0
        """Predictions held."""
        self._told = -PAUSE_S
        """When the state was last changed, or that was tried [`perf_counter` seconds]."""

    def observe(
        self,
        users: Sequence[Hashable],
        scores: AnyArray,
        heads: DoubleArray,
        trained: tuple[BoolArray, BoolArray],
    ) -> None:
        """Watch B predictions. Of each user only the first in a round is evidence.

        Args:
            users: [B], who they are for.
            scores: [B, S] as `Scorer` gives them; without a finite spread a prediction is as strange as can be.
            heads: [B, n] head ratings, only to be shown: of the batches that are counted together, the last SHOWN.
            trained: [B] each, whether the user and the item were trained on.

        """
        with self._lock:
            self._held.append(_Batch(users, scores, heads, *trained))
            self._waiting += len(users)
            if self._waiting >= CHUNK or len(self._held) >= BATCHES:
                self._take_in()
            # Under load the state is changed every PAUSE_S; when it is quiet, as soon as there is a block.
            elif (self._blocks or self._waiting >= BLOCK) and time.perf_counter() - self._told >= PAUSE_S:
                if not self._blocks:  # else what is held is counted in another turn of the event loop
                    self._take_in()
                self._hand_over()

    def _take_in(self) -> None:
        """Count what is held."""
        if not self._held:
            return
        start = time.perf_counter()
        columns = list(zip(*self._held, strict=True))
        users = list(chain.from_iterable(columns[0]))
        scores, heads = np.concatenate(columns[1]), np.concatenate(columns[2][-SHOWN:])
        trained = np.concatenate(columns[3] + columns[4]).reshape(2, -1)
        self._held.clear()
        self._waiting = 0
        watched = self._watched
        watched.predictions += len(users)
        watched.new += len(users) - trained.sum(axis=1)
        spreads = scores[:, 0]
        if not math.isfinite(total := float(spreads.sum(dtype=np.float64))):
            finite = np.isfinite(spreads)
            scores[~finite] = np.nan
            total = float(spreads[finite].sum(dtype=np.float64))
        watched.spread_sum += total
        watched.spreads += np.bincount(_EDGES.searchsorted(spreads), minlength=len(DISAGREEMENT) + 1)
        if not (rated := np.isfinite(heads)).all():
            heads = heads[rated.all(axis=1)]
        watched.heads += np.einsum("bn->n", heads), np.einsum("bn,bn->n", heads, heads)
        watched.rated += len(heads)
        self._count(scores, trained, np.array(self._rounds.heard(users), np.intp))
        watched.seconds += time.perf_counter() - start

    def _count(self, scores: AnyArray, trained: BoolArray, heard: Int64Array) -> None:
        """Fill blocks with those of the predictions that are evidence, which stand at these places."""
        before, rows = len(self._begun), scores.shape[1]
        filled = np.empty((before + len(heard), *self._begun.shape[1:]), np.bool_)
        filled[:before] = self._begun
        np.less(scores[heard][:, :, None], self.reference.edges, out=filled[before:, :rows])
        if self._new:
            filled[before:, rows:] = trained[:, heard].T[:, :, None]
        full = len(filled) // BLOCK * BLOCK
        if full:
            self._blocks.append(block_counts(filled[:full]))
        self._begun = filled[full:]

    def settle(self) -> None:
        """Hand over what was watched; another time, if another process is just at it."""
        with self._lock:
            self._take_in()
            self._hand_over()

    def _hand_over(self) -> None:
        start = self._told = time.perf_counter()
        with self._state.try_change() as record:
            if record is None:
                if len(self._blocks) > _KEPT:
                    self._blocks = [np.concatenate(self._blocks).sum(axis=0, keepdims=True)]
                return
            watched, self._watched = self._watched, Watched.nothing(self._heads)
            self.detector.note(record, watched)
            if self._blocks:
                self._apply(record, np.concatenate(self._blocks))
                self._blocks.clear()
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
        with self._lock:
            self._watched.errors += len(squared), squared.sum()

    def close(self) -> None:
        """Hand over what is left."""
        self.settle()
        self._state.close()

    def _apply(self, record: Record, blocks: Int64Array) -> None:
        if self.detector.apply(record, blocks, self._clock()):
            one, stream = self.detector.alarms(record)[-1]
            log.warning("shift alarm %d: %s %s, evidence %.1f", one["id"], stream.score, stream.kind, one["evidence"])


def block_counts(below: BoolArray) -> Int64Array:
    """Counts [N, R, BINS] of N blocks from whether each score of each prediction lies below the second and every
    further bin [N · BLOCK, R, BINS − 1].
    """
    upto = np.empty((len(below) // BLOCK, below.shape[1], BINS + 1), np.int64)
    upto[..., 0], upto[..., -1] = 0, BLOCK
    np.add.reduce(below.view(np.uint8).reshape(-1, BLOCK, *below.shape[1:]), axis=1, out=upto[..., 1:-1])
    return np.asarray(upto[..., 1:] - upto[..., :-1])


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
