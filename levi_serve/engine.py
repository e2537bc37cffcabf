"""The engine: one version under load. Every request sees one version from its look-up to its answer."""

from __future__ import annotations

from collections.abc import Sequence

from levi_serve.batcher import Batcher
from levi_serve.bundle.rows import HalfArray
from levi_serve.encoder import NewEntity
from levi_serve.metrics import Metrics
from levi_serve.predictor import GivenPair, Pair, Prediction, Predictor, new_entities, with_rows


class Engine:
    """A predictor behind two batchers: new entities are encoded in a lane of their own and do not slow known ones."""

    def __init__(
        self, predictor: Predictor, max_batch: int, encode_batch: int, max_queue: int, metrics: Metrics
    ) -> None:
        """A run scores `max_batch` pairs or encodes `encode_batch` entities; `max_queue` holds for either lane."""
        self._predictor = predictor
        self._score = Batcher[Pair, Prediction](
            "score", predictor.score, max_batch, max_queue, metrics.observe_batches("score")
        )
        self._encode = Batcher[NewEntity, HalfArray](
            "encode", predictor.encode, encode_batch, max_queue, metrics.observe_batches("encode")
        )
        metrics.watch_queue("score", lambda: self._score.waiting)
        metrics.watch_queue("encode", lambda: self._encode.waiting)

    async def predict(self, pairs: Sequence[GivenPair]) -> list[Prediction]:
        """Answers in order.

        Raises:
            UnknownIdError: an id is not in the catalogue; nothing was run.
            OverloadedError: too much is waiting.
            ModelOutputError: the model gave no number for one of them.

        """
        found = self._predictor.find(pairs)
        new = new_entities(found) if self._predictor.encodes else {}
        rows = await self._encode.submit(list(new.values()))
        return await self._score.submit(with_rows(found, dict(zip(new, rows, strict=True))))

    async def close(self) -> None:
        """Answer what was accepted and end."""
        await self._encode.close()
        await self._score.close()
