"""levi_serve.feedback: what is acknowledged is on the disk, once, whatever happens to the server."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from levi_serve import feedback as feedback_module
from levi_serve.bundle.feedback import Event, Events, encode_event
from levi_serve.errors import FeedbackError
from levi_serve.feedback import FeedbackLog
from levi_serve.metrics import Metrics

from .conftest import ROOT, settings, until
from .redis_server import free_port
from .running import RunningApp

RATED = {"user": 138, "movie": 357, "rating": 4.0}


@pytest.fixture
def app(entity_toy_repository: Path, tmp_path: Path) -> Iterator[RunningApp]:
    """A server that keeps feedback in `tmp_path`/log."""
    with RunningApp(settings(entity_toy_repository, feedback=tmp_path / "log", max_body_bytes=20_000)) as running:
        yield running


def report(app: RunningApp, **changes: Any) -> Any:
    return app.request("POST", "/feedback", json={**RATED, **changes})


def test_what_is_sent_is_what_is_read(app: RunningApp, tmp_path: Path) -> None:
    """Every field comes back; what is not said is made up: an id, and now."""
    said = {"id": "e-1", "time": 1e9, "prediction_id": "p", "attributes": {"movie": {"title": "Ünicode\u2028"}}}
    assert report(app, **said).json() == {"id": "e-1", "unknown": []}
    before = time.time()
    made = report(app).json()["id"]
    first, second = Events(tmp_path / "log")
    assert (first.id, first.user, first.item, first.rating, first.time) == ("e-1", 138, 357, 4.0, 1e9)
    assert (first.prediction, first.attributes) == ("p", said["attributes"])
    assert second.id == made
    assert before - 1 <= second.time == second.received <= time.time()


def test_sent_again_it_counts_once(app: RunningApp, tmp_path: Path) -> None:
    """Acknowledged each time, read once: the first."""
    for rating in (4.0, 1.0, 4.0):
        assert report(app, id="e-1", rating=rating).status_code == 200
    events = Events(tmp_path / "log")
    assert [event.rating for event in events] == [4.0]
    assert events.repeated == 2


def test_unknown_ids(app: RunningApp, tmp_path: Path) -> None:
    """Stored, flagged and counted."""
    assert report(app, user=99).json()["unknown"] == ["user"]
    assert report(app, user=99, movie=98, attributes={"movie": {"title": "New"}}).json()["unknown"] == ["user", "movie"]
    assert [list(event.unknown) for event in Events(tmp_path / "log")] == [["user"], ["user", "movie"]]
    report(app)
    text = app.get("/metrics").text
    assert 'levi_feedback_events_total{ids="unknown"} 2.0' in text
    assert 'levi_feedback_events_total{ids="known"} 1.0' in text
    size = sum(file.stat().st_size for file in (tmp_path / "log").iterdir())
    (backlog,) = (line for line in text.splitlines() if line.startswith("levi_feedback_backlog_bytes "))
    assert float(backlog.split()[1]) == size


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"rating": 5.5}, "rating"),
        ({"rating": 0.9}, "rating"),
        ({"rating": "4"}, "rating"),
        ({"rating": None}, "rating"),
        ({"user": "x"}, "user"),
        ({"movie": {"title": "New"}}, "movie"),
        ({"time": -1}, "time"),
        ({"time": 1e12}, "time"),
        ({"id": ""}, "id"),
        ({"id": "x" * 129}, "id"),
        ({"attributes": {"movie": {"stars": 3}}}, "attributes.movie.stars"),
        ({"attributes": {"movie": {}}}, "attributes.movie"),
        ({"stars": 3}, "stars"),
    ],
)
def test_bad_events(app: RunningApp, tmp_path: Path, changes: dict[str, Any], where: str) -> None:
    """A 422 that names the place; nothing is stored."""
    answer = report(app, **changes)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["where"] == where
    assert not (tmp_path / "log").exists()


def test_too_much(app: RunningApp, entity_toy_repository: Path, tmp_path: Path) -> None:
    """One that is too large is a 413; with a full log, a 503, and what was acknowledged stays."""
    assert report(app, attributes={"movie": {"title": "x" * 30_000}}).status_code == 413
    with RunningApp(settings(entity_toy_repository, feedback=tmp_path / "full", feedback_max_mib=1)) as full:
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / f"{0:020}-1.events").write_bytes(b"x" * ((1 << 20) - 300))
        assert full.request("POST", "/feedback", json=RATED).status_code == 200
        refused = full.request("POST", "/feedback", json=RATED)
        assert (refused.status_code, refused.json()["type"]) == (503, "urn:levi:problem:feedback-unavailable")
        (tmp_path / "full" / f"{0:020}-1.events").unlink()
        assert full.request("POST", "/feedback", json=RATED).status_code == 200


def test_without_a_folder(entity_app: RunningApp) -> None:
    """Refused, with what to do."""
    answer = entity_app.request("POST", "/feedback", json=RATED)
    assert answer.status_code == 409
    assert "--feedback" in answer.json()["detail"]


def event(id_: str) -> Event:
    return Event(id=id_, user=1, item=2, rating=3.0, time=4.0, received=5.0)


@pytest.mark.parametrize("broken", ["write", "fdatasync"])
def test_a_disk_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """Nothing is acknowledged; afterwards events go to another file, behind nobody's torn line."""

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def scenario() -> None:
        log = FeedbackLog(tmp_path, 1 << 20, 100, Metrics())
        await log.append(event("a"), float("inf"))
        with monkeypatch.context() as patch:
            patch.setattr(feedback_module.os, broken, full)
            with pytest.raises(FeedbackError, match="No space left"):
                await log.append(event("b"), float("inf"))
        await log.append(event("c"), float("inf"))
        await log.close()

    asyncio.run(scenario())
    found = [one.id for one in Events(tmp_path)]
    assert found == (["a", "c"] if broken == "write" else ["a", "b", "c"])  # not acknowledged is not: not there
    assert len(list(tmp_path.iterdir())) == 2


