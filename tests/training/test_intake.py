"""training.intake: a batch holds each event once, and nothing leaves the log before the batch is whole."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis

from levi_serve.bundle.feedback import FIELD, Event, Events, encode_event, stream_key
from tests.serving.conftest import start_redis
from training import intake
from training.intake import Folder, Taken, log_at, take

__all__ = ["start_redis"]


def event(ident: str, rating: float = 4.0, time: float = 10.0) -> Event:
    return Event(id=ident, user=1, item=2, rating=rating, time=time, received=20.0)


def write(path: Path, events: Sequence[Event], end: bytes = b"") -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"".join(map(encode_event, events)) + end)
    return path


def ids(path: Path) -> list[str]:
    return [one.id for one in Events(path)]


def test_each_event_once(tmp_path: Path) -> None:
    """Over files, over earlier batches, over another start; clocks that went back change nothing but the order."""
    write(tmp_path / "log/2-1.events", [event("a"), event("b", 1.0), event("b", 5.0)])
    write(tmp_path / "log/1-1.events", [event("c", time=-5), event("a")], end=b"12345678 torn")
    one, two = tmp_path / "1.events", tmp_path / "2.events"
    assert take(Folder(tmp_path / "log"), [], one) == Taken(events=3, repeated=2, damaged=0)
    assert ids(one) == ["c", "a", "b"]
    assert [e.rating for e in Events(one)] == [4.0, 4.0, 1.0]
    assert not [*(tmp_path / "log").iterdir()]
    write(tmp_path / "log/0-9.events", [event("b"), event("d")])
    assert take(Folder(tmp_path / "log"), [one], two) == Taken(events=1, repeated=1, damaged=0)
    assert ids(two) == ["d"]


def test_a_file_that_is_written_to_stays(tmp_path: Path) -> None:
    """The server holds its lock: the file is read, now and again later, and each event is taken once."""
    path = write(tmp_path / "log/1-1.events", [event("a")])
    with path.open("ab") as server:
        fcntl.flock(server, fcntl.LOCK_EX)
        assert take(Folder(tmp_path / "log"), [], tmp_path / "1.events").events == 1
        server.write(encode_event(event("b")))
    assert take(Folder(tmp_path / "log"), [tmp_path / "1.events"], tmp_path / "2.events").events == 1
    assert ids(tmp_path / "2.events") == ["b"]
    assert not path.exists()


def test_a_kill_before_the_batch_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log is as it was, and there is no batch."""
    path = write(tmp_path / "log/1-1.events", [event("a"), event("b")])
    before = path.read_bytes()
    with monkeypatch.context() as patches:
        patches.setattr(intake, "encode_event", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            take(Folder(tmp_path / "log"), [], tmp_path / "1.events")
    assert path.read_bytes() == before
    assert not (tmp_path / "1.events").exists()
    assert take(Folder(tmp_path / "log"), [], tmp_path / "1.events").events == 2


def test_damage_is_kept(tmp_path: Path) -> None:
    """Where lines are not what was written, the rest is taken and the files stay."""
    path = write(tmp_path / "log/1-1.events", [event("a")], end=b"00000000 {}\n" + encode_event(event("b")))
    assert take(Folder(tmp_path / "log"), [], tmp_path / "1.events") == Taken(events=2, repeated=0, damaged=1)
    assert path.exists()


def test_redis(tmp_path: Path, start_redis: Callable[..., Any]) -> None:
    """A stream is a log like a folder: each event once, and what was taken is gone."""
    server = start_redis()
    log = log_at(server.url, "levi")
    with redis.Redis.from_url(server.url) as client:
        for one in (event("a"), event("b"), event("a")):
            client.xadd(stream_key("levi"), {FIELD: encode_event(one)})
        assert take(log, [], tmp_path / "1.events") == Taken(events=2, repeated=1, damaged=0)
        assert client.xlen(stream_key("levi")) == 0
        client.xadd(stream_key("levi"), {FIELD: encode_event(event("b"))})
        client.xadd(stream_key("levi"), {FIELD: encode_event(event("c"))})
    assert take(log_at(server.url, "levi"), [tmp_path / "1.events"], tmp_path / "2.events").events == 1
    assert ids(tmp_path / "2.events") == ["c"]
