"""The load generator tells what happened, above all when the server stalls, lies or leaves."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.serving import load
from benchmarks.serving.load import Report, Run, Traffic, build, get, post
from levi_serve.bundle.commands import RunError
from tests.benchmarks.scripted import Handler, Scripted, always, answer

OK = always(answer(b'{"fine":true}'))


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled generator."""
    if not (shutil.which("cc") or shutil.which("gcc")):
        pytest.skip("no C compiler: the load generator cannot be built")
    return build(tmp_path_factory.mktemp("load"))


class Generator:
    """Starts runs against a server."""

    def __init__(self, program: Path, folder: Path) -> None:
        self.program, self.folder = program, folder

    def start(self, port: int, traffic: list[Traffic] | None = None, **how: Any) -> Run:
        settings: dict[str, Any] = {"connections": 4, "seconds": 0.5, "warmup": 0.0, "seed": 1} | how
        return load.start(
            self.program, self.folder, port, traffic or [Traffic("plain", [get("/a"), get("/b")])], **settings
        )

    def run(self, port: int, traffic: list[Traffic] | None = None, **how: Any) -> Report:
        return self.start(port, traffic, **how).finish()


@pytest.fixture
def generator(program: Path, tmp_path: Path) -> Generator:
    return Generator(program, tmp_path)


def accounted(report: Report) -> int:
    """Answers and failures of the measured time."""
    return sum(report.statuses.values()) + sum(report.errors.values())


def test_closed_loop_counts_what_the_server_saw(generator: Generator) -> None:
    """Every request of every class is drawn, sent whole and counted under its class and status."""
    traffic = [Traffic("get", [get("/a"), get("/b")], share=3), Traffic("post", [post("/c", {"x": 1})], share=1)]
    with Scripted(OK) as server:
        report = generator.run(server.port, traffic)
        seen = Counter(server.seen)
    assert set(seen) == {b"/a", b"/b", b'/c{"x": 1}'}
    assert report.failed == 0
    # At the end each connection may have one request under way that is answered after the measured time.
    assert len(server.seen) - 4 <= accounted(report) <= len(server.seen)
    assert report.classes["get"]["200"].count + report.classes["post"]["200"].count == report.statuses["200"]
    assert report.throughput == pytest.approx(report.statuses["200"] / 0.5)
    assert 2.0 < (seen[b"/a"] + seen[b"/b"]) / seen[b'/c{"x": 1}'] < 4.5
    assert report.mode == "closed"
    assert not report.void


def test_constant_arrivals_are_as_many_as_asked_for(generator: Generator) -> None:
    """400 a second for half a second are 200, and each is answered or counted as failed."""
    with Scripted(OK) as server:
        report = generator.run(server.port, rate=400, arrivals="constant", warmup=0.1)
    assert abs(report.scheduled - 200) <= 1
    assert accounted(report) == report.scheduled
    assert report.lateness_ms.count == report.scheduled
    assert 240 - 2 <= len(server.seen) <= 240 + 2


def test_poisson_arrivals_vary(generator: Generator) -> None:
    """Their number has the mean of the rate; two seeds differ, the same seed does not."""
    with Scripted(OK) as server:
        counts = [generator.run(server.port, rate=1000, seed=seed).scheduled for seed in (1, 1, 2, 3)]
    assert counts[0] == counts[1]
    assert len(set(counts)) == 3
    assert all(abs(count - 500) < 5 * 500**0.5 for count in counts)


def test_a_seed_draws_the_same_requests(generator: Generator) -> None:
    """One connection, constant arrivals: the order of requests follows the seed."""
    traffic = [Traffic("plain", [get(f"/{i}") for i in range(50)])]
    orders = []
    for seed in (7, 7, 8):
        with Scripted(OK) as server:
            generator.run(server.port, traffic, connections=1, rate=200, arrivals="constant", seed=seed)
        orders.append(server.seen)
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert set(orders[0]) - set(orders[2]) or set(orders[2]) - set(orders[0])


