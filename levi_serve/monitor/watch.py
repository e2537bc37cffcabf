"""The monitor of one process: it watches predictions, and hands full blocks to the state that all processes share."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from itertools import chain
from pathlib import Path
from typing import TypeAlias

import numpy as np

from levi_serve.bundle import AnyArray, BoolArray, DoubleArray, FloatArray, Int64Array
from levi_serve.bundle.commands import RunError
from levi_serve.bundle.manifest import Manifest
from levi_serve.bundle.reference import Reference
from levi_serve.bundle.scores import BINS
from levi_serve.monitor.detector import DISAGREEMENT, Detector, Record, Watched
from levi_serve.monitor.ration import Ration
from levi_serve.monitor.rounds import Rounds
from levi_serve.monitor.state import State, owner_of
from levi_serve.monitor.streams import BLOCK, NEW

log = logging.getLogger("levi")

CHUNK, BATCHES = 512, 128
"""Predictions, and batches, that are counted together: by themselves a few cost nearly as much. Batches are small
when traffic is light, and nobody is to wait long for a count then.
"""
PAUSE_S = 0.1
"""Time between two changes of the shared state, unless there is much to tell: what a process that is killed may not
have told.
"""
MANY = 96
"""Blocks that do not wait for a pause; in one turn of the event loop the state is changed by twice as many at most."""
SHOWN = 8
"""Batches of those whose head ratings are shown: reading all costs as much as judging them."""
_KEPT = 64
"""Chunks of blocks that wait while other processes change the state; of more, all become one block."""
_EDGES = np.array(DISAGREEMENT, np.float32)
_Batch: TypeAlias = tuple[Sequence[Hashable], FloatArray, DoubleArray, BoolArray, BoolArray]
"""What `Monitor.observe` is given."""


class Monitor:
    """Watches the predictions of one model."""

    def __init__(
        self,
        reference: Reference,
        detector: Detector,
        state: Path | None,
        clock: Callable[[], float] = time.time,
        rate: float | None = None,
    ) -> None:
        """`state` is the file that processes share; without one the state is this process's own. The `clock` only
        dates what happens. Of more than `rate` predictions a second, a sample is watched; None: all.

        Raises:
            RunError: the file cannot be opened.

        """
        self.reference = reference
        self.detector = detector
        self._clock = clock
        self._state = State(detector, owner_of(reference, detector), state)
        self._rounds = Rounds()
        self._edges = reference.edges.T[:, :, None]  # [BINS - 1, S, 1]
        self._begun = np.empty((len(detector.streams.scores), 0), np.uint8)
        """[R, less than BLOCK], bins of the block that is being filled."""
        self._blocks: list[Int64Array] = []
        """[R, BINS, N] each, full blocks that the state does not have yet."""
        self._new = NEW[0] in detector.streams.scores
        self._heads = reference.heads.shape[1]
        self._watched = Watched.nothing(self._heads)
        self._ration = None if rate is None else Ration(rate, time.perf_counter())
        self._lock = threading.Lock()  # backbones run in threads, metrics are read in the event loop
        self._held: list[_Batch] = []
        self._waiting = 0
        """Predictions held."""
        self._next = -math.inf
        """When the state is to be changed [`perf_counter` seconds]."""

    def observe(
        self,
        users: Sequence[Hashable],
        scores: FloatArray,
        heads: DoubleArray,
        trained: tuple[BoolArray, BoolArray],
        soon: Callable[..., object] | None = None,
    ) -> None:
        """Watch B predictions. Of each user only the first in a round is evidence.

        Args:
            users: [B], who they are for.
            scores: [B, S] as `Scorer` gives them; without a finite spread a prediction is as strange as can be.
            heads: [B, n] head ratings, only to be shown: of the batches that are counted together, the last SHOWN.
            trained: [B] each, whether the user and the item were trained on.
            soon: calls a function with its arguments later, in a turn of the event loop of its own, so that these
                predictions do not wait for what there is to do; without it that is done at once.

        """
        with self._lock:
            if self._ration is not None and not self._ration.grants(len(users), time.perf_counter()):
                self._watched.passed_over += len(users)
                return
            self._held.append((users, scores, heads, *trained))
            self._waiting += len(users)
            due = self._due()
        if due:
            self._go_on(soon)

    def _due(self) -> Callable[[], object] | None:
        """What is to be done now, if anything."""
        counted = self._blocks or self._watched.predictions
        if (counted or self._waiting >= BLOCK) and time.perf_counter() >= self._next:
            return self._hand_over if counted else self._take_in
        return self._take_in if self._waiting >= CHUNK or len(self._held) >= BATCHES else None

    def _go_on(self, soon: Callable[..., object] | None) -> None:
        """Do what is due, a turn for each."""
        if soon is not None:
            soon(self._turn, soon)
            return
        while self._turn():
            pass

    def _turn(self, soon: Callable[..., object] | None = None) -> bool:
        with self._lock:
            if work := self._due():
                work()
            more = self._due() is not None
        if more and soon is not None:
            soon(self._turn, soon)
        return more

    def _take_in(self) -> None:
        """Count what is held."""
        if not self._held:
            return
        start = time.perf_counter()
        users_of, scores_of, heads_of, *trained_of = zip(*self._held, strict=True)
        # Joined as bytes, in a third of the time that numpy takes.
        users, known = list(chain.from_iterable(users_of)), b"".join(trained_of[0] + trained_of[1])
        scores = np.frombuffer(b"".join(scores_of), np.float32).reshape(len(users), -1).T.copy()
        self._held.clear()
        self._waiting = 0
        self._watch(scores, np.concatenate(heads_of[-SHOWN:]), known)
        heard = np.frombuffer(bytes(self._rounds.heard(users)), np.bool_).nonzero()[0]
        self._count(self._bins(scores, known).take(heard, axis=1))
        self._watched.seconds += time.perf_counter() - start

    def _watch(self, scores: FloatArray, heads: DoubleArray, known: bytes) -> None:
        """Add up what is only shown of scores [S, B], of which those without a finite spread become NaN."""
        watched, spreads = self._watched, scores[0]
        watched.predictions += len(spreads)
        watched.new += known.count(0, 0, len(spreads)), known.count(0, len(spreads))
        if not math.isfinite(total := float(spreads.sum(dtype=np.float64))):
            finite = np.isfinite(spreads)
            scores[:, ~finite] = np.nan
            total = float(spreads[finite].sum(dtype=np.float64))
        watched.spread_sum += total
        watched.spreads += np.bincount(_EDGES.searchsorted(spreads), minlength=len(DISAGREEMENT) + 1)
        if not (rated := np.isfinite(heads)).all():
            heads = heads[rated.all(axis=1)]
        each = np.ones(len(heads))
        watched.heads += each @ heads, each @ (heads * heads)
        watched.rated += len(heads)

    def _bins(self, scores: FloatArray, known: bytes) -> AnyArray:
        """The bins [R, B] of scores [S, B], as `bins_of` in less time for a few, and of ids [2 · B] that are known."""
        above = np.empty((len(self._begun), scores.shape[1]), np.uint8)
        below = np.less(scores, self._edges).view(np.uint8)  # [BINS - 1, S, B], whether each further bin begins above
        np.add.reduce(below, axis=0, dtype=np.uint8, out=above[: len(scores)])
        if self._new:
            np.multiply(np.frombuffer(known, np.uint8).reshape(2, -1), BINS - 1, out=above[len(scores) :])
        return (BINS - 1) - above

    def _count(self, bins: AnyArray) -> None:
        """Fill blocks with the next predictions that are evidence, which are in these bins [R, B]."""
        bins = np.concatenate([self._begun, bins], axis=1)
        full = bins.shape[1] // BLOCK * BLOCK
        self._begun = bins[:, full:].copy()
        if full:
            self._blocks.append(block_counts(bins[:, :full]))
            if sum(blocks.shape[-1] for blocks in self._blocks) >= MANY:
                self._next = -math.inf

    def settle(self) -> None:
        """Hand over what was watched; another time, if another process is just at it."""
        with self._lock:
            self._take_in()
            while self._hand_over() and self._blocks:
                pass

    def _hand_over(self) -> bool:
        """Change the state by what was watched; whether no other process was just at it."""
        start = time.perf_counter()
        self._next = start + PAUSE_S
        with self._state.try_change() as record:
            if record is None:
                if len(self._blocks) > _KEPT:
                    self._blocks = [np.concatenate(self._blocks, axis=-1).sum(axis=-1, keepdims=True)]
                return False
            watched, self._watched = self._watched, Watched.nothing(self._heads)
            self.detector.note(record, watched)
            if self._blocks:
                blocks = np.concatenate(self._blocks, axis=-1)
                self._apply(record, blocks[..., : 2 * MANY])
                self._blocks.clear()
                if blocks.shape[-1] > 2 * MANY:
                    self._blocks.append(blocks[..., 2 * MANY :])
                    self._next = -math.inf
        self._watched.seconds += time.perf_counter() - start
        return True

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
        self._next = math.inf  # a turn that is still to come finds nothing to do
        self._state.close()

    def _apply(self, record: Record, blocks: Int64Array) -> None:
        if self.detector.apply(record, blocks, self._clock()):
            one, stream = self.detector.alarms(record)[-1]
            log.warning("shift alarm %d: %s %s, evidence %.1f", one["id"], stream.score, stream.kind, one["evidence"])


def block_counts(bins: AnyArray) -> Int64Array:
    """Counts [R, BINS, N] of N blocks of predictions whose scores are in these bins [R, N · BLOCK]."""
    rows, blocks = len(bins), bins.shape[1] // BLOCK
    places = BINS * np.arange(rows, dtype=np.int32)[:, None] + bins
    places *= blocks
    places += np.arange(blocks, dtype=np.int32).repeat(BLOCK)
    return np.bincount(places.ravel(), minlength=rows * BINS * blocks).reshape(rows, BINS, blocks)


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
