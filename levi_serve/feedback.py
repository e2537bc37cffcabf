"""Feedback: an event is acknowledged when it is durable. Events that arrive while the log is busy share its next write.

There are two logs: a folder on this machine (here), and a Redis stream (`stream`).
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import orjson

from levi_serve.batcher import Batcher
from levi_serve.bundle.feedback import SUFFIX, Event, decode_event, encode_event
from levi_serve.bundle.rows import Id
from levi_serve.errors import FeedbackError
from levi_serve.metrics import Metrics
from levi_serve.queues import Turns

log = logging.getLogger("levi")

T = TypeVar("T")

_EVENTS = 4096
"""In one write."""
_LOOK_S = 15.0
"""Between two looks at the backlog while nothing is written: retraining may have taken it away."""
_FILE_BYTES = 16 << 20
_FILE_S = 3600.0
"""Nothing more is written to a file that is larger or older than these."""
_LOCK = ".lock"
_BUFFER = 1 << 20


class Backlog(NamedTuple):
    """What a log holds."""

    size: int
    """[bytes]"""
    oldest: float
    """When its oldest part was begun [s since 1970]; now if there is none."""


class Log(Protocol):
    """Where events last. Calls wait for disks and networks, and come from one thread."""

    def append(self, lines: Sequence[bytes]) -> Backlog:
        """Return when these are durable.

        Raises:
            FeedbackError: they are not known to be.

        """

    def backlog(self) -> Backlog:
        """Look.

        Raises:
            FeedbackError: it cannot be seen.

        """

    def erase(self, side: int, id_: Id) -> int:
        """Take out all events of a user (side 0) or an item (1), those of other processes too; how many there were.

        Raises:
            FeedbackError: some may be left.

        """

    def close(self) -> None:
        """Let go of it."""


class Feedback:
    """One process' way into the log."""

    def __init__(self, kept: Log, max_queue: int, metrics: Metrics) -> None:
        """At most `max_queue` events wait for the log."""
        self._log = kept
        self._metrics = metrics
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feedback")
        self._batcher: Batcher[bytes, None] = Batcher(
            self._write, Turns(_EVENTS), max_queue, metrics.observe_batches("feedback")
        )
        self._unwatch = metrics.watch_queue("feedback", lambda: self._batcher.waiting, max_queue)

    async def append(self, event: Event, deadline: float) -> None:
        """Return when the event is durable.

        Raises:
            FeedbackError: it cannot be written.
            OverloadedError: too many wait.
            DeadlineError: it was not known to be durable in time; it may be all the same.

        """
        await self._batcher.submit([encode_event(event)], deadline)
        self._metrics.fleet.feedback(known=not event.unknown)

    async def erase(self, side: int, id_: Id) -> int:
        """Take out all events of a user (side 0) or an item (1); how many there were.

        Raises:
            FeedbackError: some may be left.

        """
        return await self._in_thread(self._log.erase, side, id_)

    async def watch(self) -> None:
        """Keep the backlog's metrics true, for ever."""
        while True:
            try:
                self._metrics.fleet.feedback_backlog(*await self._in_thread(self._log.backlog))
            except FeedbackError as error:
                log.warning("%s", error)
            await asyncio.sleep(_LOOK_S)

    async def close(self) -> None:
        """Write what waits, and end."""
        await self._batcher.close()
        self._unwatch()
        self._thread.shutdown()
        self._log.close()

    async def _write(self, lines: Sequence[bytes]) -> list[None]:
        self._metrics.fleet.feedback_backlog(*await self._in_thread(self._log.append, lines))
        return [None] * len(lines)

    def _in_thread(self, work: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)


