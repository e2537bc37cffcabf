"""levi_serve.server: the real process over real sockets, from its start to its end."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest

from .conftest import Process
from .toy import Toy

Start = Callable[..., Process]
PAIR = {"user": 138, "movie": 357}


def test_starts_answers_and_ends(start: Start, toy: Toy, toy_repository: Path) -> None:
    """The process becomes ready, answers over HTTP as the model does, and SIGTERM ends it with code 0."""
    server = start("--model-repo", str(toy_repository), "--drain-s", "0")
    assert server.settled().json() == {"status": "ready"}
    answer = server.http.get("/predict", params=PAIR)
    assert answer.json()["rating"] == pytest.approx(toy.rating(138, 357), abs=2e-6)
    server.popen.send_signal(signal.SIGTERM)
    assert server.exit_code() == 0
    said = [line.split(" ", 3)[3] for line in server.text().splitlines()]
    assert said[0].startswith(f"settings model_repo={toy_repository} model=levi ")
    assert said[1].startswith("listening on http://127.0.0.1:")
    assert said[2].startswith("ready: levi/1, loaded in")
    assert said[3:] == ["draining", "stopping"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_drains(start: Start, entity_toy_repository: Path, number: signal.Signals) -> None:
    """After a signal /readyz says 503 while predictions are still answered on new connections; then it exits 0."""
    server = start("--model-repo", str(entity_toy_repository), "--drain-s", "0.6")
    server.settled()
    server.popen.send_signal(number)
    end = time.monotonic() + 5
    while (ready := httpx.get(f"{server.url}/readyz")).status_code == 200 and time.monotonic() < end:
        time.sleep(0.01)
    assert ready.status_code == 503
    assert ready.json()["detail"] == "the server is shutting down"
    answer = server.http.get("/predict", params=PAIR)
    assert answer.status_code == 200
    assert answer.headers["connection"] == "close"
    assert server.http.get("/info").json()["status"] == "draining"
    assert server.exit_code() == 0


def half_a_request(server: Process) -> tuple[socket.socket, bytes]:
    """A POST of which only the first half has arrived, and its second half."""
    body = json.dumps({"pairs": [PAIR] * 100}).encode()
    host, port = server.http.base_url.host, server.http.base_url.port
    line = socket.create_connection((host, port), timeout=10)
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    line.sendall(head.encode() + body[:500])
    time.sleep(0.1)
    return line, body[500:]


def test_requests_in_flight_are_answered(start: Start, entity_toy_repository: Path) -> None:
    """A request that had begun before SIGTERM is answered although the server has stopped to listen meanwhile."""
    server = start("--model-repo", str(entity_toy_repository), "--drain-s", "0")
    server.settled()
    line, rest = half_a_request(server)
    with line:
        server.popen.send_signal(signal.SIGTERM)
        while "stopping" not in server.text():
            time.sleep(0.01)
        time.sleep(0.2)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/readyz")
        line.sendall(rest)
        assert line.recv(20).startswith(b"HTTP/1.1 200 OK")
    assert server.exit_code() == 0


def test_a_client_that_never_finishes_is_cut_off(start: Start, entity_toy_repository: Path) -> None:
    """A request that never ends does not keep the process alive beyond `shutdown_s`, nor does an idle connection."""
    server = start("--model-repo", str(entity_toy_repository), "--drain-s", "0", "--shutdown-s", "1")
    server.settled()
    line, _ = half_a_request(server)
    with line:
        server.popen.send_signal(signal.SIGTERM)
        assert server.exit_code() == 0


def test_second_signal_ends_the_waiting(start: Start, entity_toy_repository: Path) -> None:
    """Ctrl-C pressed again ends a long drain at once."""
    server = start("--model-repo", str(entity_toy_repository), "--drain-s", "600")
    server.settled()
    server.popen.send_signal(signal.SIGINT)
    while "draining" not in server.text():
        time.sleep(0.01)
    server.popen.send_signal(signal.SIGINT)
    assert server.exit_code() == 0


def test_bad_bundle(start: Start, entity_toy_repository: Path, tmp_path: Path) -> None:
    """With a changed byte in the version that is to be served the process stays up, is not ready, and names the file
    in /readyz, /info and the log; no other version is served instead.
    """
    repository = Path(shutil.copytree(entity_toy_repository, tmp_path / "repository"))
    rows = Toy("entity").write(repository, version=2) / "movies.rows.npy"
    content = bytearray(rows.read_bytes())
    content[-1] ^= 1
    rows.write_bytes(content)
    server = start("--model-repo", str(repository), "--drain-s", "0", "--version", "2")
    answer = server.settled()
    assert answer.status_code == 503
    assert "levi/2/movies.rows.npy: checksum differs" in answer.json()["detail"]
    assert "levi/2/movies.rows.npy" in server.http.get("/info").json()["reason"]
    assert "levi/2/movies.rows.npy" in server.http.get("/predict", params=PAIR).json()["detail"]
    assert server.http.get("/livez").status_code == 200
    assert "levi_ready 0.0" in server.http.get("/metrics").text
    assert "not ready: " in server.text()
    assert "Traceback" not in server.text()
    server.popen.send_signal(signal.SIGTERM)
    assert server.exit_code() == 0


def test_ten_megabytes_over_a_socket(start: Start, entity_toy_repository: Path) -> None:
    """A body of 10 MB is refused with 413 over real HTTP, announced or in chunks, and memory stays flat."""
    server = start("--model-repo", str(entity_toy_repository), "--drain-s", "0")
    server.settled()
    process = psutil.Process(server.popen.pid)
    before = process.memory_info().rss
    for content in (b" " * 10_000_000, (b" " * 100_000 for _ in range(100))):
        answer = server.http.post("/predict", content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 413
    assert server.http.get("/predict", params=PAIR).status_code == 200
    assert process.memory_info().rss - before < 5_000_000


def test_idle_server_uses_no_cpu(start: Start, entity_toy_repository: Path) -> None:
    """Nothing polls: a ready server without requests uses at most 1 % of a core."""
    server = start("--model-repo", str(entity_toy_repository), "--drain-s", "0")
    server.settled()
    process = psutil.Process(server.popen.pid)
    before = sum(process.cpu_times()[:2])
    time.sleep(1.0)
    assert sum(process.cpu_times()[:2]) - before <= 0.02