def test_a_stall_is_not_hidden(generator: Generator) -> None:
    """The server freezes for 300 ms. Two fifths of all requests fall due in that time, and each has to wait for its
    end: the generator must show it at the median of the slower half, not only as one slow request per connection.
    """

    async def freezes_once(server: Scripted, request: bytes, writer: asyncio.StreamWriter) -> None:
        if len(server.seen) == 100:
            time.sleep(0.3)
        writer.write(answer())

    with Scripted(freezes_once) as server:
        report = generator.run(
            server.port, rate=400, arrivals="constant", seconds=0.75, keep=True, window_ms=50, connections=2
        )
    assert report.failed == 0
    assert report.scheduled == 300
    # Requests due t ms into the freeze wait 300 − t: of the 120, half wait 150 ms or longer.
    assert report.latency_ms.max >= 290
    assert report.latency_ms.p90 >= 200
    assert report.queued >= 100
    worst = max(report.windows, key=lambda window: window.p99)
    assert worst.max >= 290
    assert 0.2 <= worst.at <= 0.4
    assert sum(window.count for window in report.windows) == 300


def test_closed_loop_latency_starts_when_sent(generator: Generator) -> None:
    """The same freeze in a closed loop delays one request per connection: why a ceiling tells nothing of latency."""

    async def freezes_once(server: Scripted, request: bytes, writer: asyncio.StreamWriter) -> None:
        if len(server.seen) == 100:
            time.sleep(0.3)
        writer.write(answer())

    with Scripted(freezes_once) as server:
        run = generator.start(server.port, seconds=0.75, connections=2, keep=True)
        report = run.finish()
    assert report.latency_ms.max >= 290
    assert sum(reply.ms >= 200 for reply in run.replies()) <= 2