class FolderLog:
    """Files in a folder. Each process appends to one of its own, so that nobody waits for another one's disk and a
    torn end is never followed by anything. It holds that file's lock as long as it writes to it, and begins a new one
    now and then: retraining takes away the files that nobody has locked. Only who erases keeps all others from writing.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """No more than `max_bytes` may lie in the folder, those of other processes included: retraining has to take
        some away first.
        """
        self._folder = folder
        self._max_bytes = max_bytes
        self._file: tuple[Path, int] | None = None
        self._size = 0
        self._begun = 0.0

    def append(self, lines: Sequence[bytes]) -> Backlog:
        """One write and one fsync."""
        content = b"".join(lines)
        try:
            total, oldest = self.backlog()
            total += len(content)
            if total > self._max_bytes:
                raise FeedbackError(f"the feedback log holds {self._max_bytes >> 20} MiB, and as much as it may")
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._locked(fcntl.LOCK_SH):
                file = self._open()
                written = 0
                while written < len(content):
                    written += os.write(file, content[written:])
                os.fdatasync(file)
                self._size += written
        except OSError as error:
            # What a failed fsync has left on the disk nobody knows: these events are not acknowledged, and the next
            # ones go to another file.
            self.close()
            log.error("the feedback log %s: %s", self._folder, error.strerror)  # noqa: TRY400 - it is all there is
            raise FeedbackError(f"the feedback log cannot be written: {error.strerror}") from None
        return Backlog(total, oldest)

    def backlog(self) -> Backlog:
        """Of all files. An old one of this process is let go of: though no event comes, retraining is to have it."""
        if time.monotonic() - self._begun > _FILE_S:
            self.close()
        try:
            files = [(file.name, file.stat().st_size) for file in self._folder.glob(f"*{SUFFIX}")]
        except OSError as error:
            raise FeedbackError(f"the feedback log cannot be read: {error.strerror}") from None
        return Backlog(sum(size for _, size in files), min((_began(name) for name, _ in files), default=time.time()))

    def erase(self, side: int, id_: Id) -> int:
        """Files that hold such events are written anew without them, and renamed over; writers wait for one at a time.
        Those that retraining takes away meanwhile are its business.
        """
        erased, unwanted = 0, names(side, id_)
        try:
            for file in sorted(self._folder.glob(f"*{SUFFIX}")):
                with suppress(FileNotFoundError):
                    if _has(file, unwanted):
                        with self._locked(fcntl.LOCK_EX):
                            erased += _without(file, unwanted)
            if erased:
                _sync(self._folder)
        except OSError as error:
            raise FeedbackError(f"the feedback log cannot be rewritten: {error.strerror}") from None
        return erased

    def close(self) -> None:
        """Leave the file."""
        if self._file is not None:
            os.close(self._file[1])
            self._file = None

    def _open(self) -> int:
        """The file of this process; another one if it is large or old, or was taken away or written anew."""
        if self._file is not None:
            path, file = self._file
            with suppress(FileNotFoundError):
                if self._size <= _FILE_BYTES and os.fstat(file).st_ino == path.stat().st_ino:
                    return file
            self.close()
        path = self._folder / f"{time.time_ns():020}-{os.getpid()}{SUFFIX}"
        unnamed = path.with_suffix(".new")  # locked before anybody could find it
        file = os.open(unnamed, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o640)
        self._file, self._size, self._begun = (path, file), 0, time.monotonic()
        fcntl.flock(file, fcntl.LOCK_EX)
        unnamed.rename(path)
        _sync(self._folder)  # the file's name has to last as well
        return file

    @contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        lock = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o640)
        try:
            fcntl.flock(lock, kind)
            yield
        finally:
            os.close(lock)


def names(side: int, id_: Id) -> Callable[[bytes], bool]:
    """Tells the lines that are events of this user (side 0) or item (1)."""
    said = b'"%b":%b' % ((b"user", b"item")[side], orjson.dumps(id_))

    def found(line: bytes) -> bool:
        if said not in line:  # decoding them all would take minutes
            return False
        event = decode_event(line)
        return event is not None and (event.user, event.item)[side] == id_

    return found


def _has(path: Path, unwanted: Callable[[bytes], bool]) -> bool:
    with path.open("rb", _BUFFER) as lines:
        return any(map(unwanted, lines))


def _without(path: Path, unwanted: Callable[[bytes], bool]) -> int:
    """Take such lines out of a file; how many it had."""
    erased = 0
    fresh = path.with_suffix(".rewritten")
    with path.open("rb", _BUFFER) as lines, fresh.open("wb", _BUFFER) as kept:
        for line in lines:
            if unwanted(line):
                erased += 1
            else:
                kept.write(line)
        kept.flush()
        os.fsync(kept.fileno())
    fresh.replace(path)
    return erased


def _sync(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _began(name: str) -> float:
    """When the file of this name was begun [s since 1970]."""
    began, _, _ = name.partition("-")
    return int(began) / 1e9 if began.isdecimal() else time.time()
