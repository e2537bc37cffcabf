"""The engine: one version under load, from looked-up ids to finished answers. What the two kinds of views share."""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

import numpy as np
import orjson

from levi_serve.batcher import Batcher, Queue
from levi_serve.bundle import BoolArray, Int8Array
from levi_serve.bundle.rows import HalfArray, Id
from levi_serve.bundle.schema import Attributes
from levi_serve.cores import lower_priority
from levi_serve.errors import ModelOutputError, ServeError, UnavailableError, UnknownIdError
from levi_serve.metrics import Metrics
from levi_serve.monitor.watch import Monitor
from levi_serve.predictor import Encoded, GivenPair, Known, Pair, Probe, Scores, ids_of, merged
from levi_serve.recommend import ranked
from levi_serve.store import Given, Side, State, Store

if TYPE_CHECKING:  # the core runs without the web framework that the edge brings along
    from levi_serve.wire import Wire

P = ParamSpec("P")
T = TypeVar("T")

_FOUND = int(State.FOUND)  # numpy asks an enum for many things before it compares


@dataclass(frozen=True)
class Limits:
    """How much at once, and how much may wait."""

    max_batch: int
    """Pairs in one run of the model."""
    max_tokens: int
    """Tokens in one run of a backbone, padding included (pair views)."""
    encode_batch: int
    """New entities in one run of the backbone (entity views)."""
    max_queue: int
    """Items that wait in one lane, at least twice as many as the longest list has."""
    on_missing: Literal["degrade", "error"] = "degrade"
    """What becomes of an entity whose row is elsewhere and cannot be had: the unknown entity's row, or an error."""
    one_core: bool = False
    """Whether all threads share one core: then the encoder gets what nobody else wants of it, and what a run of one
    pair costs is taken from the encoder.
    """

    @property
    def longest(self) -> int:
        """Half of the queue: the longest list fits in."""
        return self.max_queue // 2


