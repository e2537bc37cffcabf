"""The engine of pair views: every pair is a sentence through the backbone, in threads; sentences of like length share a
run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from levi_serve.batcher import Batcher
from levi_serve.bundle.rows import HalfArray
from levi_serve.bundle.schema import Attributes
from levi_serve.bundle.tensors import MASK
from levi_serve.engine import Engine, Limits, kind_of, timed
from levi_serve.errors import UnsupportedError
from levi_serve.metrics import Metrics
from levi_serve.predictor import Encoded, GivenPair, Known, Pair, PairReader, PairText, Predictor
from levi_serve.queues import Lengths, Turns
from levi_serve.store import Given, Side, Store

if TYPE_CHECKING:
    from levi_serve.wire import Wire

_READ_BATCH = 64


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
        known = [kind_of(pair)(self._known(0, pair.user), self._known(1, pair.item)) for pair in pairs]
        return await self._score.submit(await self._read.submit(known, deadline), deadline)

    async def recommend(self, user: Given, k: int, exclude_rated: bool, deadline: float = math.inf) -> list[bytes]:
        """Not with these views."""
        raise UnsupportedError(
            "with pair views the whole catalogue would be a sentence through the backbone for every item; "
            "name the candidates in POST /rank, or export a model with entity views"
        )

    async def row(self, side: int, attributes: Attributes, deadline: float = math.inf) -> HalfArray:
        """Its text is read with each pair: the row is everybody's."""
        row: HalfArray = self._unknown[side]
        return row

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
        texts = dict(zip(usable, timed(self._tokenised, self._reader.read, given, sides, usable), strict=True))
        return [
            error or _Read(pair, texts[i], trained[i], states[i])
            for i, (pair, error) in enumerate(zip(pairs, errors, strict=True))
        ]

    def _run(self, reads: Sequence[_Read]) -> list[bytes | Exception]:
        feeds = self._reader.feeds([read.text for read in reads])
        self._tokens(feeds[MASK])
        scores = timed(self._inferred, self._predictor.score, feeds)
        trained, state = np.array([read.trained for read in reads]).T.copy(), np.array([read.state for read in reads]).T
        return self._answers([read.pair for read in reads], scores, (trained[0], trained[1]), (state[0], state[1]))


def _given(pair: Pair) -> GivenPair:
    return GivenPair(*(known.given if isinstance(known, Encoded) else known for known in pair))
