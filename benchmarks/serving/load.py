"""The load generator: what it sends, how it is built and run, and what it reports. The generator itself is `load.c`."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from levi_serve.bundle.commands import RunError

SOURCE = Path(__file__).with_name("load.c")
LATENESS_MS = 1.0
"""A run whose generator was later than this at p99 tells of the generator and not of the server: it is void."""

_HEAD = struct.Struct("<IIIdd")


@dataclass(frozen=True)
class Traffic:
    """One class of rendered requests and its share of the whole."""

    name: str
    requests: Sequence[bytes]
    share: float = 1.0
    once: bool = False
    """Send each at most once, in order, instead of drawing again and again."""


class Latency(BaseModel):
    """Milliseconds."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    p99_9: float
    max: float


class Window(BaseModel):
    """Requests that fell due within one stretch of time; milliseconds, over answers of any status."""

    at: float
    """Seconds since the measured time began."""
    count: int
    p50: float
    p99: float
    max: float
    errors: int
    statuses: dict[str, int]


class Report(BaseModel):
    """What one run saw."""

    mode: str
    connections: int
    seconds: float
    realtime: bool
    """Whether the generator ran before everything else on its core."""
    rate: float | None = None
    throughput: float
    """Answers a second, of any status."""
    goodput: float
    """Answers a second that were 200, and in time where a deadline was given."""
    scheduled: int
    queued: int
    """Open loop: requests that found no free connection and waited for one; their latency ran on."""
    reconnects: int
    refused: int
    retry_after: int
    """Answers with that header."""
    statuses: dict[str, int]
    errors: dict[str, int]
    """Requests without an answer: `closed` before its first byte, `cut` within it, `timeout`, `protocol`, `unsent`."""
    lateness_ms: Latency
    latency_ms: Latency
    """Of the answers with status 200."""
    classes: dict[str, dict[str, Latency]]
    """By class of request and status."""
    windows: list[Window]

    @property
    def void(self) -> bool:
        """Whether the generator was too late to be believed."""
        return self.rate is not None and self.lateness_ms.p99 > LATENESS_MS

    @property
    def failed(self) -> int:
        """Requests that were not answered with 200."""
        answered = sum(count for status, count in self.statuses.items() if status != "200")
        return answered + sum(self.errors.values())

    def brief(self) -> dict[str, Any]:
        """What is worth keeping of one run among many."""
        kept = {"rate", "throughput", "goodput", "queued", "statuses", "errors", "latency_ms", "lateness_ms", "classes"}
        return self.model_dump(include=kept)

    def line(self) -> str:
        """The same for a person."""
        failed = f", not answered {self.errors}" if self.errors else ""
        refused = {status: count for status, count in self.statuses.items() if status != "200"}
        return (
            f"{self.goodput:,.0f}/s good, p50 {self.latency_ms.p50:.2f} ms, p99 {self.latency_ms.p99:.2f} ms"
            f"{f', other answers {refused}' if refused else ''}{failed}"
        )


class Reply(NamedTuple):
    """One answer that was kept."""

    request: int
    """Its number among all requests, classes one after the other."""
    status: int
    at: float
    """Seconds since the measured time began, when it was due."""
    ms: float
    """From then to the end of the answer."""
    body: bytes


def get(target: str) -> bytes:
    """A rendered GET."""
    return f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


def post(target: str, body: Any, headers: str = "") -> bytes:
    """A rendered POST of a JSON body; `headers` are whole lines."""
    content = json.dumps(body).encode()
    head = f"POST {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{headers}"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def build(folder: Path) -> Path:
    """The compiled generator; built once for each version of its source.

    Raises:
        RunError: there is no C compiler, or it refuses the source.

    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise RunError("the load generator needs a C compiler, cc or gcc (Debian: apt-get install gcc libc6-dev)")
    source = SOURCE.read_bytes()
    program = folder / f"load-{hashlib.sha256(source).hexdigest()[:12]}"
    if not program.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = program.with_suffix(f".{os.getpid()}")
        command = [compiler, "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(part), str(SOURCE), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RunError(f"{compiler} cannot build {SOURCE}: {done.stderr.strip()}")
        part.rename(program)
    return program


class Run:
    """A run of the generator in the background."""

    def __init__(self, process: subprocess.Popen[bytes], report: Path, bodies: Path | None) -> None:
        """Take over a started generator, which writes into these files."""
        self._process = process
        self._report = report
        self._bodies = bodies
        assert process.stderr is not None
        line = process.stderr.readline().decode()
        word, _, begin = line.partition(" ")
        if word != "started":
            rest = process.communicate()[1].decode()
            raise RunError((line + rest).strip() or "load: ended at once")
        self.begin = int(begin) / 1e9
        """When the measured time begins, as `time.monotonic()` tells it."""

    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def finish(self) -> Report:
        """Wait for the end.

        Raises:
            RunError: the generator gave up; its own message.

        """
        said = self._process.communicate()[1].decode().strip()
        if self._process.returncode:
            raise RunError(said or f"load: ended with {self._process.returncode}")
        return Report.model_validate_json(self._report.read_bytes())

    def replies(self) -> Iterator[Reply]:
        """The answers that were kept, in the order in which they came; after `finish`."""
        assert self._bodies is not None
        with self._bodies.open("rb") as file:
            while head := file.read(_HEAD.size):
                request, status, length, at, ms = _HEAD.unpack(head)
                yield Reply(request, status, at, ms, file.read(length))


def write_requests(path: Path, traffic: Sequence[Traffic]) -> None:
    """The file that `load.c` reads."""
    with path.open("wb") as file:
        for kind in traffic:
            order = "once" if kind.once else "random"
            file.write(f"{kind.name} {kind.share!r} {order} {len(kind.requests)}\n".encode())
            for request in kind.requests:
                file.write(struct.pack("<I", len(request)) + request)


def start(
    program: Path,
    folder: Path,
    port: int,
    traffic: Sequence[Traffic],
    *,
    connections: int,
    seconds: float,
    warmup: float,
    seed: int,
    core: int | None = None,
    rate: float | None = None,
    arrivals: str = "poisson",
    timeout: float = 10.0,
    deadline_ms: float | None = None,
    window_ms: float | None = None,
    keep: bool = False,
) -> Run:
    """Start a run: open loop at `rate` requests a second, closed loop without it. `keep` stores every answer's body."""
    requests, bodies = folder / "requests.bin", folder / "bodies.bin" if keep else None
    write_requests(requests, traffic)
    flags: dict[str, Any] = {
        "port": port,
        "requests": requests,
        "connections": connections,
        "seconds": seconds,
        "warmup": warmup,
        "seed": seed,
        "timeout": timeout,
        "arrivals": arrivals,
        "rate": rate,
        "deadline-ms": deadline_ms,
        "window-ms": window_ms,
        "bodies": bodies,
    }
    command = [str(program), *(f"--{name}={value}" for name, value in flags.items() if value is not None)]
    report = folder / "report.json"
    with report.open("wb") as file, on_core(core):
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.PIPE)
    return Run(process, report, bodies)


@contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """What is started within runs on this core alone, and all that it starts."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
