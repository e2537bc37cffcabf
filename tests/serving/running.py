"""The application on an event loop of its own thread, called like a server but without sockets."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

import httpx
from fastapi import FastAPI

from levi_serve.app import build_app
from levi_serve.live import Live
from levi_serve.metrics import Metrics
from levi_serve.settings import ServeSettings

T = TypeVar("T")


class RunningApp:
    """An application that has finished loading, unless it is not to be waited for."""

    def __init__(self, settings: ServeSettings, wait: bool = True) -> None:
        self._wait = wait
        self.settings = settings
        self.metrics = Metrics()
        self.live = Live(self.metrics)
        self.app: FastAPI = build_app(settings, self.live, self.metrics)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._lifespan = self.app.router.lifespan_context(self.app)

    def __enter__(self) -> Self:
        self._thread.start()
        self.run(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something on the application's event loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    def wait(self) -> None:
        """Wait until the model is loaded or has failed to."""
        self.run(self._loaded())

    def get(self, path: str, **arguments: Any) -> httpx.Response:
        return self.run(self.client.get(path, **arguments))

    def post(self, pairs: Any) -> httpx.Response:
        """POST /predict of these pairs."""
        return self.run(self.client.post("/predict", json={"pairs": pairs}))

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
        await self._loop.shutdown_default_executor()
