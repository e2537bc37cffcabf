"""levi_serve.lane over real sockets, with a model that waits for its gate: what is refused, how, and what follows."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from levi_serve import exchange, lane
from levi_serve.engine_entity import EntityEngine
from levi_serve.lane import Lane
from levi_serve.turned_away import TurnedAway

from .conftest import settings
from .running import Gate, RunningApp

GET = b"GET /predict?user=138&movie=357 HTTP/1.1\r\nHost: x\r\n\r\n"
BODY = json.dumps({"pairs": [{"user": 138, "movie": 357}]}).encode()
HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%b\r\n"
MAX_BODY_BYTES = 5_000
POST = HEAD % (len(BODY), b"") + BODY


class Line:
    """One client's connection."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self._have = b""

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the next answer."""
        while b"\r\n\r\n" not in self._have:
            self._more()
        head, _, self._have = self._have.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        length = int(headers["content-length"])
        while len(self._have) < length:
            self._more()
        body, self._have = self._have[:length], self._have[length:]
        return int(status.split()[1]), headers, body

    def asked(self, data: bytes) -> int:
        """The status of the answer to this."""
        self.send(data)
        return self.answer()[0]

    def insists(self, data: bytes) -> int:
        """The first status that is no refusal: those that came before may still be on their way out."""
        while (status := self.asked(data)) == 429:
            pass
        return status

    def ended(self) -> bool:
        """Whether the server has closed it, which is waited for."""
        return not self._socket.recv(1)

    def close(self) -> None:
        self._socket.close()

    def _more(self) -> None:
        data = self._socket.recv(65536)
        assert data, self._have
        self._have += data


class Served:
    """An application's lane on a port."""

    def __init__(self, app: RunningApp) -> None:
        self.app = app
        config = uvicorn.Config(app.app, log_config=None)
        config.load()
        named = {
            "live": app.live,
            "trial": app.app.state.trial,
            "metrics": app.metrics,
            "away": TurnedAway(app.live),
            "timeout_s": 9,
            "max_body_bytes": MAX_BODY_BYTES,
            "token": None,
        }
        state = ServerState()
        self._server = app.run(
            app.loop.create_server(
                lambda: Lane(config=config, server_state=state, app_state={}, **named), "127.0.0.1", 0
            )
        )
        self.port = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        self.app.loop.call_soon_threadsafe(self._server.close)


class Full(Served):
    """A server with a gate before its model, and as many requests on the way as it takes: two of them wait."""

    def __init__(self, app: RunningApp) -> None:
        super().__init__(app)
        self.gate = Gate(app, "_score")
        self.taken = [Line(self.port) for _ in range(self.gate.permits + 2)]
        for i, line in enumerate(self.taken, start=1):
            line.send(GET)
            while not self.gate.reached(i):
                app.get("/livez")

    def close(self) -> None:
        self.gate.open()
        for line in self.taken:
            assert line.answer()[0] == 200
            line.close()
        super().close()


@pytest.fixture
def full(toy_repository: Path) -> Iterator[Full]:
    """Entity views and pair views; the queue has room for two, and both are there."""
    with RunningApp(settings(toy_repository, max_batch=1, max_pairs=1, max_queue=2)) as app:
        server = Full(app)
        yield server
        server.close()


@pytest.fixture
def served(toy_repository: Path) -> Iterator[Served]:
    """Entity views and pair views."""
    with RunningApp(settings(toy_repository, max_body_bytes=MAX_BODY_BYTES)) as app:
        server = Served(app)
        yield server
        server.close()


@pytest.mark.parametrize("request_", [GET, POST, POST.replace(b"/predict", b"/rank")])
def test_refused(full: Full, request_: bytes) -> None:
    """429 with Retry-After and the problem that FastAPI would send, at once; the next request on the same connection
    is looked at after a pause, and answered when there is room.
    """
    with closing(Line(full.port)) as line:
        start = perf_counter()
        line.send(request_)
        status, headers, body = line.answer()
        assert (status, headers["retry-after"], headers["content-type"]) == (429, "1", "application/problem+json")
        ordinary = full.app.get("/predict?user=138&movie=357")
        assert (ordinary.status_code, ordinary.content) == (429, body)
        assert line.asked(request_) == 429
        assert perf_counter() - start > 0.008  # the loop counts in milliseconds
        full.gate.open()
        assert line.insists(GET) == 200


def test_the_rest_of_a_refused_list(full: Full) -> None:
    """A list is refused by its head; what comes of its body later is no request."""
    body = BODY + b" " * 50_000
    with closing(Line(full.port)) as line:
        line.send(HEAD % (len(body), b"") + body[:10])
        assert line.answer()[0] == 429
        line.send(body[10:30_000])
        line.send(body[30_000:])
        full.gate.open()
        assert line.insists(GET) == 200
        assert line.insists(POST) == 200


