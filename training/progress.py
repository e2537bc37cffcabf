"""Progress of long work: a bar with the time left on a terminal, silence elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track as rich_track

Item = TypeVar("Item")
console = Console(stderr=True)


def track(items: Iterable[Item], total: int, label: str) -> Iterator[Item]:
    """Pass `items` through, showing how many of `total` are done."""
    yield from rich_track(items, label, total=total, console=console, disable=not console.is_terminal)
