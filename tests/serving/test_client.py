"""levi_serve.client: what it sends and what it makes of the answers, against the real server where that can be."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from levi_serve.client import Client, LeviError

from .conftest import ROOT, Process
from .toy import Toy

TOKEN = "t0ken"
NEW_FILM = {"title": "A New Film"}


@pytest.fixture(scope="module")
def server(toy_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A server with a token that is ready."""
    log = tmp_path_factory.mktemp("client") / "log"
    running = Process(log, "--model-repo", str(toy_repository), "--drain-s", "0", "--token", TOKEN, "--max-pairs", "20")
    running.settled()
    yield running
    running.close()


@pytest.fixture
def client(server: Process) -> Iterator[Client]:
    """A client that knows the token."""
    with Client(server.url, TOKEN, timeout=10) as client:
        yield client


def test_predict(client: Client, toy: Toy) -> None:
    """One known pair."""
    found = client.predict(user=138, movie=357)
    assert found.entities == {"user": 138, "movie": 357}
    assert found.rating == pytest.approx(toy.rating(138, 357), abs=2e-6)
    assert len(found.heads) == 3
    assert 0 <= found.ood_score <= 1
    assert found.disagreement >= 0
    assert (found.cold_start, found.degraded, found.model, found.version) == ((), (), "levi", 1)
    assert found.attributes is None


def test_predict_new_entity(client: Client) -> None:
    """A new entity is given by its attributes, and comes back with them."""
    found = client.predict(user=138, movie=NEW_FILM)
    assert found.entities == {"user": 138, "movie": NEW_FILM}
    assert found.cold_start == ("movie",)


def test_predict_many(client: Client) -> None:
    """Answers are in order, for any iterable; each as if it were asked alone."""
    pairs = [{"user": user, "movie": movie} for user in (138, 7) for movie in (357, 50, NEW_FILM)]
    found = client.predict_many(iter(pairs))
    assert [one.entities for one in found] == pairs
    assert found[0].rating == pytest.approx(client.predict(user=138, movie=357).rating, abs=1e-5)


def test_info(client: Client) -> None:
    """What is served."""
    assert client.info()["status"] == "ready"


def test_errors_are_problem_documents(client: Client) -> None:
    """All that the server says about an error is in the exception, and its text is enough to act."""
    with pytest.raises(LeviError, match="404 Unknown id: There is no movie 4 in the catalogue") as unknown:
        client.predict(user=138, movie=4)
    assert unknown.value.status == 404
    assert unknown.value.type == "urn:levi:problem:unknown-id"
    assert unknown.value.retry_after is None
    with pytest.raises(LeviError) as wrong:
        client.predict(user="x", movie=357)
    assert (wrong.value.status, wrong.value.errors[0]["where"]) == (422, "user")
    with pytest.raises(LeviError) as long:
        client.predict_many([{"user": 138, "movie": 357}] * 21)
    assert long.value.status == 422


def test_token(server: Process) -> None:
    """Without the token there is a 401."""
    for token in (None, "wrong"):
        with Client(server.url, token) as client, pytest.raises(LeviError, match="401 Unauthorized: send the server's"):
            client.info()


def test_lines_are_kept(server: Process, client: Client) -> None:
    """Many requests use one connection."""
    for _ in range(5):
        client.predict(user=138, movie=357)
    lines = psutil.Process(server.popen.pid).net_connections()
    ours = [line for line in psutil.Process().net_connections() if line.raddr and line.status == "ESTABLISHED"]
    ports = {line.laddr.port for line in ours}
    assert sum(bool(line.raddr) and line.raddr.port in ports for line in lines if line.status == "ESTABLISHED") <= 2


def test_nobody_there() -> None:
    """No answer is httpx's own error."""
    with Client("http://127.0.0.1:9") as client, pytest.raises(httpx.ConnectError):
        client.info()


class Script(http.server.BaseHTTPRequestHandler):
    """Gives the answers that it was told to, and keeps what it was sent."""

    protocol_version = "HTTP/1.1"
    answers: list[tuple[int, dict[str, str], Any]]
    seen: list[tuple[str, str, dict[str, str], Any]]

    def do_GET(self) -> None:
        length = int(self.headers.get("content-length", 0))
        body = json.loads(self.rfile.read(length)) if length else None
        self.seen.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        status, headers, content = self.answers.pop(0)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"content-length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_GET  # noqa: N815 - the base class's name

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def scripted() -> Iterator[Callable[..., tuple[str, list[Any]]]]:
    """Starts a server that answers by a script; gives its address and the list of what it is sent."""
    servers: list[http.server.HTTPServer] = []
    threads: list[threading.Thread] = []

    def starter(*answers: tuple[int, dict[str, str], Any]) -> tuple[str, list[Any]]:
        handler = type("Handler", (Script,), {"answers": list(answers), "seen": []})
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        servers[-1].daemon_threads = True
        threads.append(threading.Thread(target=servers[-1].serve_forever))
        threads[-1].start()
        return f"http://127.0.0.1:{servers[-1].server_port}", handler.seen

    yield starter
    for server, thread in zip(servers, threads, strict=True):
        server.shutdown()
        thread.join()
        server.server_close()


