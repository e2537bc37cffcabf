"""From the servers' feedback log to a batch of events that one night owns: each event once, whatever happens.

A batch is a file of the log's own format. It is written whole before anything is taken out of the log, and an id that
any earlier batch holds is not taken again. So a kill at any moment loses no event and doubles none, and no clock
matters: ids decide, not times.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from levi_serve.bundle.feedback import SUFFIX, Event, Events, StreamEvents, encode_event
from levi_serve.bundle.redis_url import is_redis
from levi_serve.bundle.schema import Frozen
from training.atomic import atomic_file


class Taken(Frozen):
    """What was found in the log."""

    events: int = 0
    """New ones, which the batch holds."""
    repeated: int = 0
    """Of an id that this log or an earlier batch has."""
    damaged: int = 0
    """Lines that are not what the server wrote."""


class Log(Protocol):
    """Where servers keep events until they are taken."""

    @property
    def repeated(self) -> int:
        """Events of an id that was read before."""

    @property
    def damaged(self) -> int:
        """Lines that are not what was written."""

    def __iter__(self) -> Iterator[Event]:
        """Each id once."""

    def emptied(self) -> AbstractContextManager[None]:
        """Take what is read within the block out of the log when the block ends well."""


class Folder:
    """The log of servers that keep it in a folder."""

    def __init__(self, folder: Path) -> None:
        """Nothing is read yet."""
        self._events = Events(folder)
        self._folder = folder

    def __iter__(self) -> Iterator[Event]:
        return iter(self._events)

    @property
    def repeated(self) -> int:
        """Events of an id that was read before."""
        return self._events.repeated

    @property
    def damaged(self) -> int:
        """Lines that are not what was written."""
        return self._events.damaged

    @contextmanager
    def emptied(self) -> Iterator[None]:
        """Take the files that no server writes to any more away when the block ends well. What is being written to is
        read again another time; where lines are damaged everything stays, for somebody to look at.
        """
        with ExitStack() as stack:
            closed = [path for path in sorted(self._folder.glob(f"*{SUFFIX}")) if stack.enter_context(_closed(path))]
            yield
            for path in closed if not self.damaged else ():
                path.unlink()


def log_at(place: str, model: str) -> Log:
    """The log that `levi-serve --feedback` names: a folder or a Redis URL."""
    return StreamEvents(place, model) if is_redis(place) else Folder(Path(place))


def take(log: Log, earlier: Sequence[Path], batch: Path) -> Taken:
    """Write the log's events whose ids are not in `earlier` batches to `batch`, and take them out of the log."""
    known = {event.id for path in earlier for event in Events(path)}
    count = before = 0
    with log.emptied(), atomic_file(batch) as temporary, temporary.open("wb") as lines:
        for event in log:
            if event.id in known:
                before += 1
            else:
                lines.write(encode_event(event))
                count += 1
    return Taken(events=count, repeated=before + log.repeated, damaged=log.damaged)


@contextmanager
def _closed(path: Path) -> Iterator[bool]:
    """Whether no server has the file open: each holds a lock on the one that it appends to."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # taken away meanwhile, or not ours to read: reading it will tell
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        yield False
    else:
        yield True
    finally:
        os.close(descriptor)
