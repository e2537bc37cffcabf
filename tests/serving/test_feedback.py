"""levi_serve.feedback: what is acknowledged is on the disk, once, whatever happens to the server."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from benchmarks.kills import kill_often
from levi_serve import feedback as feedback_module
from levi_serve.bundle.feedback import Event, Events, StreamEvents, encode_event, read_events, stream_key
from levi_serve.errors import FeedbackError
from levi_serve.feedback import Feedback, FolderLog
from levi_serve.metrics import Metrics
from levi_serve.stream import StreamLog

from .conftest import settings, until
from .redis_server import RedisServer
from .running import RunningApp

RATED = {"user": 138, "movie": 357, "rating": 4.0}


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis that keeps what it has acknowledged."""
    server = RedisServer(tmp_path_factory.mktemp("redis"), "--appendonly", "yes", "--appendfsync", "always")
    yield server
    server.kill()


@pytest.fixture(params=["folder", "stream"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty log, of either kind."""
    if request.param == "folder":
        return str(tmp_path / "log")
    server: RedisServer = request.getfixturevalue("redis")
    server.client.flushall()
    return server.url


@pytest.fixture
def app(entity_toy_repository: Path, place: str) -> Iterator[RunningApp]:
    """A server that keeps feedback in `place`."""
    with RunningApp(settings(entity_toy_repository, feedback=place, max_body_bytes=20_000)) as running:
        yield running


@pytest.fixture(scope="module")
def bad_app(entity_toy_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    """A server whose log stays empty."""
    folder = tmp_path_factory.mktemp("bad") / "log"
    with RunningApp(settings(entity_toy_repository, feedback=folder, max_body_bytes=20_000)) as running:
        yield running


def report(app: RunningApp, **changes: Any) -> Any:
    return app.request("POST", "/feedback", json={**RATED, **changes})


def test_what_is_sent_is_what_is_read(app: RunningApp, place: str) -> None:
    """Every field comes back; what is not said is made up: an id, and now."""
    said = {"id": "e-1", "time": 1e9, "prediction_id": "p", "attributes": {"movie": {"title": "Ünicode\u2028"}}}
    assert report(app, **said).json() == {"id": "e-1", "unknown": []}
    before = time.time()
    made = report(app).json()["id"]
    first, second = read_events(place)
    assert (first.id, first.user, first.item, first.rating, first.time) == ("e-1", 138, 357, 4.0, 1e9)
    assert (first.prediction, first.attributes) == ("p", said["attributes"])
    assert second.id == made
    assert before - 1 <= second.time == second.received <= time.time()


def test_sent_again_it_counts_once(app: RunningApp, place: str) -> None:
    """Acknowledged each time, read once: the first."""
    for rating in (4.0, 1.0, 4.0):
        assert report(app, id="e-1", rating=rating).status_code == 200
    events = read_events(place)
    assert [event.rating for event in events] == [4.0]
    assert events.repeated == 2


def test_unknown_ids(app: RunningApp, place: str) -> None:
    """Stored, flagged and counted."""
    assert report(app, user=99).json()["unknown"] == ["user"]
    assert report(app, user=99, movie=98, attributes={"movie": {"title": "New"}}).json()["unknown"] == ["user", "movie"]
    assert [list(event.unknown) for event in read_events(place)] == [["user"], ["user", "movie"]]
    report(app)
    text = app.get("/metrics").text
    assert 'levi_feedback_events_total{ids="unknown"} 2.0' in text
    assert 'levi_feedback_events_total{ids="known"} 1.0' in text
    assert 0 <= time.time() - metric(text, "levi_feedback_oldest_timestamp_seconds") < 60
    size = metric(text, "levi_feedback_backlog_bytes")
    lines = sum(len(encode_event(event)) for event in read_events(place))
    assert size == lines if "://" not in place else lines < size < 10_000  # Redis takes a few pages at once


def metric(text: str, name: str) -> float:
    (line,) = (line for line in text.splitlines() if line.startswith(f"{name} "))
    return float(line.split()[1])


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
def test_bad_events(bad_app: RunningApp, changes: dict[str, Any], where: str) -> None:
    """A 422 that names the place; nothing is stored."""
    answer = report(bad_app, **changes)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["where"] == where
    assert not Path(str(bad_app.settings.feedback)).exists()


def test_too_much(bad_app: RunningApp, entity_toy_repository: Path, tmp_path: Path) -> None:
    """One that is too large is a 413; with a full log, a 503, and what was acknowledged stays."""
    assert report(bad_app, attributes={"movie": {"title": "x" * 30_000}}).status_code == 413
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


def event(id_: str, user: int = 1, item: int = 2) -> Event:
    return Event(id=id_, user=user, item=item, rating=3.0, time=4.0, received=5.0)


@pytest.mark.parametrize("broken", ["write", "fdatasync"])
def test_a_disk_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """Nothing is acknowledged; afterwards events go to another file, behind nobody's torn line."""

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def scenario() -> None:
        log = Feedback(FolderLog(tmp_path, 1 << 20), 100, Metrics())
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
    assert len(list(tmp_path.glob("*.events"))) == 2


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
        log = Feedback(FolderLog(tmp_path, 1 << 20), 1000, Metrics())

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


def the_log(place: str, max_bytes: int = 1 << 24) -> FolderLog | StreamLog:
    return StreamLog(place, "levi", max_bytes) if "://" in place else FolderLog(Path(place), max_bytes)


def test_erasing(place: str) -> None:
    """Every event of a user or an item goes, those of other processes and damaged neighbours' too; the rest stays, and
    who was writing goes on.
    """
    one, other = the_log(place), the_log(place)
    one.append([encode_event(event(f"a{i}", user=i % 3, item=9)) for i in range(6)])
    more = event("b1", user=11, item=9).model_copy(update={"attributes": {"movie": {"title": '"user":1,'}}})
    other.append([encode_event(event("b0", user=1, item=1)), encode_event(more)])
    assert one.erase(0, 1) == 3
    assert [e.id for e in read_events(place)] == ["a0", "a2", "a3", "a5", "b1"]
    assert other.erase(1, 9) == 5
    assert other.erase(1, 9) == 0
    one.append([encode_event(event("a6"))])
    other.append([encode_event(event("b2"))])
    assert sorted(e.id for e in read_events(place)) == ["a6", "b2"]
    one.close()
    other.close()


def fill(log: StreamLog) -> int:
    """Append until it is refused; how many were not."""
    count = 0
    with suppress(FeedbackError):
        for count in range(1000):
            log.append([encode_event(event(str(count)))])
    return count


def test_a_stream_that_is_full_or_gone(tmp_path: Path) -> None:
    """Nothing is acknowledged that Redis did not take; what it has acknowledged survives its death; and a Redis that
    is back is used without a restart.
    """
    server = RedisServer(tmp_path, "--appendonly", "yes", "--appendfsync", "always")
    log = StreamLog(server.url, "levi", 40_000)
    try:
        count = fill(log)
        assert 100 < count < 999
        with pytest.raises(FeedbackError, match="as much as it may"):
            log.append([encode_event(event("x"))])
        server.kill()
        with pytest.raises(FeedbackError, match=r"cannot be used.*refused"):
            log.append([encode_event(event("x"))])
        server.start()
        assert [e.id for e in StreamEvents(server.url, "levi")] == [str(i) for i in range(count)]
        server.client.xtrim(stream_key("levi"), maxlen=1)  # as retraining does
        assert 0 < log.append([encode_event(event("y"))]).size < 40_000
        server.client.config_set("maxmemory", 1)
        with pytest.raises(FeedbackError, match="maxmemory"):
            log.append([encode_event(event("z"))])
    finally:
        log.close()
        server.kill()


def test_taking_from_a_stream(redis: RedisServer) -> None:
    """What was read goes, if all went well and nothing is damaged; what came meanwhile stays."""
    redis.client.flushall()
    log, events = StreamLog(redis.url, "levi", 1 << 20), StreamEvents(redis.url, "levi")
    log.append([encode_event(event(str(i))) for i in range(5)])
    with suppress(ZeroDivisionError), events.emptied():
        assert len(list(events)) == 5
        raise ZeroDivisionError
    with events.emptied():
        assert len(list(events)) == 5
        log.append([encode_event(event("later"))])
    assert [e.id for e in events] == ["later"]
    redis.client.xadd(stream_key("levi"), {"e": "damage\n"})
    with events.emptied():
        assert len(list(events)) == 1
    assert redis.client.xlen(stream_key("levi")) == 2
    log.close()


def test_a_stream_that_is_silent(tmp_path: Path, entity_toy_repository: Path) -> None:
    """A 503 or a 504 within the request's time, and predictions go on."""
    server = RedisServer(tmp_path)
    try:
        with RunningApp(settings(entity_toy_repository, feedback=server.url)) as app:
            assert report(app).status_code == 200
            server.freeze()
            assert report(app, id="late").status_code in (503, 504)
            assert app.get("/predict?user=138&movie=357").status_code == 200
            server.thaw()
            until(lambda: report(app, id="late").status_code == 200)
        assert [e.id for e in read_events(server.url)].count("late") == 1
    finally:
        server.kill()


def test_a_clock_in_the_past(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lost or written over when the clock goes back; each id is still read once."""
    for now in (2 * 10**18, 10**18, 10**18 + 1):
        monkeypatch.setattr(feedback_module.time, "time_ns", lambda now=now: now)
        log = FolderLog(tmp_path, 1 << 20)
        log.append([encode_event(event("same")), encode_event(event(str(now)))])
        log.close()
    events = Events(tmp_path)
    assert sorted(e.id for e in events) == sorted(["same", *(str(n) for n in (2 * 10**18, 10**18, 10**18 + 1))])
    assert events.repeated == 2
    assert FolderLog(tmp_path, 1 << 20).backlog().oldest == 1e9


def test_files_that_nobody_writes_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is locked while it is written to; a large one gets a successor, an old one is let go of though
    nothing comes; one that was taken away is missed by nobody.
    """
    monkeypatch.setattr(feedback_module, "_FILE_BYTES", 300)
    log = FolderLog(tmp_path, 1 << 20)
    for i in range(5):
        log.append([encode_event(event(str(i)))])
    first, second = sorted(tmp_path.glob("*.events"))
    assert [is_locked(file) for file in (first, second)] == [False, True]
    second.unlink()
    log.append([encode_event(event("5"))])
    (third,) = set(tmp_path.glob("*.events")) - {first}
    assert [e.id for e in Events(third)] == ["5"]
    log.backlog()
    assert is_locked(third)
    monkeypatch.setattr(feedback_module, "_FILE_S", 0.0)
    log.backlog()  # it is looked at now and then, though no event comes
    assert not is_locked(third)
    log.append([encode_event(event("6"))])
    log.close()
    assert not any(map(is_locked, tmp_path.glob("*.events")))


def is_locked(file: Path) -> bool:
    with file.open() as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def test_a_stream_that_forgets(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Settings of Redis that lose acknowledged events are told in the log."""
    server = RedisServer(tmp_path, "--maxmemory-policy", "allkeys-lru")
    log = StreamLog(server.url, "levi", 1 << 20)
    try:
        log.append([encode_event(event("a"))])
        assert "'appendonly' is off" in caplog.text
        assert "may evict" in caplog.text
    finally:
        log.close()
        server.kill()


def test_places() -> None:
    """What has a scheme is a Redis URL, and must be a good one."""
    assert isinstance(read_events("log"), Events)
    assert isinstance(read_events("rediss://host"), StreamEvents)
    with pytest.raises(ValueError, match="feedback"):
        settings(Path(), feedback="http://host")


def test_kill(entity_toy_repository: Path, place: str) -> None:
    """Killed at random moments of full load, again and again, the server has lost no event that it acknowledged, and
    none is read twice. `python -m benchmarks.kills` does it a hundred times.
    """
    kills = int(os.environ.get("LEVI_KILLS", "2"))
    facts = kill_often(entity_toy_repository, place, kills)
    assert facts["acknowledged"] > 20 * kills
    assert (facts["lost"], facts["read_twice"], facts["damaged"]) == (0, 0, 0)