def test_many_share_one_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events that arrive while the disk is busy go together; each is acknowledged after the fsync behind it."""
    synced: list[int] = []
    fdatasync = os.fdatasync

    def slow(file: int) -> None:
        time.sleep(0.02)
        fdatasync(file)
        synced.append(os.fstat(file).st_size)

    monkeypatch.setattr(feedback_module.os, "fdatasync", slow)

    async def scenario() -> None:
        log = FeedbackLog(tmp_path, 1 << 20, 1000, Metrics())

        async def one(i: int) -> None:
            await log.append(event(str(i)), float("inf"))
            assert synced

        await asyncio.gather(*(one(i) for i in range(500)))
        await log.close()

    asyncio.run(scenario())
    assert len(list(Events(tmp_path))) == 500
    assert len(synced) <= 3


def test_damage(tmp_path: Path) -> None:
    """A torn end is nothing; a changed byte is one damaged line, and the others are read."""
    lines = [encode_event(event(str(i))) for i in range(3)]
    changed = bytearray(lines[1])
    changed[20] ^= 1
    (tmp_path / "1.events").write_bytes(lines[0] + changed + lines[2] + lines[0][:-1])
    (tmp_path / "2.events").write_bytes(lines[1][:17])
    events = Events(tmp_path)
    assert [one.id for one in events] == ["0", "2"]
    assert events.damaged == 1


class Senders:
    """Clients that report events of their own at full rate, and again until they are acknowledged."""

    def __init__(self, port: int, clients: int) -> None:
        self.acknowledged: set[str] = set()
        self._port = port
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(i,)) for i in range(clients)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(timeout=20)

    def _send(self, client: int) -> None:
        number = 0
        while not self._over.is_set():
            try:
                with socket.create_connection(("127.0.0.1", self._port), timeout=5) as line:
                    while not self._over.is_set():
                        if self._one(line, f"{client}-{number}"):
                            number += 1
            except OSError:
                time.sleep(0.01)

    def _one(self, line: socket.socket, id_: str) -> bool:
        body = json.dumps({**RATED, "id": id_}).encode()
        head = f"POST /feedback HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        line.sendall(head.encode() + b"\r\n\r\n" + body)
        answer = line.recv(4096)
        if not answer:
            raise ConnectionResetError
        if not answer.startswith(b"HTTP/1.1 200") or id_.encode() not in answer:
            return False
        self.acknowledged.add(id_)
        return True


KILLS = int(os.environ.get("LEVI_KILLS", "3"))


def test_kill(entity_toy_repository: Path, tmp_path: Path) -> None:
    """Killed at random moments of full load, again and again, the server has lost no event that it acknowledged, and
    none is read twice. LEVI_KILLS=100 takes some minutes.
    """
    port, log = free_port(), tmp_path / "log"
    command = [sys.executable, "-m", "levi_serve.cli", "--model-repo", str(entity_toy_repository), "--threads", "1"]
    flags = ["--port", str(port), "--feedback", str(log)]
    moments = random.Random(0)
    senders = Senders(port, 8)
    try:
        for _ in range(KILLS):
            goal = len(senders.acknowledged) + 20
            server = subprocess.Popen([*command, *flags], cwd=ROOT, stderr=subprocess.DEVNULL)
            try:
                until(lambda goal=goal: len(senders.acknowledged) > goal)
                time.sleep(moments.uniform(0, 0.3))
            finally:
                server.send_signal(signal.SIGKILL)
                server.wait()
    finally:
        senders.end()
    events = Events(log)
    found = [one.id for one in events]
    assert senders.acknowledged <= set(found)
    assert len(found) == len(set(found))
    assert events.damaged == 0
    assert len(senders.acknowledged) > 20 * KILLS
    assert not [child for child in psutil.Process().children() if child.pid == server.pid]
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/livez")
