"""Wishes about versions that were uttered while the server runs. Workers share them in a file; they end with it."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path

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
        self._wishes = first
        self._file = None if folder is None else (folder / "wishes.json").open("a+", encoding="utf-8")

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
        if self._file is not None:
            self._file.close()

    def _change(self, change: Callable[[Wishes], dict[str, object]] | None) -> Wishes:
        """Read, and write what is different; one process at a time."""
        if self._file is None:
            return self._changed(change)
        fcntl.flock(self._file, fcntl.LOCK_EX if change else fcntl.LOCK_SH)
        try:
            self._file.seek(0)
            if text := self._file.read():
                self._wishes = Wishes.model_validate_json(text)
            if change:
                said = self._changed(change).model_dump_json()
                self._file.seek(0)
                self._file.truncate()
                self._file.write(said)
                self._file.flush()
            return self._wishes
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _changed(self, change: Callable[[Wishes], dict[str, object]] | None) -> Wishes:
        if change:
            self._wishes = self._wishes.model_copy(update=change(self._wishes))
        return self._wishes
