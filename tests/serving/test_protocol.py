"""levi_serve.protocol: what is no HTTP gets the same kind of answer as everything else."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import Process


@pytest.fixture(scope="module")
def server(entity_toy_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A server that is ready."""
    running = Process(
        tmp_path_factory.mktemp("protocol") / "log", "--model-repo", str(entity_toy_repository), "--drain-s", "0"
    )
    running.settled()
    yield running
    running.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /predict?user=1&movie=2 HTTP/9.9\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nno colon\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
def test_no_http(server: Process, sent: bytes) -> None:
    """A 400 problem, and the line is closed; it is counted like every other."""
    before = malformed(server)
    with socket.create_connection((server.http.base_url.host, server.http.base_url.port), timeout=10) as line:
        line.sendall(sent)
        answer = b"".join(iter(lambda: line.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *headers = head.decode().split("\r\n")
    fields = dict(header.split(": ", 1) for header in headers)
    assert status == "HTTP/1.1 400 Bad Request"
    assert fields["content-type"] == "application/problem+json"
    assert fields["connection"] == "close"
    assert int(fields["content-length"]) == len(body)
    assert "date" in fields
    problem = json.loads(body)
    assert list(problem) == ["type", "title", "status", "detail", "errors"]
    assert (problem["type"], problem["status"]) == ("urn:levi:problem:malformed-http", 400)
    assert server.http.get("/livez").status_code == 200
    assert malformed(server) == before + 1


def malformed(server: Process) -> float:
    """How often the metrics say that something was no HTTP."""
    lines = server.http.get("/metrics").text.splitlines()
    counts = [line.split()[-1] for line in lines if line.startswith('levi_errors_total{problem="malformed-http"}')]
    return float(counts[0]) if counts else 0.0
