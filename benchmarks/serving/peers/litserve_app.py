"""LitServe: POST /predict {"user": 138, "movie": 357}.

python litserve_app.py
"""

from __future__ import annotations

from typing import Any

import litserve
from asked import BUNDLE, MAX_BATCH, MAX_WAIT_MS, PORT, VARIANT
from scorer import OnnxScorer


class Levi(litserve.LitAPI):
    """Batches of pairs through the scorer; without batching `batch` and `unbatch` are not called."""

    def setup(self, device: str) -> None:
        self.score = OnnxScorer(BUNDLE)

    def decode_request(self, request):  # no annotation: LitServe would take it for a query parameter
        return request["user"], request["movie"]

    def batch(self, inputs: list[tuple[int, int]]) -> list[tuple[int, int]]:
        return inputs

    def predict(self, x: Any) -> Any:
        return self.score(x) if isinstance(x, list) else self.score([x])[0]

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


if __name__ == "__main__":
    api = Levi(max_batch_size=MAX_BATCH, batch_timeout=MAX_WAIT_MS / 1000)
    fast = VARIANT == "zmq"
    server = litserve.LitServer(api, accelerator="cpu", fast_queue=fast, disable_openapi_url=True)
    server.run(host="127.0.0.1", port=PORT, log_level="warning", generate_client_file=False, access_log=False)
