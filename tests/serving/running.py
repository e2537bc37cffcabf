"""Servers without a process: the application on an event loop of its own thread, and a bare engine."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any, Self, TypeVar

import httpx
import uvloop
from fastapi import FastAPI

from levi_serve.app import build_app
from levi_serve.engine import Engine, Limits
from levi_serve.engine_entity import EntityEngine
from levi_serve.engine_pair import PairEngine
from levi_serve.live import Live
from levi_serve.metrics import Metrics
from levi_serve.predictor import GivenPair, PairReader
from levi_serve.rollout import Rollout
from levi_serve.settings import ServeSettings
from levi_serve.store import Store, TableStore
from levi_serve.versions import Version
from levi_serve.wire import Wire

T = TypeVar("T")

LIMITS = Limits(max_batch=32, max_tokens=4096, encode_batch=8, max_queue=2000)


class RunningApp:
    """An application that has finished loading, unless it is not to be waited for."""

    def __init__(self, settings: ServeSettings, wait: bool = True) -> None:
        self._wait = wait
        self.settings = settings
        self.metrics = Metrics()
        self.live = Live(self.metrics)
        self.app: FastAPI = build_app(settings, self.live, self.metrics)
        self.rollout: Rollout = self.app.state.rollout
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._lifespan = self.app.router.lifespan_context(self.app)

    def __enter__(self) -> Self:
        self._thread.start()
        self.run(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self._stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something on the application's event loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout=30)

    def wait(self) -> None:
        """Wait until the model is loaded or has failed to."""
        self.run(self._loaded())

    def get(self, path: str, **arguments: Any) -> httpx.Response:
        return self.run(self.client.get(path, **arguments))

    def post(self, pairs: Any, **arguments: Any) -> httpx.Response:
        """POST /predict of these pairs."""
        return self.run(self.client.post("/predict", json={"pairs": pairs}, **arguments))

    def request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        return self.run(self.client.request(method, path, **arguments))

    async def _start(self) -> None:
        await self._lifespan.__aenter__()
        if self._wait:
            await self._loaded()
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://server")

    async def _loaded(self) -> None:
        while self.live.status == "loading":
            await asyncio.sleep(0.01)

    async def _stop(self) -> None:
        await self.client.aclose()
        await self._lifespan.__aexit__(None, None, None)
        await self.loop.shutdown_default_executor()


class Gate:
    """Holds the runs of one lane of a running application back until it is opened, and knows what came to it."""

    def __init__(self, app: RunningApp, lane: str) -> None:
        self._app = app
        self.batches: list[Sequence[Any]] = []
        self._opened = asyncio.Event()
        self._batcher = getattr(app.live.service.engine, lane)
        self.permits = self._batcher._free
        self._run = self._batcher._run
        self._batcher._run = self._held

    def open(self) -> None:
        """Let the runs go on, those to come as well; from any thread."""
        self._app.loop.call_soon_threadsafe(self._opened.set)

    def reached(self, items: int) -> bool:
        """Whether so many items are in its runs or wait for one that has no permit yet."""
        return sum(map(len, self.batches)) + self._batcher.waiting == items and (
            len(self.batches) == self.permits or not self._batcher.waiting
        )

    async def crowd(self, size: int) -> list[asyncio.Task[httpx.Response]]:
        """Requests for one known pair, one after the other: each is in a run, waits, or has been refused."""
        tasks: list[asyncio.Task[httpx.Response]] = []
        for _ in range(size):
            tasks.append(asyncio.ensure_future(self._app.client.get("/predict?user=138&movie=357")))
            while not (tasks[-1].done() or self.reached(len(tasks))):
                await asyncio.sleep(0)
        return tasks

    def remove(self) -> None:
        """Leave the lane as it was."""
        self.open()
        self._batcher._run = self._run

    async def _held(self, items: Sequence[Any]) -> Any:
        self.batches.append(items)
        await self._opened.wait()
        return await self._run(items)


def engine_over(
    version: Version, store: Store | None = None, metrics: Metrics | None = None, encoder: Any = None, **limits: Any
) -> Engine:
    """An engine over a version's parts; `store` stands in for its tables, `encoder` for its own."""
    wire = Wire(version.manifest, version.examples[0], max_pairs=1000)
    parts = (store or TableStore(*version.tables), wire, replace(LIMITS, **limits), metrics or Metrics())
    if version.encoder is not None:
        return EntityEngine(*parts, version.predictor, encoder or version.encoder)
    return PairEngine(*parts, version.predictor, PairReader(version.manifest, version.tokenizer), version.unknown)


def ask(engine: Engine, *pairs: GivenPair) -> list[dict[str, Any]]:
    """The answers to one request."""
    return [json.loads(answer) for answer in asyncio.run(engine.predict(pairs))]
