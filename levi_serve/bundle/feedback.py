"""Feedback events: what the server's log holds and retraining reads.

A folder holds files `*.events`, each written by one process and only ever appended to. A line is the CRC-32 of an
event's JSON in hex, a space, and the JSON. What a process that was killed has left at a file's end is no line and was
never acknowledged. An event may have been sent more than once: whoever reads takes each id once, the first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

from pydantic import Field, ValidationError

from levi_serve.bundle.rows import Id
from levi_serve.bundle.schema import Frozen

SUFFIX = ".events"


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


@dataclass
class Events:
    """The events of a folder, or of one such file, each id once."""

    place: Path
    repeated: int = field(default=0, init=False)
    """Events whose id had been read before."""
    damaged: int = field(default=0, init=False)
    """Lines that are not what was written; a file's unfinished end is none."""

    def __iter__(self) -> Iterator[Event]:
        """In the order of the files' names."""
        seen: set[str] = set()
        for file in [self.place] if self.place.is_file() else sorted(self.place.glob(f"*{SUFFIX}")):
            with file.open("rb") as lines:
                for line in lines:
                    event = _decode(line)
                    if event is None:
                        self.damaged += line.endswith(b"\n")
                    elif event.id in seen:
                        self.repeated += 1
                    else:
                        seen.add(event.id)
                        yield event


def _decode(line: bytes) -> Event | None:
    said = line[9:-1]
    if not line.endswith(b"\n") or line[:9] != b"%08x " % crc32(said):
        return None
    try:
        return Event.model_validate(json.loads(said))
    except (ValueError, ValidationError):
        return None
