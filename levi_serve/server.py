"""The HTTP server process: its socket, its signals and its orderly end."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from functools import partial
from types import FrameType

import uvicorn
from fastapi import FastAPI

from levi_serve.bundle.commands import RunError
from levi_serve.lane import Lane
from levi_serve.live import Live
from levi_serve.metrics import Metrics

log = logging.getLogger("levi")

# Longer than a load balancer keeps its own side open, so that it never sends into a line that was just closed.
_KEEP_ALIVE_S = 75
_TICK_S = 0.05


class Server(uvicorn.Server):
    """Uvicorn that ends in order: on SIGTERM or SIGINT it says so on /readyz while it still accepts requests, stops
    listening, answers what is in flight, and exits 0. A second signal ends the waiting.
    """

    def __init__(
        self, app: FastAPI, live: Live, metrics: Metrics, timeout_s: float, drain_s: float, shutdown_s: int
    ) -> None:
        """Requests are accepted for `drain_s` after the signal; those in flight then get `shutdown_s`. A request gets
        `timeout_s` unless it says otherwise.
        """
        super().__init__(
            uvicorn.Config(
                app,
                loop="uvloop",
                http=partial(Lane, live=live, metrics=metrics, timeout_s=timeout_s),  # type: ignore[arg-type]
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=shutdown_s,
            )
        )
        self._live = live
        self._drain_s = drain_s

    def listen(self, host: str, port: int) -> None:
        """Serve until a signal comes.

        Raises:
            RunError: the address cannot be had, or no model can ever be served here.

        """
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listener = socket.create_server((host, port), family=family, backlog=self.config.backlog)
        except OSError as error:
            reason = str(error.strerror or error).partition(" (while ")[0]
            raise RunError(f"cannot listen on {host}:{port}: {reason}") from None
        with listener:
            shown = f"[{host}]" if ":" in host else host
            log.info("listening on http://%s:%d", shown, listener.getsockname()[1])
            self.run(sockets=[listener])
        if self._live.fatal:
            raise self._live.fatal

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Note a signal. Uvicorn's own handler would raise it again in the end, and the exit code would not be 0."""
        self.force_exit = self.should_exit
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Whether it is time to end."""
        return await super().on_tick(counter) or self._live.fatal is not None

    async def main_loop(self) -> None:
        """Serve, and drain before the base class closes the socket."""
        await super().main_loop()
        if self._live.fatal:
            return
        log.info("draining")
        self._live.drain()
        end = time.monotonic() + self._drain_s
        while time.monotonic() < end and not self.force_exit:
            await asyncio.sleep(min(_TICK_S, self._drain_s))
        log.info("stopping")
