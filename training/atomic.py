"""Whole or not at all: files and folders appear under their name only when they are complete and on disk."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from training.errors import RunError


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well, and is removed otherwise."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _named(path):
            yield temporary
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def staged_folder(parent: Path, name: str) -> Iterator[Path]:
    """A temporary folder inside `parent`, on the same disk as its later place; removed unless it was renamed away."""
    parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{name}.tmp-", dir=parent))
    temporary.chmod(0o755)
    try:
        with _named(parent / name):
            yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish_folder(temporary: Path, final: Path) -> None:
    """Give a staged folder its name, after all of its files have reached the disk."""
    for path in temporary.rglob("*"):
        _sync(path)
    temporary.rename(final)
    _sync(final.parent)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Say what could not be written: an error in the middle of a file, as on a full disk, does not know its name."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise RunError(f"{path}: cannot be written ({error})") from None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
