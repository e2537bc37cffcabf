"""BentoML: POST /predict {"user": 138, "movie": 357}, or {"pairs": [{…}]} with adaptive batching, a list of one.

BENCH_SCORER: onnx, or null for a scorer that does nothing.

bentoml serve bentoml_app:Levi --port PORT --host 127.0.0.1
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import bentoml
from asked import BUNDLE, MAX_BATCH, MAX_WAIT_MS, SCORER
from scorer import Answer, OnnxScorer, Pair

service = bentoml.service(workers=1, logging={"access": {"enabled": False}})


def load() -> Callable[[Sequence[Pair]], list[Answer]]:
    """The scorer, or one that does nothing."""
    return OnnxScorer(BUNDLE) if SCORER == "onnx" else lambda pairs: [{}] * len(pairs)


if MAX_BATCH == 1:

    @service
    class Levi:
        """One request at a time, on the event loop: a thread costs more than the graph."""

        def __init__(self) -> None:
            self.score = load()

        @bentoml.api
        async def predict(self, user: int, movie: int) -> dict[str, Any]:
            return self.score([(user, movie)])[0]

else:

    @service
    class Levi:
        """Adaptive batching: requests are lists that the dispatcher joins."""

        def __init__(self) -> None:
            self.score = load()

        @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=int(MAX_WAIT_MS))
        async def predict(self, pairs: list[dict[str, int]]) -> list[dict[str, Any]]:
            return self.score([(pair["user"], pair["movie"]) for pair in pairs])
