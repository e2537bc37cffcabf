"""MLServer: POST /v2/models/levi/infer with tensors `user` and `movie`, or, as a custom handler, GET /predict.

The first is its own protocol and can batch; the second answers our JSON, one request at a time.

mlserver start FOLDER      # FOLDER/model-settings.json names this module's Levi
"""

from __future__ import annotations

from typing import Any

import numpy as np
from asked import BUNDLE
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.handlers import custom_handler
from mlserver.types import InferenceRequest, InferenceResponse
from scorer import OnnxScorer


class Levi(MLModel):
    """Pairs through the scorer."""

    async def load(self) -> bool:
        self.score = OnnxScorer(BUNDLE)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        users, movies = (NumpyCodec.decode_input(tensor).ravel().tolist() for tensor in payload.inputs)
        found = self.score(list(zip(users, movies, strict=True)))
        outputs = {
            name: np.array([answer[name] for answer in found])
            for name in ("rating", "heads", "disagreement", "ood_score")
        }
        return InferenceResponse(
            id=payload.id,
            model_name=self.name,
            outputs=[NumpyCodec.encode_output(name, value) for name, value in outputs.items()],
        )

    @custom_handler(rest_path="/predict", rest_method="GET")
    async def answer(self, user: int, movie: int) -> dict[str, Any]:
        return self.score([(user, movie)])[0]