def test_what_waits_in_the_socket_is_late(full: Full, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that came during the pause gets no time for it; if it is late by then, it came too early."""
    monkeypatch.setattr(lane, "_AT_ONCE_S", 60.0)  # however long this test is held up
    hurried = GET.replace(b"Host", b"X-Request-Timeout-Ms: 3\r\nHost")
    with closing(Line(full.port)) as line:
        line.send(GET)
        assert line.answer()[0] == 429
        full.gate.open()
        assert line.asked(hurried) == 429
        assert line.insists(GET) == 200


def test_an_answer_that_the_loop_held_up(app: RunningApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list that was rated in time, and comes out of the event loop too late, is a 504 and no answer."""
    monkeypatch.setattr(exchange, "SENDING_S", 10.0)  # the default deadline is in 2 s
    assert app.post([{"user": 138, "movie": 357}]).status_code == 504
    monkeypatch.setattr(exchange, "SENDING_S", 0.001)
    assert app.post([{"user": 138, "movie": 357}]).status_code == 200


def test_unusual_lists_take_the_ordinary_way(full: Full) -> None:
    """They are refused there, too; and a list that says nonsense of itself is told so."""
    for head, status in (
        (b"X-Request-Timeout-Ms: 0\r\n", 422),
        (b"Connection: close\r\n", 429),
        (b"X-Request-Id: a\r\n", 429),
    ):
        with closing(Line(full.port)) as line:
            assert line.asked(HEAD % (len(BODY), head) + BODY) == status


def test_draining(full: Full) -> None:
    """Then nobody is held: who is refused is told that the connection closes."""
    full.app.loop.call_soon_threadsafe(full.app.live.drain)
    with closing(Line(full.port)) as line:
        line.send(GET)
        status, headers, _ = line.answer()
        assert (status, headers["connection"]) == (429, "close")
        assert line.ended()


KNOWN = {"user": 138, "movie": 357}
ORDINARY = b"X-Request-Id: a\r\n"


@pytest.mark.parametrize(
    ("body", "status", "lean"),
    [
        ({"pairs": [KNOWN]}, 200, True),
        ({"pairs": [KNOWN, {"movie": 50, "user": 7}] * 40}, 200, True),
        ({"pairs": [KNOWN, {"user": 1, "movie": 10**9}]}, 404, True),
        ({"pairs": [KNOWN, {"user": 7, "movie": {"title": "New"}}]}, 200, False),
        ({"pairs": [KNOWN, {"user": 7, "movie": 50.0}]}, 200, False),
        ({"pairs": [KNOWN, {"user": True, "movie": 1}]}, 422, False),
        ({"pairs": [{**KNOWN, "more": 1}]}, 422, False),
        ({"pairs": [], "more": 1}, 422, False),
        ({"pairs": [KNOWN] * 300}, 413, False),
        ([KNOWN], 422, False),
    ],
)
def test_lists_of_ids(served: Served, body: Any, status: int, lean: bool) -> None:
    """They are answered as the ordinary way does, byte for byte; of the two only the lean one names no request. What it
    cannot read for sure, and all pair views, are left to the other.
    """
    content = json.dumps(body).encode()
    with closing(Line(served.port)) as line:
        line.send(HEAD % (len(content), b"") + content)
        told, headers, answer = line.answer()
        entity_views = isinstance(served.app.live.service.engine, EntityEngine)
        assert (told, "x-request-id" not in headers) == (status, lean and entity_views)
        line.send(HEAD % (len(content), ORDINARY) + content)
        ordinary, headers, same = line.answer()
        assert (ordinary, same, headers["x-request-id"]) == (status, answer, "a")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"Content-Type: application/json; charset=utf-8", 200),
        (b"Content-Type: text/plain", 415),
        (b"Content-Type: application/json\r\nContent-Type: text/plain", 200),
        (b"X-Content-Type: application/json", 415),
    ],
)
def test_lists_that_may_not_be_json(served: Served, head: bytes, status: int) -> None:
    """The ordinary way decides."""
    request = POST.replace(b"Content-Type: application/json", head)
    with closing(Line(served.port)) as line:
        line.send(request)
        told, headers, _ = line.answer()
        assert (told, "x-request-id" in headers) == (status, True)


def test_a_list_in_pieces(served: Served) -> None:
    """Is put together by the ordinary way."""
    with closing(Line(served.port)) as line:
        for piece in (POST[:-9], POST[-9:]):
            served.app.get("/livez")
            line.send(piece)
        assert line.answer()[0] == 200
        assert line.asked(GET) == line.asked(POST) == 200


def test_a_lean_list_that_the_loop_held_up(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is a 504 as well."""
    monkeypatch.setattr(lane, "SENDING_S", 20.0)
    monkeypatch.setattr(exchange, "SENDING_S", 20.0)  # for pair views
    with closing(Line(served.port)) as line:
        assert line.asked(POST) == 504
