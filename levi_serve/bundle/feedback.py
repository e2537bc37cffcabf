"""Feedback events: what the server's log holds and retraining reads, from a folder or from a Redis stream.

A folder holds files `*.events`, each written by one process and only ever appended to. A line is the CRC-32 of an
event's JSON in hex, a space, and the JSON. What a process that was killed has left at a file's end is no line and was
never acknowledged. A stream's entries hold such lines under the field `e`. Either way an event may have been sent more
than once: whoever reads takes each id once, the first.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from zlib import crc32

from pydantic import Field, ValidationError

from levi_serve.bundle.redis_url import is_redis, open_redis
from levi_serve.bundle.rows import Id
from levi_serve.bundle.schema import Frozen

SUFFIX = ".events"
FIELD = b"e"
"""Of a stream's entries."""
_CHUNK = 2000
"""Entries of a stream in one answer."""
_TIMEOUT_S = 30.0


class Event(Frozen):
    """A rating that somebody gave."""

    id: str
    user: Id
    item: Id
    rating: float
    time: float
    """When it was given [s since 1970]."""
    received: float
    """When the server got it [s since 1970]."""
    prediction: str | None = None
    """Of the request that it answers, if the client says so."""
    attributes: Mapping[str, dict[str, Any]] = Field(default_factory=dict)
    """Of entities that the client describes, by the entity's name."""
    unknown: Sequence[str] = ()
    """Entities that are not in the catalogue of the version that was served."""


def encode_event(event: Event) -> bytes:
    """Its line."""
    said = event.model_dump_json(exclude_defaults=True).encode()
    return b"%08x %b\n" % (crc32(said), said)


def decode_event(line: bytes) -> Event | None:
    """The event of a line; None if it is not what `encode_event` returned."""
    said = line[9:-1]
    if not line.endswith(b"\n") or line[:9] != b"%08x " % crc32(said):
        return None
    try:
        return Event.model_validate(json.loads(said))
    except (ValueError, ValidationError):
        return None


def stream_key(model: str) -> bytes:
    """The stream of a model's events."""
    return f"levi:{model}:feedback".encode()


class _Once(ABC):
    """Events, each id once."""

    def __init__(self) -> None:
        self.repeated = 0
        """Events whose id had been read before."""
        self.damaged = 0
        """Lines that are not what was written; a file's unfinished end is none."""

    def __iter__(self) -> Iterator[Event]:
        """In the order in which they were stored, as far as that is known."""
        seen: set[str] = set()
        for line in self._lines():
            event = decode_event(line)
            if event is None:
                self.damaged += line.endswith(b"\n")
            elif event.id in seen:
                self.repeated += 1
            else:
                seen.add(event.id)
                yield event

    @abstractmethod
    def _lines(self) -> Iterator[bytes]:
        """Whatever is stored."""


class Events(_Once):
    """The events of a folder, in the order of its files' names, or of one such file."""

    def __init__(self, place: Path) -> None:
        """A folder that is not there has none."""
        super().__init__()
        self.place = place

    def _lines(self) -> Iterator[bytes]:
        for file in [self.place] if self.place.is_file() else sorted(self.place.glob(f"*{SUFFIX}")):
            with file.open("rb") as lines:
                yield from lines


class StreamEvents(_Once):
    """The events of a Redis stream, in the order in which Redis got them."""

    def __init__(self, url: str, model: str) -> None:
        """Nothing is asked before they are read."""
        super().__init__()
        self._url = url
        self._key = stream_key(model)
        self._last = b""

    @contextmanager
    def emptied(self) -> Iterator[None]:
        """Take what has been read out of the stream when the block ends well; unless lines are damaged: then everything
        stays, for somebody to look at. What comes meanwhile stays.
        """
        self._last = b""
        yield
        if self._last and not self.damaged:
            milliseconds, _, number = self._last.decode().partition("-")
            with closing(open_redis(self._url, _TIMEOUT_S)) as redis:
                redis.xtrim(self._key, minid=f"{milliseconds}-{int(number) + 1}", approximate=False)

    def _lines(self) -> Iterator[bytes]:
        with closing(open_redis(self._url, _TIMEOUT_S)) as redis:
            after = "-"
            while entries := redis.xrange(self._key, min=after, count=_CHUNK):
                for number, fields in entries:
                    yield fields.get(FIELD, b"\n")
                    self._last = number
                after = f"({entries[-1][0].decode()}"


def read_events(place: str | Path, model: str = "levi") -> Events | StreamEvents:
    """The events of a feedback log, as `levi-serve --feedback` names it: a folder or a Redis URL."""
    return StreamEvents(str(place), model) if is_redis(str(place)) else Events(Path(place))
