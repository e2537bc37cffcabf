"""The feedback log of one process: an event is acknowledged when it is on the disk.

Events that arrive while the disk is busy share the next write and the next fsync. Each process appends to a file of its
own, so that nobody waits for a lock and a torn end is never followed by anything. It holds that file's lock as long as
it writes to it, and begins a new one now and then: retraining takes away the files that nobody has locked.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from levi_serve.batcher import Batcher
from levi_serve.bundle.feedback import SUFFIX, Event, encode_event
from levi_serve.errors import FeedbackError
from levi_serve.metrics import Metrics
from levi_serve.queues import Turns

log = logging.getLogger("levi")

_EVENTS = 4096
"""In one write."""
_FILE_BYTES = 16 << 20
_FILE_S = 3600.0
"""A file that is larger or older than these gets a successor."""


class FeedbackLog:
    """Appends events to a folder."""

    def __init__(self, folder: Path, max_bytes: int, max_queue: int, metrics: Metrics) -> None:
        """No more than `max_bytes` may lie in the folder, those of other processes included: retraining has to take
        some away first. At most `max_queue` events wait for the disk.
        """
        self._folder = folder
        self._max_bytes = max_bytes
        self._metrics = metrics
        self._file: int | None = None
        self._size = 0
        self._begun = 0.0
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
        self._metrics.feedback(known=not event.unknown)

    async def close(self) -> None:
        """Write what waits, and end."""
        await self._batcher.close()
        self._unwatch()
        self._thread.shutdown()
        self._leave()

    async def _write(self, lines: Sequence[bytes]) -> list[None]:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._append, b"".join(lines))
        return [None] * len(lines)

    def _append(self, content: bytes) -> None:
        try:
            files = [(file.name, file.stat().st_size) for file in self._folder.glob(f"*{SUFFIX}")]
            total = sum(size for _, size in files) + len(content)
            if total > self._max_bytes:
                raise FeedbackError(f"the feedback log holds {self._max_bytes >> 20} MiB, and as much as it may")
            if self._size > _FILE_BYTES or time.monotonic() - self._begun > _FILE_S:
                self._leave()
            file = self._open()
            written = 0
            while written < len(content):
                written += os.write(file, content[written:])
            os.fdatasync(file)
            self._size += written
        except OSError as error:
            # What a failed fsync has left on the disk nobody knows: these events are not acknowledged, and the next
            # ones go to another file.
            self._leave()
            log.error("the feedback log %s: %s", self._folder, error.strerror)  # noqa: TRY400 - it is all there is
            raise FeedbackError(f"the feedback log cannot be written: {error.strerror}") from None
        oldest = min((name for name, _ in files), default="")
        self._metrics.feedback_backlog(total, _began(oldest))

    def _open(self) -> int:
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"{time.time_ns():020}-{os.getpid()}{SUFFIX}"
            unnamed = path.with_suffix(".new")  # locked before anybody could find it
            self._file = os.open(unnamed, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o640)
            fcntl.flock(self._file, fcntl.LOCK_EX)
            unnamed.rename(path)
            self._size, self._begun = 0, time.monotonic()
            folder = os.open(self._folder, os.O_RDONLY)  # the file's name has to last as well
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        return self._file

    def _leave(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _began(name: str) -> float:
    """When the file of this name was begun [s since 1970]."""
    began, _, _ = name.partition("-")
    return int(began) / 1e9 if began.isdecimal() else time.time()
