"""An HTTP server that does as it is told: correct, late, wrong or gone, in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from benchmarks.serving.server import free_port

Handler = Callable[["Scripted", bytes, asyncio.StreamWriter], Awaitable[None]]
"""Answers one request, given its target and body; it may write what it likes, wait, or close."""


class Scripted:
    """Reads whole requests from each connection and hands them to the handler, one after the other."""

    def __init__(self, handler: Handler, port: int = 0) -> None:
        self.port = port or free_port()
        self.seen: list[bytes] = []
        self.connections = 0
        self._handler = handler
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._up.wait(5)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        listener = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", self.port))
        self._up.set()
        self._loop.run_forever()
        listener.close()
        for task in self._tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
                request = head.split(b" ")[1] + await reader.readexactly(length)
                self.seen.append(request)
                await self._handler(self, request, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            self._tasks.discard(task)


def answer(body: bytes = b"{}", status: int = 200, headers: str = "") -> bytes:
    """A correct answer."""
    return f"HTTP/1.1 {status} Whatever\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


def always(reply: bytes, close: bool = False) -> Handler:
    """The same bytes to everybody, and the end of the connection if wanted."""

    async def handler(server: Scripted, request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(reply)
        if close:
            writer.close()

    return handler
