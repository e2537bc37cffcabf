"""The model repository as a folder: which versions lie in it, and what a version's files look like from outside."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple, Self, TypeAlias

from levi_serve.bundle.manifest import BundleError

_NUMBER = re.compile(r"[1-9][0-9]{0,17}")
_LATEST = re.compile(r"latest(?::([1-9][0-9]{0,3}))?")

Look: TypeAlias = tuple[tuple[str, int, int, int], ...]
"""Name, inode, size and time of each file of a version: another look means that somebody writes or has written."""


class Policy(NamedTuple):
    """Which versions are to be loaded."""

    newest: int = 0
    """So many of the newest that can be used."""
    numbers: tuple[int, ...] = ()
    """And these."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """`latest`, `latest:2`, `3` or `1,3`.

        Raises:
            ValueError: it is none of them.

        """
        if latest := _LATEST.fullmatch(text):
            return cls(newest=int(latest[1] or 1))
        numbers = [number.strip() for number in text.split(",")]
        if not all(map(_NUMBER.fullmatch, numbers)):
            raise ValueError("must be latest, latest:2 (the two newest), a version number, or several with commas")
        return cls(numbers=tuple(sorted({int(number) for number in numbers})))


def numbers(repository: Path, name: str) -> list[int]:
    """The version numbers, newest first; folders that are no plain positive integer are not versions.

    Raises:
        BundleError: the folder cannot be read.

    """
    folder = repository / name
    try:
        with os.scandir(folder) as entries:
            found = [int(entry.name) for entry in entries if _NUMBER.fullmatch(entry.name) and entry.is_dir()]
    except OSError as error:
        raise BundleError(f"{folder}: {error.strerror}; there is no model to serve") from None
    return sorted(found, reverse=True)


def look(repository: Path, name: str, version: int) -> Look:
    """The files of a version as they are now; times are compared only for being the same."""
    found = []
    for model in (name, f"{name}_encoder"):
        folder = repository / model / str(version)
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    stat = entry.stat()
                    found.append((f"{model}/{entry.name}", stat.st_ino, stat.st_size, stat.st_mtime_ns))
        except OSError as error:  # not there yet, or no longer: a look like any other
            found.append((f"{model}: {error.strerror}", 0, 0, 0))
    return tuple(sorted(found))