PROBLEM = {"content-type": "application/problem+json"}
ANSWER = {
    "user": 138,
    "rating": 4.5,
    "heads": [4.0, 5.0],
    "disagreement": 0.5,
    "ood_score": 0.25,
    "cold_start": ["movie"],
    "degraded": ["user"],
}
LISTED = {
    "user": 138,
    "model": "levi",
    "version": 2,
    "items": [
        {**{name: value for name, value in ANSWER.items() if name != "user"}, "movie": movie, "attributes": {"year": 1}}
        for movie in (357, 50)
    ],
}


def test_recommend(scripted: Callable[..., Any]) -> None:
    """The best items of the catalogue, each complete with what the answer says once."""
    url, seen = scripted((200, {}, LISTED), (200, {}, LISTED))
    with Client(url, timeout=0.25) as client:
        found = client.recommend(user=138, k=2)
        client.recommend(user=138, k=2, exclude_rated=True)
    assert [one.entities for one in found] == [{"user": 138, "movie": 357}, {"user": 138, "movie": 50}]
    assert (found[0].rating, found[0].heads, found[0].cold_start) == (4.5, (4.0, 5.0), ("movie",))
    assert (found[0].degraded, found[0].attributes, found[0].model, found[0].version) == (
        ("user",),
        {"year": 1},
        "levi",
        2,
    )
    assert [(method, path) for method, path, _, _ in seen] == [
        ("GET", "/recommend?user=138&k=2&exclude_rated=false"),
        ("GET", "/recommend?user=138&k=2&exclude_rated=true"),
    ]
    assert seen[0][2]["x-request-timeout-ms"] == "250"
    assert "authorization" not in seen[0][2]


def test_best_items_of_a_server(client: Client, toy: Toy) -> None:
    """The server understands both, for known users and for new ones, and each item is complete."""
    new = {"age": 30}
    for user in (138, new):
        ranked = client.rank(user=user, movies=[50, NEW_FILM, 357])
        assert [one.rating for one in ranked] == sorted((one.rating for one in ranked), reverse=True)
        assert all(one.entities["user"] == user and one.model == "levi" for one in ranked)
        if toy.views == "pair":
            with pytest.raises(LeviError, match="409 Unsupported"):
                client.recommend(user=user)
            continue
        best = client.recommend(user=user, k=2, exclude_rated=True)
        assert len(best) == 2
        assert all(one.attributes and one.entities["user"] == user for one in best)


def test_rank(scripted: Callable[..., Any]) -> None:
    """A user and candidates under the names of the schema."""
    url, seen = scripted((200, {}, LISTED), (200, {}, LISTED))
    with Client(url, "t") as client:
        assert [one.entities["movie"] for one in client.rank(user=138, movies=[50, 357])] == [357, 50]
        client.rank(movies=iter((50, 357)), user=138)
    for method, path, headers, body in seen:
        assert (method, path, body) == ("POST", "/rank", {"user": 138, "movies": [50, 357]})
        assert headers["authorization"] == "Bearer t"


def test_retries_when_asked_to(scripted: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """429 and 503 are tried again after the time that the server names, or a second, as often as asked."""
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    busy = (429, {**PROBLEM, "retry-after": "7"}, {"title": "Overloaded"})
    loading = (503, PROBLEM, {"title": "Not ready"})
    url, seen = scripted(busy, loading, (200, {}, {"status": "ready"}))
    with Client(url, retries=2) as client:
        assert client.info() == {"status": "ready"}
    assert slept == [7, 1.0]
    url, seen = scripted(busy, busy, busy)
    with Client(url, retries=1) as client, pytest.raises(LeviError, match="429 Overloaded") as error:
        client.info()
    assert (error.value.retry_after, len(seen)) == (7, 2)


@pytest.mark.parametrize(("status", "retries"), [(429, 0), (503, 0), (404, 3), (500, 3), (504, 3)])
def test_does_not_retry(scripted: Callable[..., Any], status: int, retries: int) -> None:
    """Nothing is sent twice unless that was asked for and can help."""
    url, seen = scripted((status, PROBLEM, {"title": "No"}))
    with Client(url, retries=retries) as client, pytest.raises(LeviError) as error:
        client.predict(user=1, movie=2)
    assert (error.value.status, len(seen)) == (status, 1)


@pytest.mark.parametrize("headers", [{}, {"content-type": "text/html", "retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}])
def test_an_error_of_somebody_else(scripted: Callable[..., Any], headers: dict[str, str]) -> None:
    """A proxy's page is an error too: its status and its beginning are told."""
    url, _ = scripted((502, headers, b"<h1>Bad</h1>" + b"x" * 1000))
    with Client(url) as client, pytest.raises(LeviError, match=r"502 Bad Gateway: <h1>Bad</h1>x+$") as error:
        client.info()
    assert (error.value.type, error.value.retry_after, len(error.value.detail)) == ("about:blank", None, 200)


def test_the_server_does_not_need_it() -> None:
    """The server runs without the client's dependency."""
    code = "import sys, levi_serve.worker, levi_serve.workers; print('httpx' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"
