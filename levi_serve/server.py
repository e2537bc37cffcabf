"""The HTTP server of one process: its signals and its orderly end."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from levi_serve.listener import BACKLOG, stop_listening
from levi_serve.live import Live
from levi_serve.protocol import Protocol

log = logging.getLogger("levi")

# Longer than a load balancer keeps its own side open, so that it never sends into a line that was just closed.
_KEEP_ALIVE_S = 75
_TICK_S = 0.05
_LINGER_S = 0.2


class Server(uvicorn.Server):
    """Uvicorn that ends in order: on SIGTERM or SIGINT it says so on /readyz while it still accepts requests, stops
    listening, answers what is in flight, and exits 0. A second signal ends the waiting.
    """

    def __init__(
        self,
        app: FastAPI,
        live: Live,
        protocol: Callable[..., Protocol],
        drain_s: float,
        shutdown_s: int,
        lifeline: int | None = None,
    ) -> None:
        """Requests are accepted for `drain_s` after the signal; those in flight then get `shutdown_s`. The end of file
        of the descriptor `lifeline` is a signal too.
        """
        super().__init__(
            uvicorn.Config(
                app,
                loop="uvloop",
                http=protocol,  # type: ignore[arg-type] # whatever makes one
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=BACKLOG,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=shutdown_s,
            )
        )
        self._live = live
        self._drain_s = drain_s
        self._lifeline = lifeline

    def serve_on(self, listener: socket.socket) -> None:
        """Serve until a signal comes.

        Raises:
            RunError: no model can ever be served here.

        """
        with listener:
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
        if self._lifeline is not None:
            asyncio.get_running_loop().add_reader(self._lifeline, self._cut_loose)
        await super().main_loop()
        if self._live.fatal:
            return
        log.info("draining")
        self._live.drain()
        end = time.monotonic() + self._drain_s
        while time.monotonic() < end and not self.force_exit:
            await asyncio.sleep(min(_TICK_S, self._drain_s))
        log.info("stopping")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening. Who is connected by then and has sent a request, or is about to, is answered."""
        waiting = [line for listener in sockets or () for line in stop_listening(listener)]
        for server in self.servers:
            server.close()
        for listener in sockets or ():
            listener.close()
        loop = asyncio.get_running_loop()
        for line in waiting:
            await loop.connect_accepted_socket(self._protocol, line)
        await asyncio.sleep(_LINGER_S)
        await super().shutdown()

    def _protocol(self) -> asyncio.Protocol:
        """What speaks with one client, made as uvicorn makes it."""
        make: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    def _cut_loose(self) -> None:
        assert self._lifeline is not None
        asyncio.get_running_loop().remove_reader(self._lifeline)
        self.should_exit = True
