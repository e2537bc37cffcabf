"""The store: ids to the rows that the model reads, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from levi_serve.bundle.rows import HalfArray, Id, Table
from levi_serve.bundle.schema import Attributes

Given: TypeAlias = Id | Attributes
"""How a caller names an entity: by its id, or, when it is new, by its attributes."""

BoolArray: TypeAlias = npt.NDArray[np.bool_]
Int8Array: TypeAlias = npt.NDArray[np.int8]


class State(IntEnum):
    """What a look-up of one id came to."""

    FOUND = 0
    UNKNOWN = 1
    """There is no such id."""
    DEGRADED = 2
    """Where the row would be cannot be asked; the unknown entity's row stands in."""


@dataclass(slots=True)
class Side:
    """One side of a batch of B entities, looked up."""

    rows: HalfArray
    """[B, W]; the unknown entity's where the state is not FOUND."""
    trained: BoolArray
    """[B], whether it has a fitted id embedding."""
    state: Int8Array
    """[B] of State."""
    attributes: Callable[[int], Attributes]
    """What is known of the i-th entity; for FOUND ones."""


class Store(Protocol):
    """Where rows come from. Side 0 is the user, 1 the item."""

    def at_hand(self, users: Sequence[Id], items: Sequence[Id]) -> tuple[Side, Side] | None:
        """Both sides of a batch if that needs no waiting; None if something must be fetched."""

    async def fetch(self, users: Sequence[Id], items: Sequence[Id]) -> tuple[Side, Side]:
        """Both sides of a batch, with one round trip at most."""

    async def recall(self, keys: Sequence[bytes]) -> list[HalfArray | None]:
        """Rows [W] that were encoded for new entities before, by the digest of their attributes."""

    def remember(self, key: bytes, row: HalfArray) -> None:
        """Keep the row of a new entity."""

    async def close(self) -> None:
        """End."""


class TableStore:
    """Both tables of a version, memory-mapped; nothing is ever fetched."""

    def __init__(self, users: Table, items: Table) -> None:
        """Serve rows from these tables."""
        self._tables = (users, items)

    def at_hand(self, users: Sequence[Id], items: Sequence[Id]) -> tuple[Side, Side]:
        """Two gathers."""
        return self._side(0, users), self._side(1, items)

    async def fetch(self, users: Sequence[Id], items: Sequence[Id]) -> tuple[Side, Side]:
        """The same."""
        return self.at_hand(users, items)

    async def recall(self, keys: Sequence[bytes]) -> list[HalfArray | None]:
        """Nothing is kept."""
        return [None] * len(keys)

    def remember(self, key: bytes, row: HalfArray) -> None:
        """Nothing is kept."""

    async def close(self) -> None:
        """Nothing to end."""

    def _side(self, side: int, ids: Sequence[Id]) -> Side:
        table = self._tables[side]
        numbers = table.find(ids)
        missing = numbers < 0
        numbers[missing] = table.unknown
        trained = np.append(table.trained, False)[numbers] if missing.any() else table.trained[numbers]
        return Side(table.rows[numbers], trained, missing.astype(np.int8), lambda i: table.attributes(int(numbers[i])))