def test_percentiles_are_within_one_per_cent(generator: Generator) -> None:
    """Of the exact ones, computed from every single latency."""

    async def slow_sometimes(server: Scripted, request: bytes, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep([0, 0.001, 0.003, 0.02][len(server.seen) % 4])
        writer.write(answer())

    with Scripted(slow_sometimes) as server:
        run = generator.start(server.port, connections=8, keep=True)
        report = run.finish()
    exact = np.array([reply.ms for reply in run.replies()])
    assert len(exact) == report.latency_ms.count > 100
    for share, found in ((50, report.latency_ms.p50), (90, report.latency_ms.p90), (99, report.latency_ms.p99)):
        assert found == pytest.approx(np.percentile(exact, share, method="inverted_cdf"), rel=0.01)
    assert report.latency_ms.max == pytest.approx(exact.max(), rel=1e-3)
    assert report.latency_ms.mean == pytest.approx(exact.mean(), rel=1e-3)


def test_replies_belong_to_their_requests(generator: Generator) -> None:
    """A kept body is the answer to the request whose number stands beside it, classes one after the other."""

    async def echo(server: Scripted, request: bytes, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.001 * (len(server.seen) % 3))
        writer.write(answer(request))

    traffic = [Traffic("one", [get("/0"), get("/1")]), Traffic("two", [get("/2"), get("/3"), get("/4")])]
    with Scripted(echo) as server:
        run = generator.start(server.port, traffic, keep=True)
        report = run.finish()
    replies = list(run.replies())
    assert len(replies) == report.statuses["200"]
    assert {(reply.request, reply.body) for reply in replies} == {(i, f"/{i}".encode()) for i in range(5)}
    assert all(0 <= reply.at <= 0.5 and reply.ms > 0 for reply in replies)


def test_refusals_are_no_goodput(generator: Generator) -> None:
    """429 is an answer, counted with its Retry-After, and no good one."""
    refusal = always(answer(b"no", 429, "Retry-After: 1\r\n"))
    with Scripted(refusal) as server:
        report = generator.run(server.port)
    assert set(report.statuses) == {"429"}
    assert report.goodput == 0
    assert report.throughput > 0
    assert report.retry_after == report.statuses["429"]
    assert report.latency_ms.count == 0
    assert report.classes["plain"]["429"].count == report.statuses["429"]


def test_late_answers_are_no_goodput(generator: Generator) -> None:
    """With a deadline, a 200 that comes after it counts as an answer and not as a good one."""

    async def late(server: Scripted, request: bytes, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.05 if request == b"/b" else 0)
        writer.write(answer())

    with Scripted(late) as server:
        report = generator.run(server.port, [Traffic("late", [get("/b")])], rate=50, deadline_ms=20)
        assert report.goodput == 0 < report.throughput
        report = generator.run(server.port, [Traffic("late", [get("/b")])], rate=50, deadline_ms=5000)
        assert report.goodput == report.throughput > 0


@pytest.mark.parametrize(
    ("handler", "error"),
    [
        (always(b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n{}"), "timeout"),
        (always(b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n{}", close=True), "cut"),
        (always(b"HTTP/1.1 200 OK\r\nContent-Le", close=True), "cut"),
        (always(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{}"), "protocol"),
        (always(b"HELLO\r\n\r\n"), "protocol"),
        (always(b"", close=True), "closed"),
        (always(b""), "timeout"),
        (always(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n"), "protocol"),
        (always(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{}", close=True), "cut"),
    ],
)
def test_what_is_no_answer_is_counted(generator: Generator, handler: Handler, error: str) -> None:
    """A body shorter or longer than announced, nonsense, silence, a closed connection: each under its name."""
    with Scripted(handler) as server:
        report = generator.run(server.port, rate=40, arrivals="constant", timeout=0.2, seconds=0.3)
    assert set(report.errors) <= {error, "unsent"}
    assert report.errors[error] > 0
    assert report.statuses == {}
    assert accounted(report) == report.scheduled == 12


@pytest.mark.parametrize(
    "reply",
    [
        b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\n{"a\r\n4;x=y\r\n":1}\r\n0\r\n\r\n',
        b'HTTP/1.1 200 OK\r\nCONTENT-LENGTH:7\r\nX-Content-Length: 1\r\n\r\n{"a":1}',
    ],
)
def test_bodies_are_read_whole(generator: Generator, reply: bytes) -> None:
    """Chunked, or with a length under whatever spelling, and in single bytes."""

    async def dribble(server: Scripted, request: bytes, writer: asyncio.StreamWriter) -> None:
        for byte in reply:
            writer.write(bytes([byte]))
            await asyncio.sleep(0)

    with Scripted(dribble) as server:
        run = generator.start(server.port, keep=True)
        report = run.finish()
    assert report.failed == 0
    assert {reply.body for reply in run.replies()} == {b'{"a":1}'}


@pytest.mark.parametrize("headers", ["Connection: close\r\n", ""])
def test_a_connection_that_ends_after_its_answer_is_replaced(generator: Generator, headers: str) -> None:
    """Announced or not: no request is lost by it, unless it was already under way."""
    with Scripted(always(answer(headers=headers), close=True)) as server:
        report = generator.run(server.port, rate=60, arrivals="constant")
    assert report.statuses["200"] == report.scheduled == 30
    assert report.errors == {}
    assert report.reconnects >= 26
    assert server.connections > 26


def test_a_body_may_end_with_the_connection(generator: Generator) -> None:
    """HTTP/1.0's way."""
    with Scripted(always(b"HTTP/1.0 200 OK\r\n\r\n{}", close=True)) as server:
        run = generator.start(server.port, rate=40, arrivals="constant", keep=True)
        report = run.finish()
    assert report.statuses["200"] == report.scheduled
    assert {reply.body for reply in run.replies()} == {b"{}"}


def test_large_requests_and_answers(generator: Generator) -> None:
    """More than a socket takes at once, both ways."""
    body = {"text": "x" * 3_000_000}

    async def size(server: Scripted, request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(f"{len(request)}".encode().ljust(2_000_000)))

    with Scripted(size) as server:
        run = generator.start(server.port, [Traffic("large", [post("/", body)])], connections=2, keep=True)
        report = run.finish()
    assert report.failed == 0
    expected = len(b"/") + 3_000_000 + len('{"text": ""}')
    assert {reply.body.strip() for reply in run.replies()} == {str(expected).encode()}


def test_once_is_once(generator: Generator) -> None:
    """Such requests are sent in order and never again; when they run out, that is said."""
    traffic = [
        Traffic("often", [get("/x")], share=0.5),
        Traffic("once", [get(f"/{i}") for i in range(2000)], share=0.5, once=True),
    ]
    with Scripted(OK) as server:
        report = generator.run(server.port, traffic, connections=1, rate=400)
        once = [request for request in server.seen if request != b"/x"]
        assert once == [f"/{i}".encode() for i in range(len(once))]
        assert report.classes["once"]["200"].count > 20
        with pytest.raises(RunError, match="class few has only 3 requests"):
            generator.run(server.port, [Traffic("few", [get("/")] * 3, once=True)], rate=100)


def test_nobody_there(generator: Generator) -> None:
    """A server that was never up is an error and no report."""
    with Scripted(OK) as server:
        port = server.port
    with pytest.raises(RunError, match=f"cannot connect to port {port}: Connection refused"):
        generator.run(port)


def test_a_server_that_goes_and_comes_back(generator: Generator) -> None:
    """Requests that fall due meanwhile wait, are sent after all or time out; none is forgotten."""
    handler = always(answer())
    back = threading.Event()
    with Scripted(handler) as server:
        run = generator.start(server.port, rate=100, arrivals="constant", seconds=1.5, timeout=0.3, window_ms=100)
        deadline = time.monotonic() + 5
        while len(server.seen) < 20 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert not back.wait(0.4)  # down for longer than the time-out
    with Scripted(handler, server.port) as again:
        report = run.finish()
    assert len(again.seen) > 10
    assert report.refused > 0
    assert report.errors["unsent"] > 0
    assert accounted(report) == report.scheduled == 150
    assert sum(window.errors for window in report.windows) == sum(report.errors.values())
    assert report.windows[0].errors == 0 < report.windows[0].count


def test_warm_up_is_not_reported(generator: Generator) -> None:
    """What was due before the measured time is in no figure."""

    async def bad_at_first(server: Scripted, request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(status=500 if len(server.seen) <= 20 else 200))

    with Scripted(bad_at_first) as server:
        report = generator.run(server.port, rate=100, arrivals="constant", warmup=0.4)
    assert report.statuses == {"200": report.scheduled}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"rate": -1}, "--rate -1: not a number of at least 0.001"),
        ({"seconds": "soon"}, "--seconds soon: not a number"),
        ({"connections": 0}, "--connections 0: not a number of at least 1"),
        ({"arrivals": "bursts"}, "--arrivals bursts: neither poisson nor constant"),
    ],
)
def test_wrong_flags(generator: Generator, how: dict[str, Any], message: str) -> None:
    """Each is named."""
    with Scripted(OK) as server, pytest.raises(RunError, match=message):
        generator.run(server.port, **how)


def test_requests_file_that_is_none(program: Path, tmp_path: Path) -> None:
    """A file cut short is refused, before anything is sent."""
    import subprocess

    path = tmp_path / "requests"
    load.write_requests(path, [Traffic("a", [b"x" * 10, b"y" * 10])])
    path.write_bytes(path.read_bytes()[:-1])
    done = subprocess.run(
        [program, "--port=1", f"--requests={path}"], capture_output=True, text=True, check=False, timeout=10
    )
    assert done.returncode == 1
    assert done.stderr.strip() == f"load: {path}: ends within class a"


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The message says what to install."""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(RunError, match="needs a C compiler, cc or gcc"):
        build(tmp_path)


def test_a_late_generator_makes_a_run_void(generator: Generator) -> None:
    """By its lateness at p99, and in an open loop alone."""
    with Scripted(OK) as server:
        report = generator.run(server.port, rate=100)
    late = report.lateness_ms.model_copy(update={"p99": load.LATENESS_MS * 1.01})
    in_time = report.lateness_ms.model_copy(update={"p99": load.LATENESS_MS})
    assert report.model_copy(update={"lateness_ms": late}).void
    assert not report.model_copy(update={"lateness_ms": in_time}).void
    assert not report.model_copy(update={"lateness_ms": late, "rate": None}).void
