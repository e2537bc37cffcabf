"""What is in service right now, or why nothing is: the one thing that routes ask before they do anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from levi_serve.engine import Engine
from levi_serve.errors import NotReadyError
from levi_serve.metrics import Metrics
from levi_serve.monitor.watch import Monitor
from levi_serve.versions import Version
from levi_serve.wire import Wire
from levi_serve.wire_recommend import RecommendWire

Status: TypeAlias = Literal["loading", "ready", "failed", "draining"]


@dataclass(frozen=True)
class Service:
    """A version with what it needs to answer requests."""

    version: Version
    engine: Engine
    wire: Wire
    lists: RecommendWire
    golden_difference: float
    """Largest difference between a replayed golden rating and the recorded one."""
    monitor: Monitor | None

    async def close(self) -> None:
        """Answer what was accepted, note what was watched, and end."""
        await self.engine.close()
        if self.monitor is not None:
            self.monitor.close()


class Live:
    """The service of one server."""

    def __init__(self, metrics: Metrics) -> None:
        """Nothing is in service yet."""
        self._metrics = metrics
        self._service: Service | None = None
        self.status: Status = "loading"
        self.reason: str | None = "the model is being loaded"
        self.fatal: Exception | None = None
        """Why the process cannot go on."""

    @property
    def service(self) -> Service | None:
        """What is in service, also while draining."""
        return self._service

    def current(self) -> Service:
        """What answers a request.

        Raises:
            NotReadyError: nothing does; the message says why.

        """
        if self._service is None:
            raise NotReadyError(self.reason)
        return self._service

    def start(self, service: Service) -> None:
        """Put a version into service."""
        self._service = service
        manifest = service.version.manifest
        self._metrics.serving(manifest.name, manifest.version, manifest.views)
        if self.status != "draining":
            self._set("ready", None)

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
