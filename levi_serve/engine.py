"""The engine: one version under load, from looked-up ids to finished answers.

Entity views score in the event loop itself: a run of 32 pairs takes less time than handing it to a thread and back.
Whatever takes longer, a backbone or the whole catalogue, runs in a thread of its lane.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, ParamSpec, TypeVar

import numpy as np
import orjson

from levi_serve.batcher import Batcher, Job, Queue
from levi_serve.bundle import AnyArray, BoolArray, Int8Array
from levi_serve.bundle.rows import HalfArray, Id
from levi_serve.bundle.tensors import MASK
from levi_serve.cores import lower_priority
from levi_serve.encoder import Encoder, NewEntity
from levi_serve.errors import ModelOutputError, ServeError, UnavailableError, UnknownIdError, UnsupportedError
from levi_serve.metrics import Metrics
from levi_serve.monitor.watch import Monitor
from levi_serve.predictor import (
    Encoded,
    GivenPair,
    Known,
    Pair,
    PairReader,
    PairText,
    Predictor,
    Probe,
    Scores,
    entity_feeds,
    ids_of,
    merged,
)
from levi_serve.queues import Lengths, Turns
from levi_serve.recommend import Recommender, ranked
from levi_serve.store import Given, Side, State, Store

if TYPE_CHECKING:  # the core runs without the web framework that the edge brings along
    from levi_serve.wire import Wire

P = ParamSpec("P")
T = TypeVar("T")

_PERMITS = 4
"""Batches of entity views in flight; all but one wait for rows from elsewhere."""
_READ_BATCH = 64
_MAX_ASKS = 64
"""Recommendations that wait: each is a pass through the whole catalogue."""
_NOTHING = np.empty(0, np.int64)


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
    """Items that wait in one lane."""
    on_missing: Literal["degrade", "error"] = "degrade"
    """What becomes of an entity whose row is elsewhere and cannot be had: the unknown entity's row, or an error."""


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

    def admit(self, deadline: float) -> None:
        """Before a list is read: reading one costs so much that it is not done for a list that is then refused.

        Raises:
            OverloadedError: there may be no room for it. Half of the queue is enough for the longest.

        """
        self._score.admit(self._limits.max_queue // 2, deadline, perf_counter())

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

    def _lane(
        self,
        name: str,
        run: Callable[[Sequence[Any]], Any],
        queue: Queue[Any, Any],
        permits: int = 1,
        max_queue: int | None = None,
    ) -> Any:
        """A batcher whose queue and runs are in the metrics."""
        observe = self._metrics.observe_batches(name)
        limit = max_queue or self._limits.max_queue
        lane = Batcher[Any, Any](run, queue, limit, observe, permits, self._metrics.count_shed(name))
        self._unwatch.append(self._metrics.watch_queue(name, lambda: lane.waiting, limit))
        self._lanes.append(lane)
        return lane

    def _threaded(self, name: str, work: Callable[[Any], T], threads: int = 1) -> Callable[[Any], asyncio.Future[T]]:
        """`work` in a thread of its own, or several."""
        thread = ThreadPoolExecutor(threads, thread_name_prefix=name, initializer=lower_priority)
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
            found = (state[0] | state[1]) == State.FOUND if degraded else None
            self._show(self._monitor, pairs, scores, trained, found)
        answers: list[Any] = self._wire.answers(pairs, scores, trained, state if degraded else None)
        if not scores.usable.all():
            for i in np.flatnonzero(~scores.usable).tolist():
                answers[i] = ModelOutputError()
        return answers

    @staticmethod
    def _show(
        monitor: Monitor,
        pairs: Sequence[Pair],
        scores: Scores,
        trained: tuple[BoolArray, BoolArray],
        found: BoolArray | None,
    ) -> None:
        """The pairs that clients asked for and of which both sides were `found` [B]; None: all were."""
        users: list[Any] = [user.row.tobytes() if isinstance(user, Encoded) else user for user, _ in pairs]
        if Probe in map(type, pairs):
            asked = np.array([type(pair) is not Probe for pair in pairs])
            found = asked if found is None else found & asked
        if found is None:
            monitor.observe(users, scores.watched, scores.heads, scores.usable, trained)
        elif found.any():
            users = [users[i] for i in np.flatnonzero(found).tolist()]
            of = scores.watched[found], scores.heads[found], scores.usable[found]
            monitor.observe(users, *of, (trained[0][found], trained[1][found]))

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


class EntityEngine(Engine):
    """Entity views: known entities have rows; new ones are encoded in a lane of their own and slow nobody else."""

    def __init__(
        self,
        store: Store,
        wire: Wire,
        limits: Limits,
        metrics: Metrics,
        predictor: Predictor,
        encoder: Encoder,
        recommender: Recommender | None = None,
    ) -> None:
        """One version's parts; without a table of items nothing can be recommended."""
        super().__init__(store, wire, limits, metrics)
        self._predictor = predictor
        self._encoder = encoder
        self._inferred = {lane: metrics.observe_inference(lane) for lane in ("encode", "recommend", "score")}
        self._elsewhere = self._threaded("score", self._scored, _PERMITS) if predictor.waits else None
        self._tokenised, self._tokens = metrics.observe_tokenising("encode"), metrics.count_tokens("encode")
        encode = self._threaded("encode", self._encoded)
        self._encode: Batcher[NewEntity, HalfArray] = self._lane("encode", encode, Turns(limits.encode_batch))
        self._recommender = recommender
        best = self._threaded("recommend", self._best)
        self._recommend: Batcher[_Ask, list[bytes]] = self._lane("recommend", best, Turns(1), max_queue=_MAX_ASKS)
        self._score = self._lane("score", self._run, Turns(limits.max_batch), _PERMITS)

    def crowded(self, deadline: float, now: float) -> int:
        """0, or the seconds after which a pair that `put` would refuse may be tried again."""
        return self._score.crowded(1, deadline, now)

    def put(self, pair: Pair, deadline: float, reply: Callable[[list[bytes] | Exception], None]) -> Job[Pair, bytes]:
        """`predict` for one pair of ids, without a task or a future; `reply` is called later with the answer.

        Raises:
            OverloadedError: too much is waiting.

        """
        return self._score.put((pair,), deadline, reply)

    async def predict(self, pairs: Sequence[GivenPair | Pair], deadline: float = math.inf) -> list[bytes]:
        """New entities first, then all at once."""
        return await self._score.submit(await self._with_rows(pairs, deadline), deadline)

    async def _with_rows(self, pairs: Sequence[GivenPair | Pair], deadline: float) -> list[Pair]:
        """Each different new entity is encoded once, unless its row is remembered."""
        new = {
            _key(side, given): NewEntity(side, given)
            for pair in pairs
            for side, given in enumerate(pair)
            if isinstance(given, Mapping)
        }
        rows = await self._rows(new, deadline) if new else {}

        def known(side: int, given: Given | Encoded) -> Known:
            return Encoded(given, rows[_key(side, given)]) if isinstance(given, Mapping) else given

        return [_kind(pair)(known(0, pair.user), known(1, pair.item)) for pair in pairs]

    async def _rows(self, new: Mapping[bytes, NewEntity], deadline: float) -> dict[bytes, HalfArray]:
        """The row [W] of each new entity, by its key."""
        recalled = dict(zip(new, await self._store.recall(list(new)), strict=True))
        rows = {key: row for key, row in recalled.items() if row is not None}
        missing = [key for key in new if key not in rows]
        for key, row in zip(missing, await self._encode.submit([new[k] for k in missing], deadline), strict=True):
            rows[key] = row
            self._store.remember(key, row)
        return rows

    def _encoded(self, entities: Sequence[NewEntity]) -> list[HalfArray]:
        feeds = _timed(self._tokenised, self._encoder.read, entities)
        self._tokens(feeds[MASK])
        return _timed(self._inferred["encode"], self._encoder.run, feeds)

    async def _run(self, pairs: Sequence[Pair]) -> list[bytes | Exception]:
        users, items = await self._look_up([pair[0] for pair in pairs], [pair[1] for pair in pairs])
        feeds = entity_feeds(users.rows, items.rows)
        scores = self._scored(feeds) if self._elsewhere is None else await self._elsewhere(feeds)
        answers = self._answers(pairs, scores, (users.trained, items.trained), (users.state, items.state))
        for i in np.flatnonzero(users.state | items.state).tolist():
            answers[i] = self._missing(pairs[i], (users.state[i], items.state[i])) or answers[i]
        return answers

    async def recommend(self, user: Given, k: int, exclude_rated: bool, deadline: float = math.inf) -> list[bytes]:
        """One pass through the catalogue, in the thread of its lane."""
        if self._recommender is None:
            raise UnsupportedError(
                "the whole catalogue can be rated only where its table is, and this server keeps none; "
                "name the candidates in POST /rank"
            )
        exclude = self._recommender.rated_by(user) if exclude_rated else _NOTHING
        known: Known
        if isinstance(user, Mapping):
            (row,) = (await self._rows({_key(0, user): NewEntity(0, user)}, deadline)).values()
            known = Encoded(user, row)
        else:
            known = user
        side, _ = await self._look_up([known], [])
        if error := self._missing([known], side.state.tolist()):
            raise error
        ask = _Ask(known, side, k, exclude)
        try:
            (answers,) = await self._recommend.submit([ask], deadline)
        finally:
            ask.over = True
        return answers

    def _scored(self, feeds: dict[str, AnyArray]) -> Scores:
        return _timed(self._inferred["score"], self._predictor.score, feeds)

    def _best(self, asks: Sequence[_Ask]) -> list[list[bytes]]:
        assert self._recommender is not None
        return [self._recommended(self._recommender, ask) for ask in asks]

    def _recommended(self, recommender: Recommender, ask: _Ask) -> list[bytes]:
        side, items = ask.side, recommender.items
        best = _timed(
            self._inferred["recommend"], recommender.top, side.rows[0], ask.k, ask.exclude, lambda: not ask.over
        )
        self._metrics.left_out(best.unusable)
        numbers = best.numbers.tolist()
        trained = side.trained.repeat(len(numbers)), items.trained[best.numbers]
        state = side.state.repeat(len(numbers)), np.zeros(len(numbers), np.int8)
        pairs = [Pair(ask.user, items.id(number)) for number in numbers]
        answers = self._wire.answers(pairs, best.scores, trained, state if side.state.any() else None)
        return [self._wire.with_attributes(a, items.attributes(n)) for a, n in zip(answers, numbers, strict=True)]


@dataclass(slots=True, eq=False)
class _Ask:
    """A wish for recommendations."""

    user: Known
    side: Side
    """The same, looked up."""
    k: int
    exclude: AnyArray
    over: bool = False
    """Nobody waits for the answer any more: its time is up, or its caller has gone."""


class _Read(NamedTuple):
    """A pair of pair views between its two lanes."""

    pair: Pair
    text: PairText
    trained: tuple[bool, bool]
    state: tuple[int, int]


class PairEngine(Engine):
    """Pair views: every pair is a sentence through the backbone; sentences of like length run together."""

    def __init__(
        self,
        store: Store,
        wire: Wire,
        limits: Limits,
        metrics: Metrics,
        predictor: Predictor,
        reader: PairReader,
        unknown: HalfArray,
    ) -> None:
        """`unknown` [2, W] are the rows of an entity without id, user and item."""
        super().__init__(store, wire, limits, metrics)
        self._predictor, self._reader, self._unknown = predictor, reader, unknown
        self._tokenised, self._tokens = metrics.observe_tokenising("tokenise"), metrics.count_tokens("score")
        self._inferred = metrics.observe_inference("score")
        self._tokenise = self._threaded("tokenise", self._texts)
        self._read: Batcher[Pair, _Read] = self._lane("tokenise", self._look_up_and_read, Turns(_READ_BATCH), 2)
        line = Lengths[_Read, bytes](
            lambda read: len(read.text.tokens), limits.max_batch, limits.max_tokens, window=8 * limits.max_batch
        )
        self._score = self._lane("score", self._threaded("score", self._run), line)

    async def predict(self, pairs: Sequence[GivenPair | Pair], deadline: float = math.inf) -> list[bytes]:
        """Through both lanes; where the second has no room, nothing is read for it."""
        self._score.admit(len(pairs), deadline, perf_counter())
        known = [_kind(pair)(self._known(0, pair.user), self._known(1, pair.item)) for pair in pairs]
        return await self._score.submit(await self._read.submit(known, deadline), deadline)

    async def recommend(self, user: Given, k: int, exclude_rated: bool, deadline: float = math.inf) -> list[bytes]:
        """Not with these views."""
        raise UnsupportedError(
            "with pair views the whole catalogue would be a sentence through the backbone for every item; "
            "name the candidates in POST /rank, or export a model with entity views"
        )

    def _known(self, side: int, given: Given | Encoded) -> Known:
        return Encoded(given, self._unknown[side]) if isinstance(given, Mapping) else given

    async def _look_up_and_read(self, pairs: Sequence[Pair]) -> Sequence[_Read | Exception]:
        sides = await self._look_up([pair[0] for pair in pairs], [pair[1] for pair in pairs])
        return await self._tokenise((pairs, sides))

    def _texts(self, looked_up: tuple[Sequence[Pair], tuple[Side, Side]]) -> list[_Read | Exception]:
        pairs, sides = looked_up
        states = list(zip(*(side.state.tolist() for side in sides), strict=True))
        trained = list(zip(*(side.trained.tolist() for side in sides), strict=True))
        errors = list(map(self._missing, pairs, states))
        usable = [i for i, error in enumerate(errors) if error is None]
        given = [_given(pairs[i]) for i in usable]
        texts = dict(zip(usable, _timed(self._tokenised, self._reader.read, given, sides, usable), strict=True))
        return [
            error or _Read(pair, texts[i], trained[i], states[i])
            for i, (pair, error) in enumerate(zip(pairs, errors, strict=True))
        ]

    def _run(self, reads: Sequence[_Read]) -> list[bytes | Exception]:
        feeds = self._reader.feeds([read.text for read in reads])
        self._tokens(feeds[MASK])
        scores = _timed(self._inferred, self._predictor.score, feeds)
        trained, state = np.array([read.trained for read in reads]).T, np.array([read.state for read in reads]).T
        return self._answers([read.pair for read in reads], scores, (trained[0], trained[1]), (state[0], state[1]))


def _timed(observe: Callable[[float], None], work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do some work; `observe` hears how many seconds it took."""
    start = perf_counter()
    done = work(*args, **kwargs)
    observe(perf_counter() - start)
    return done


def _given(pair: Pair) -> GivenPair:
    return GivenPair(*(known.given if isinstance(known, Encoded) else known for known in pair))


def _kind(pair: GivenPair | Pair) -> type[Pair]:
    """What a looked-up pair is made as: one that no client asked for stays so."""
    return Probe if isinstance(pair, Probe) else Pair


def _key(side: int, attributes: Mapping[str, Any]) -> bytes:
    """A digest that equal new entities share."""
    return hashlib.sha256(f"{side}{json.dumps(attributes, sort_keys=True)}".encode()).digest()
