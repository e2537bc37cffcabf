"""A detector's record where several processes, and the next start, find it: a mapped file with two copies.

A change is written into the older copy, its checksum last, and only then is it the newer one: whoever dies in between
leaves the other copy as it was. A kernel lock lets one process at a time change it, and is released when that one dies.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import mmap
import os
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from levi_serve.bundle.commands import RunError, UsageError
from levi_serve.bundle.reference import Reference
from levi_serve.monitor.detector import Detector, Record

log = logging.getLogger("levi")

_MAGIC = b"LEVIMON1"
_HEADER = 64
"""Bytes: the magic, then what the state belongs to."""


def owner_of(reference: Reference, detector: Detector) -> bytes:
    """Digest of what the evidence is about: the model, the record's layout, and where the bins begin."""
    layout = f"{detector.dtype.descr}{detector.streams.streams}".encode()
    return hashlib.sha256(reference.model.encode() + layout + reference.edges.tobytes()).hexdigest().encode()[:48]


def require_state(path: Path) -> None:
    """A file that somebody has named is not to be overwritten if it is something else.

    Raises:
        UsageError: it is.

    """
    with suppress(OSError), path.open("rb") as file:  # one that cannot be opened is `State`'s to tell
        begin = file.read(len(_MAGIC))
        if begin.strip(b"\0") and begin != _MAGIC:  # zeros: somebody was killed between making and beginning it
            raise UsageError(f"--state {path}: is no monitor's state; name another file, or remove it")


class State:
    """The record of one detector in a file, or, without a path, in memory of this process."""

    def __init__(self, detector: Detector, owner: bytes, path: Path | None = None) -> None:
        """`owner` is as `owner_of` has it. A file that is damaged, or of another owner, is begun anew, whatever it
        was: ask `require_state` first about a path that is not the server's own.

        Raises:
            RunError: the file cannot be opened.

        """
        self._detector = detector
        self._size = detector.dtype.itemsize
        self._header = (_MAGIC + owner)[:_HEADER].ljust(_HEADER, b"\0")
        length = _HEADER + 2 * self._size
        self._file: int | None = None
        self._mutex = threading.Lock()  # the kernel's lock is the process's, not the thread's
        if path is None:
            self._map = mmap.mmap(-1, length)
        else:
            try:
                self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise RunError(f"{path}: {error.strerror}") from None
        with self._locked():
            if self._file is not None:
                self._open(path, self._file, length)
            if self._newest() is None:
                self._map[:] = self._header.ljust(length, b"\0")
                self._write(self._detector.start())

    def read(self) -> Record:
        """A copy of the record as of the last change."""
        for _ in range(100):  # both copies may be overwritten while they are read
            if (found := self._newest()) is not None:
                return found
        log.error("monitor: the state was damaged while it was in use: beginning anew")
        return self._detector.start()

    @contextmanager
    def change(self) -> Iterator[Record]:
        """The record, to be changed in place; other processes wait. What fails changes nothing."""
        with self._locked():
            record = self.read()
            yield record
            self._write(record)

    @contextmanager
    def try_change(self) -> Iterator[Record | None]:
        """The same, or None at once while another process changes it: a request must not wait."""
        if not self._lock(wait=False):
            yield None
            return
        try:
            record = self.read()
            yield record
            self._write(record)
        finally:
            self._unlock()

    def close(self) -> None:
        """Let go of the file."""
        self._map.close()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _open(self, path: Path | None, file: int, length: int) -> None:
        """Map the file, and say why it is begun anew if it has to be."""
        found = os.fstat(file).st_size
        try:
            os.posix_fallocate(file, 0, length)  # a full disk must not be found out by writing to the mapping
        except OSError as error:
            raise RunError(f"{path}: {error.strerror}") from None
        self._map = mmap.mmap(file, length)
        header = bytes(self._map[:_HEADER])
        if not found:
            return
        if not header.startswith(_MAGIC):
            reason = "is damaged or no monitor's state"
        elif header != self._header:
            reason = "belongs to another model"
        elif self._newest() is None:
            reason = "is damaged"
        else:
            return
        log.warning("monitor: %s %s: beginning anew", path, reason)
        self._map[:] = bytes(length)

    def _newest(self) -> Record | None:
        """The valid copy with the highest number."""
        for at in sorted((_HEADER, _HEADER + self._size), key=self._number, reverse=True):
            raw = bytearray(self._map[at : at + self._size])
            (record,) = np.frombuffer(raw, self._detector.dtype)
            if record["sequence"] > 0 and _checksum(raw) == record["checksum"]:
                return record
        return None

    def _number(self, at: int) -> int:
        """Of the copy there: the first field."""
        return int.from_bytes(self._map[at : at + 8], "little", signed=True)

    def _write(self, record: Record) -> None:
        record["sequence"] += 1
        record["checksum"] = _checksum(record.tobytes())
        at = _HEADER + int(record["sequence"]) % 2 * self._size
        self._map[at : at + self._size] = record.tobytes()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._lock()
        try:
            yield
        finally:
            self._unlock()

    def _lock(self, wait: bool = True) -> bool:
        if not self._mutex.acquire(blocking=wait):
            return False
        if self._file is not None:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                self._mutex.release()
                return False
        return True

    def _unlock(self) -> None:
        if self._file is not None:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        self._mutex.release()


def _checksum(raw: bytes | bytearray) -> int:
    """Of all but the checksum itself, which comes last."""
    return zlib.crc32(memoryview(raw)[:-8])
