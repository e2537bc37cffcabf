"""Wishes about versions that were uttered while the server runs. Workers share them in a file; they end with it."""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from pydantic import BaseModel, ConfigDict


class Wishes(BaseModel):
    """What is to differ from the policy."""

    model_config = ConfigDict(frozen=True)

    loaded: frozenset[int] = frozenset()
    """Versions to be loaded beside the policy's."""
    unloaded: frozenset[int] = frozenset()
    """Versions not to be loaded."""
    stable: int | None = None
    """What answers, if it is loaded."""
    canary: int | None = None
    """What is tried beside it, if it is loaded."""


class WishList:
    """The wishes of one server."""

    def __init__(self, first: Wishes, folder: Path | None = None) -> None:
        """`first` is what nobody has changed yet. Processes that give the same `folder` share their wishes."""
        self._first = first
        self._file: IO[str]
        if folder is None:
            self._file = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - as long as the server lives
        else:
            self._file = (folder / "wishes.json").open("a+", encoding="utf-8")

    def read(self) -> Wishes:
        """All that was wished so far."""
        return self._change(None)

    def load(self, number: int) -> None:
        """Load a version, whatever the policy says."""
        self._change(lambda w: {"loaded": w.loaded | {number}, "unloaded": w.unloaded - {number}})

    def unload(self, number: int) -> None:
        """Do not load it, whatever the policy says; no label is to point at it."""
        self._change(
            lambda w: {
                "loaded": w.loaded - {number},
                "unloaded": w.unloaded | {number},
                "stable": None if w.stable == number else w.stable,
                "canary": None if w.canary == number else w.canary,
            }
        )

    def forget(self, number: int) -> None:
        """Leave it to the policy."""
        self._change(lambda w: {"loaded": w.loaded - {number}, "unloaded": w.unloaded - {number}})

    def label(self, label: str, number: int | None) -> None:
        """Point a label; None leaves `stable` to the policy and takes `canary` away."""
        self._change(lambda _: {label: number})

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _change(self, change: Callable[[Wishes], dict[str, object]] | None) -> Wishes:
        """Read, and write what is different; one process at a time."""
        file = self._file
        fcntl.flock(file, fcntl.LOCK_EX if change else fcntl.LOCK_SH)
        try:
            file.seek(0)
            text = file.read()
            wishes = Wishes.model_validate_json(text) if text else self._first
            if change:
                wishes = wishes.model_copy(update=change(wishes))
                file.seek(0)
                file.truncate()
                file.write(wishes.model_dump_json())
                file.flush()
            return wishes
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