class Engine(ABC):
    """A version's lanes."""

    def __init__(self, store: Store, wire: Wire, limits: Limits, metrics: Metrics) -> None:
        """Rows come from `store`, answers leave as `wire` has them."""
        self._store = store
        self._wire = wire
        self._limits = limits
        self._metrics = metrics
        self._count_lookups = metrics.count_lookups()
        self._score: Batcher[Any, bytes]
        """The last lane of every prediction."""
        self._monitor: Monitor | None = None
        self._threads: list[ThreadPoolExecutor] = []
        self._unwatch: list[Callable[[], None]] = []
        self._lanes: list[Batcher[Any, Any]] = []
        """In the order in which a request passes them, so that closing one after the other answers all of it."""

    @abstractmethod
    async def predict(self, pairs: Sequence[GivenPair | Pair], deadline: float = math.inf) -> list[bytes]:
        """Answers in order, each a JSON object.

        Raises:
            UnknownIdError: an id is not in the catalogue.
            UnavailableError: an id's row cannot be had and `on_missing` is "error".
            OverloadedError: too much is waiting.
            DeadlineError: `deadline` [`perf_counter` seconds] has passed.
            ModelOutputError: the model gave no number for one of them.

        """

    @abstractmethod
    async def recommend(self, user: Given, k: int, exclude_rated: bool, deadline: float = math.inf) -> list[bytes]:
        """Predictions for the best `k` items of the catalogue, with their attributes, best first.

        Raises:
            UnsupportedError: this model, or the tables kept here, do not allow it.
            ServeError: as `predict`.

        """

    @abstractmethod
    async def row(self, side: int, attributes: Attributes, deadline: float = math.inf) -> HalfArray:
        """The row [W] of a user (side 0) or an item with these attributes and no trained id; raises what `predict` does
        about lanes.
        """

    def crowded(self, deadline: float, now: float) -> int:
        """0, or the seconds after which a request that would be refused may be tried again. Whatever it asks for, there
        must be room for the longest list: a queue fuller than that would hold single pairs alone, of more connections
        than caches do.
        """
        return self._score.crowded(self._limits.longest, deadline, now)

    def admit(self, deadline: float) -> None:
        """Before a list is read: reading one costs so much that it is not done for a list that is then refused.

        Raises:
            OverloadedError: it would be `crowded`.

        """
        self._score.admit(self._limits.longest, deadline, perf_counter())

    @property
    def waiting(self) -> int:
        """Pairs that wait for their last run."""
        return self._score.waiting

    async def rank(self, user: Given, items: Sequence[Given], deadline: float = math.inf) -> list[bytes]:
        """Predictions for these items, best first; raises what `predict` raises."""
        answers = await self.predict([GivenPair(user, item) for item in items], deadline)
        ratings = [orjson.loads(answer)["rating"] for answer in answers]
        return [answers[place] for place in ranked(items, ratings)]

    async def unknown(self, user: Id, item: Id) -> tuple[State, State]:
        """What the store says of two ids."""
        users, items = await self._look_up([user], [item])
        return State(users.state[0]), State(items.state[0])

    def watch(self, monitor: Monitor) -> None:
        """Show the monitor every prediction from now on, but those of recommendations: nobody asked for these items."""
        self._monitor = monitor

    async def close(self) -> None:
        """Answer what was accepted and end."""
        for lane in self._lanes:
            await lane.close()
        for threads in self._threads:
            threads.shutdown()
        for end in self._unwatch:
            end()
        self._unwatch.clear()
        await self._store.close()

    def dissolve(self) -> None:
        """After `close`: let go of everything now. An engine and its lanes hold one another, and the garbage collector,
        which would find that out, stops the event loop for some milliseconds.
        """
        vars(self).clear()

    def _lane(
        self,
        name: str,
        run: Callable[[Sequence[Any]], Any],
        queue: Queue[Any, Any],
        permits: int = 1,
        max_queue: int | None = None,
        patient: Callable[[], bool] = lambda: False,
    ) -> Any:
        """A batcher whose queue and runs are in the metrics."""
        observe = self._metrics.observe_batches(name)
        limit = max_queue or self._limits.max_queue
        lane = Batcher[Any, Any](run, queue, limit, observe, permits, self._metrics.count_shed(name), patient)
        self._unwatch.append(self._metrics.watch_queue(name, lambda: lane.waiting, limit))
        self._lanes.append(lane)
        return lane

    def _threaded(
        self,
        name: str,
        work: Callable[[Any], T],
        threads: int = 1,
        priority: Callable[[], None] = lower_priority,
    ) -> Callable[[Any], asyncio.Future[T]]:
        """`work` in a thread of its own, or several, which begin with setting their `priority`."""
        thread = ThreadPoolExecutor(threads, thread_name_prefix=name, initializer=priority)
        self._threads.append(thread)

        def whole(items: Any) -> T:
            try:
                return work(items)
            except StopIteration as error:  # a future cannot carry it: its callers would wait for ever
                raise RuntimeError("the run ended early") from error

        return lambda items: asyncio.get_running_loop().run_in_executor(thread, whole, items)

    async def _look_up(self, users: Sequence[Known], items: Sequence[Known]) -> tuple[Side, Side]:
        ids = ids_of(users), ids_of(items)
        sides = self._store.at_hand(*ids) or await self._store.fetch(*ids)
        self._count_lookups(self._store.counts)
        return merged(sides[0], users), merged(sides[1], items)

    def _answers(
        self,
        pairs: Sequence[Pair],
        scores: Scores,
        trained: tuple[BoolArray, BoolArray],
        state: tuple[Int8Array, Int8Array],
    ) -> list[bytes | Exception]:
        """One per pair. `trained` and `state` [B] are the user's and the item's."""
        degraded = state[0].any() or state[1].any()
        if self._monitor is not None:
            found = (state[0] | state[1]) == _FOUND if degraded else None
            self._show(self._monitor, pairs, scores, trained, found)
        answers: list[Any] = self._wire.answers(pairs, scores, trained, state if degraded else None)
        if not scores.usable.all():
            for i in np.flatnonzero(~scores.usable).tolist():
                answers[i] = ModelOutputError()
        return answers

    def _show(
        self,
        monitor: Monitor,
        pairs: Sequence[Pair],
        scores: Scores,
        trained: tuple[BoolArray, BoolArray],
        found: BoolArray | None,
    ) -> None:
        """The pairs that clients asked for and of which both sides were `found` [B]; None: all were."""
        users = [pair[0] for pair in pairs]
        if Probe in map(type, pairs):
            asked = np.array([type(pair) is not Probe for pair in pairs])
            found = asked if found is None else found & asked
        if found is None:
            monitor.observe(users, scores.watched, scores.heads, trained, self._soon)
        elif found.any():
            users = [users[i] for i in np.flatnonzero(found).tolist()]
            of = scores.watched[found], scores.heads[found]
            monitor.observe(users, *of, (trained[0][found], trained[1][found]), self._soon)

    def _soon(self, work: Callable[..., object], *args: object) -> None:
        """Do what replies need not wait for."""
        work(*args)

    def _missing(self, pair: Sequence[Known], states: Sequence[int]) -> ServeError | None:
        """Why a pair, or a user alone, cannot be rated, from the states of the sides."""
        for side, (known, state) in enumerate(zip(pair, states, strict=True)):
            assert not isinstance(known, Encoded) or state == State.FOUND
            if state == State.UNKNOWN:
                return UnknownIdError(side, known)  # type: ignore[arg-type] # see the assertion
            if state == State.DEGRADED:
                self._metrics.degraded(side)
                if self._limits.on_missing == "error":
                    return UnavailableError(side, known)  # type: ignore[arg-type]
        return None


def timed(observe: Callable[[float], None], work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do some work; `observe` hears how many seconds it took."""
    start = perf_counter()
    done = work(*args, **kwargs)
    observe(perf_counter() - start)
    return done


def kind_of(pair: GivenPair | Pair) -> type[Pair]:
    """What a looked-up pair is made as: one that no client asked for stays so."""
    return Probe if isinstance(pair, Probe) else Pair
