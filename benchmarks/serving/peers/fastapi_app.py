"""FastAPI and one request at a time, as people write it.

BENCH_SCORER: torch, backbone or onnx; BENCH_VARIANT: def or async.

python fastapi_app.py
"""

from __future__ import annotations

from typing import Any

import uvicorn
from asked import BUNDLE, PORT, SCORER, VARIANT
from fastapi import FastAPI
from pydantic import BaseModel
from scorer import OnnxScorer

app = FastAPI()


def load() -> Any:
    """The scorer that was asked for."""
    kind = SCORER
    if kind == "onnx":
        return OnnxScorer(BUNDLE)
    from torch_scorer import TorchScorer

    return TorchScorer(backbone=kind == "backbone")


score = load()


class Prediction(BaseModel):
    """The answer."""

    user: int
    movie: int
    rating: float
    heads: list[float]
    disagreement: float
    ood_score: float
    cold_start: list[str]
    model: str
    version: int


def predict(user: int, movie: int) -> Prediction:
    """One pair, in one of the thread pool's threads."""
    return score([(user, movie)])[0]


async def predict_async(user: int, movie: int) -> Prediction:
    """One pair, on the event loop."""
    return score([(user, movie)])[0]


app.get("/predict", response_model=Prediction)(predict if VARIANT == "def" else predict_async)

if __name__ == "__main__":
    uvicorn.run(app, port=PORT, access_log=False, log_level="warning")
