"""mosec: POST /inference {"user": 138, "movie": 357}. BENCH_SCORER: onnx, or null for a scorer that does nothing.

python mosec_app.py --port PORT --address 127.0.0.1 --log-level warning
"""

from __future__ import annotations

from typing import Any

import mosec
import msgspec
from asked import BUNDLE, MAX_BATCH, MAX_WAIT_MS, SCORER
from scorer import OnnxScorer


class Compact(mosec.Worker):
    """JSON by msgspec: mosec's own indents its answers."""

    def deserialize(self, data: bytes) -> Any:
        return msgspec.json.decode(data)

    def serialize(self, data: Any) -> bytes:
        return msgspec.json.encode(data)


class Levi(Compact):
    """A batch of pairs, or one."""

    def __init__(self) -> None:
        super().__init__()
        self.score = OnnxScorer(BUNDLE)

    def forward(self, data: Any) -> Any:
        if MAX_BATCH == 1:
            return self.score([(data["user"], data["movie"])])[0]
        return self.score([(pair["user"], pair["movie"]) for pair in data])


class Null(Compact):
    """Nothing."""

    def forward(self, data: Any) -> Any:
        return {} if MAX_BATCH == 1 else [{}] * len(data)


if __name__ == "__main__":
    server = mosec.Server()
    worker = Null if SCORER == "null" else Levi
    server.append_worker(worker, num=1, max_batch_size=MAX_BATCH, max_wait_time=int(MAX_WAIT_MS))
    server.run()
