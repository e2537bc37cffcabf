"""The engine of entity views: known entities have rows; new ones are encoded in a lane of their own and slow nobody.

Heads score in the event loop itself: a run of 32 pairs takes less time than handing it to a thread and back. Whatever
takes longer, the backbone or the whole catalogue, runs in a thread of its lane.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from levi_serve.batcher import Batcher, Job
from levi_serve.bundle import AnyArray
from levi_serve.bundle.rows import HalfArray
from levi_serve.bundle.schema import Attributes
from levi_serve.bundle.tensors import MASK
from levi_serve.cores import lower_priority, lowest_priority
from levi_serve.encoder import Encoder, NewEntity
from levi_serve.engine import Engine, Limits, kind_of, timed
from levi_serve.errors import ModelOutputError, UnsupportedError
from levi_serve.metrics import Metrics
from levi_serve.predictor import Encoded, GivenPair, Known, Pair, Predictor, Scores, entity_feeds
from levi_serve.queues import Turns
from levi_serve.recommend import Recommender
from levi_serve.store import Given, Side, Store, key_of

if TYPE_CHECKING:
    from levi_serve.wire import Wire

_PERMITS = 4
"""Batches in flight; all but one wait for rows from elsewhere."""
_MAX_ASKS = 64
"""Recommendations that wait: each is a pass through the whole catalogue."""
_NOTHING = np.empty(0, np.int64)


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
        priority = lowest_priority if limits.one_core else lower_priority
        encode = self._threaded("encode", self._encoded, priority=priority)
        self._encode: Batcher[NewEntity, HalfArray] = self._lane("encode", encode, Turns(limits.encode_batch))
        self._recommender = recommender
        best = self._threaded("recommend", self._best)
        self._recommend: Batcher[_Ask, list[bytes]] = self._lane("recommend", best, Turns(1), max_queue=_MAX_ASKS)
        self._score = self._lane("score", self._run, Turns(limits.max_batch), _PERMITS, patient=self._shares_its_core)

    def put(
        self, pairs: Sequence[Pair], deadline: float, reply: Callable[[list[bytes] | Exception], None]
    ) -> Job[Pair, bytes]:
        """`predict` for pairs of ids, without a task or a future; `reply` is called later with the answers.

        Raises:
            OverloadedError: too much is waiting.

        """
        return self._score.put(pairs, deadline, reply)

    async def predict(self, pairs: Sequence[GivenPair | Pair], deadline: float = math.inf) -> list[bytes]:
        """New entities first, then all at once."""
        return await self._score.submit(await self._with_rows(pairs, deadline), deadline)

    async def _with_rows(self, pairs: Sequence[GivenPair | Pair], deadline: float) -> list[Pair]:
        """Each different new entity is encoded once, unless its row is remembered."""
        new = {
            key_of(side, given): NewEntity(side, given)
            for pair in pairs
            for side, given in enumerate(pair)
            if isinstance(given, Mapping)
        }
        rows = await self._rows(new, deadline) if new else {}

        def known(side: int, given: Given | Encoded) -> Known:
            return Encoded(given, rows[key_of(side, given)]) if isinstance(given, Mapping) else given

        return [kind_of(pair)(known(0, pair.user), known(1, pair.item)) for pair in pairs]

    async def row(self, side: int, attributes: Attributes, deadline: float = math.inf) -> HalfArray:
        """From the encoder, or remembered."""
        (row,) = (await self._rows({key_of(side, attributes): NewEntity(side, attributes)}, deadline)).values()
        if not np.isfinite(row).all():
            raise ModelOutputError
        return row

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
        feeds = timed(self._tokenised, self._encoder.read, entities)
        self._tokens(feeds[MASK])
        return timed(self._inferred["encode"], self._encoder.run, feeds)

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
            (row,) = (await self._rows({key_of(0, user): NewEntity(0, user)}, deadline)).values()
            known = Encoded(user, row)
        else:
            known = user
        side, _ = await self._look_up([known], [])
        if error := self._missing([known], side.state.tolist()):
            raise error
        if not side.trained[0]:  # one that was erased and put again has rated nothing
            exclude = _NOTHING
        ask = _Ask(known, side, k, exclude)
        try:
            (answers,) = await self._recommend.submit([ask], deadline)
        finally:
            ask.over = True
        return answers

    def _soon(self, work: Callable[..., object], *args: object) -> None:
        asyncio.get_running_loop().call_soon(work, *args)

    def _shares_its_core(self) -> bool:
        """Whether the encoder is at work on the core that pairs are scored on: runs of one would leave it no time."""
        return self._limits.one_core and self._encode.busy

    def _scored(self, feeds: dict[str, AnyArray]) -> Scores:
        return timed(self._inferred["score"], self._predictor.score, feeds)

    def _best(self, asks: Sequence[_Ask]) -> list[list[bytes]]:
        assert self._recommender is not None
        return [self._recommended(self._recommender, ask) for ask in asks]

    def _recommended(self, recommender: Recommender, ask: _Ask) -> list[bytes]:
        side, items = ask.side, recommender.catalogue()
        best = timed(
            self._inferred["recommend"], recommender.top, side.rows[0], ask.k, ask.exclude, lambda: not ask.over, items
        )
        self._metrics.left_out(best.unusable)
        numbers = best.numbers.tolist()
        trained = side.trained.repeat(len(numbers)), items.trained(best.numbers)
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
