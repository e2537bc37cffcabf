"""A server under test: a tree of processes on one core, started, asked, watched and ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import psutil
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.serving.load import get, on_core
from levi_serve.bundle.commands import RunError

READY_S = 90.0
"""The slowest framework's start, loading torch, takes a tenth of it."""
_END_S = 20.0
_MIB = 2**20
_METRICS = get("/metrics")


class Answer(NamedTuple):
    """One HTTP answer."""

    status: int
    body: bytes
    headers: Mapping[str, str]


class Server:
    """A program that listens on `port` of the loopback address; everything it starts stays on `core`."""

    def __init__(
        self,
        command: Sequence[str],
        port: int,
        core: int | None,
        log: Path,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        """Start the program; what it prints goes to `log`."""
        self.port = port
        self._log = log
        with log.open("wb") as file, on_core(core):
            self._process = subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
                cwd=folder,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Of the program itself."""
        return self._process.pid

    def ask(self, request: bytes, timeout: float = 5.0) -> Answer:
        """Send one rendered request over a connection of its own."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as connection:
            connection.sendall(request)
            response = HTTPResponse(connection, method=request.partition(b" ")[0].decode())
            response.begin()
            return Answer(response.status, response.read(), {k.lower(): v for k, v in response.getheaders()})

    def wait(self, request: bytes, status: int = 200) -> float:
        """Seconds until `request` was answered with `status`.

        Raises:
            RunError: the program ended, or it took too long; the end of its log says why.

        """
        start, seen = time.monotonic(), "nothing"
        while time.monotonic() - start < READY_S:
            if self._process.poll() is not None:
                raise RunError(f"ended with {self._process.returncode}: {self.log()}")
            try:
                answer = self.ask(request)
                if answer.status == status:
                    return time.monotonic() - start
                seen = f"{answer.status} {answer.body[:200]!r}"
            except (OSError, HTTPException) as error:
                seen = repr(error)
            time.sleep(0.05)
        raise RunError(f"not ready after {READY_S:g} s, the last answer was {seen}: {self.log()}")

    def log(self) -> str:
        """The last lines that it printed."""
        return " | ".join(self._log.read_text(errors="replace").splitlines()[-6:])

    def processes(self) -> list[psutil.Process]:
        """The program and everything below it that still runs."""
        try:
            top = psutil.Process(self.pid)
            return [top, *top.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def memory_mib(self) -> float:
        """Proportional set size of the whole tree: pages that processes share count once."""
        return float(sum(process.memory_full_info().pss for process in self.processes())) / _MIB

    def cpu_s(self) -> float:
        """Seconds of CPU that the tree has used."""
        return float(sum(sum(process.cpu_times()[:2]) for process in self.processes()))

    def cpu_share(self, seconds: float) -> float:
        """Share of a core that it uses while nobody asks anything."""
        before, start = self.cpu_s(), time.monotonic()
        time.sleep(seconds)
        return (self.cpu_s() - before) / (time.monotonic() - start)

    def sample(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels, from /metrics."""
        families = text_string_to_metric_families(self.ask(_METRICS).body.decode())
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def seconds_within(self, limit: float, status: str) -> tuple[float, float]:
        """How many predictions of this status took at most `limit` seconds inside the server, of how many."""
        name, of = "levi_http_request_duration_seconds", {"route": "/predict", "status": status}
        return self.sample(f"{name}_bucket", **of, le=str(limit)), self.sample(f"{name}_count", **of)

    def ended(self) -> bool:
        """Whether the program itself has."""
        return self._process.poll() is not None

    def signal(self, number: int) -> None:
        """Send a signal to the program itself."""
        self._process.send_signal(number)

    def stop(self) -> tuple[int, int]:
        """End it: SIGTERM, and SIGKILL to whatever is left. Its exit code, and how many processes had to be killed."""
        tree = self.processes()
        if self._process.poll() is None:
            self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)
        _, left = psutil.wait_procs(tree[1:], timeout=1)
        for process in [*tree[:1], *left]:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        code = self._process.wait(_END_S)
        psutil.wait_procs(left, timeout=5)
        return code, len(left)


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: Any = listener.getsockname()[1]
        return int(port)
