"""What is in service right now, or why nothing is: the one thing that routes ask before they do anything."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Literal, Self, TypeAlias

from levi_serve.cores import give_back
from levi_serve.engine import Engine
from levi_serve.entities import Entities
from levi_serve.errors import NotReadyError, UnknownVersionError
from levi_serve.metrics import Metrics
from levi_serve.monitor.metrics import MonitorCollector
from levi_serve.monitor.watch import Monitor
from levi_serve.overlay import Overlay
from levi_serve.versions import Version
from levi_serve.wire import Wire
from levi_serve.wire_recommend import RecommendWire

log = logging.getLogger("levi")

Status: TypeAlias = Literal["loading", "ready", "failed", "draining"]
Label: TypeAlias = Literal["stable", "canary"]


@dataclass(eq=False)
class Service:
    """A version with what it needs to answer requests. Whoever waits for it in between holds it (`with service:`), so
    that one version answers the whole request, even one that has meanwhile been replaced.
    """

    version: Version
    engine: Engine
    wire: Wire
    lists: RecommendWire
    overlay: Overlay
    """What came after the export, which the engine looks at first."""
    golden_difference: float
    """Largest difference between a replayed golden rating and the recorded one."""
    monitor: Monitor | None
    _holders: int = field(default=0, init=False)
    _unheld: asyncio.Event | None = field(default=None, init=False)
    """Made when somebody waits for it."""

    @property
    def number(self) -> int:
        """Of its version."""
        return self.version.manifest.version

    def __enter__(self) -> Self:
        """One more request is under way."""
        self._holders += 1
        return self

    def __exit__(self, *_: object) -> None:
        """One has ended."""
        self._holders -= 1
        if not self._holders and self._unheld is not None:
            self._unheld.set()

    async def released(self) -> None:
        """Wait until nobody holds it. New holders must no longer come."""
        if self._holders:
            self._unheld = asyncio.Event()
            await self._unheld.wait()

    async def close(self) -> None:
        """Answer what was accepted, note what was watched, and end."""
        await self.engine.close()
        if self.monitor is not None:
            self.monitor.close()
        self.version.close()


class Live:
    """The versions of one server."""

    def __init__(self, metrics: Metrics) -> None:
        """Nothing is in service yet."""
        self._metrics = metrics
        self._service: Service | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self.loaded: dict[int, Service] = {}
        """Versions that can answer, by number."""
        self.labels: dict[Label, int] = {}
        """Of loaded versions: what answers requests that name no version, and what is tried beside it."""
        self.unusable: dict[int, str] = {}
        """Versions that were to be loaded, and why they are not."""
        self.status: Status = "loading"
        self.reason: str | None = "the model is being loaded"
        self.fatal: Exception | None = None
        """Why the process cannot go on."""

    @property
    def service(self) -> Service | None:
        """What the label `stable` points at, also while draining."""
        return self._service

    def current(self) -> Service:
        """What answers a request.

        Raises:
            NotReadyError: nothing does; the message says why.

        """
        if self._service is None:
            raise NotReadyError(self.reason)
        return self._service

    def at(self, number: int) -> Service:
        """What answers a request for one version.

        Raises:
            UnknownVersionError: it is not loaded.

        """
        if number not in self.loaded:
            raise UnknownVersionError(number, list(self.loaded))
        return self.loaded[number]

    async def follow(self, entities: Entities) -> None:
        """Have every loaded version take over what changed among the entities."""
        for service in list(self.loaded.values()):
            with service:
                await service.overlay.follow(entities, service.engine.row)

    def add(self, service: Service) -> None:
        """A version is loaded and proven; it answers those who name it."""
        self.loaded[service.number] = service

    def point(self, stable: int, canary: int | None = None) -> None:
        """Point the labels at loaded versions; from the next request on `stable` answers."""
        service = self.loaded[stable]
        self.labels = {"stable": stable}
        if canary is not None:
            self.labels["canary"] = self.loaded[canary].number
        if service is not self._service:
            self._service = service
            manifest = service.version.manifest
            self._metrics.serving(manifest.name, manifest.version, manifest.views)
            if service.monitor is not None:
                self._metrics.show_monitor(MonitorCollector(service.monitor))
        self._metrics.fleet.labels(stable, canary)
        if self.status != "draining":
            self._set("ready", None)

    def remove(self, number: int) -> None:
        """Take out a version that no label points at. It is closed when its last request has been answered."""
        assert number not in self.labels.values()
        task = asyncio.get_running_loop().create_task(self._end(self.loaded.pop(number)))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """Answer what was accepted and end."""
        for service in self.loaded.values():
            await service.close()
        if self._ending:
            await asyncio.wait(self._ending)

    def fail(self, reason: str) -> None:
        """The model cannot be used; the server stays up to say why."""
        self._set("failed", reason)

    def give_up(self, error: Exception) -> None:
        """No model can ever be served on this machine: the process is to end."""
        self.fail(str(error))
        self.fatal = error

    def drain(self) -> None:
        """The server is about to stop: no new traffic, please. Requests are still answered."""
        self._set("draining", "the server is shutting down")

    def _set(self, status: Status, reason: str | None) -> None:
        self.status, self.reason = status, reason
        self._metrics.ready(status == "ready")

    @staticmethod
    async def _end(service: Service) -> None:
        await service.released()
        await service.close()
        name, number = service.version.manifest.name, service.number
        service.engine.dissolve()
        del service
        await asyncio.to_thread(give_back)
        log.info("released: %s/%d", name, number)
