"""The store: what row belongs to an id. `TableStore` reads the version's own tables; `tiers.TieredStore` asks more."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol, TypeAlias

import numpy as np

from levi_serve.bundle import BoolArray, Int8Array
from levi_serve.bundle.keys import Stored
from levi_serve.bundle.rows import HalfArray, Id, Table
from levi_serve.bundle.schema import Attributes
from levi_serve.cache import RowCache

Given: TypeAlias = Id | Attributes
"""How a caller names an entity: by its id, or, when it is new, by its attributes."""


class State(IntEnum):
    """What a store can say of an id. Whatever is not FOUND has the unknown entity's row."""

    FOUND = 0
    UNKNOWN = 1
    """There is no such id."""
    DEGRADED = 2
    """The only place that could say is out of reach or gave no usable answer."""


@dataclass(slots=True)
class Side:
    """One side of a batch of B pairs, looked up."""

    rows: HalfArray
    """[B, width]"""
    trained: BoolArray
    """[B]; False for whatever is not FOUND."""
    state: Int8Array
    """[B] of `State`."""
    attributes: Callable[[int], Attributes]
    """Of the i-th entity, if it is FOUND. With entity views only a local table can tell them: {} without one."""


@dataclass(slots=True)
class Counts:
    """Ids looked up so far, by what answered; a store only ever adds."""

    cache: int = 0
    redis: int = 0
    table: int = 0
    added: int = 0
    """Entities that were put after the export."""
    encoder: int = 0
    """Rows that had to be encoded: all that were to be remembered."""
    unknown: int = 0
    degraded: int = 0
    corrupt: int = 0
    """Values in Redis that were not used because their checksum is wrong."""


class Store(Protocol):
    """Rows of one version; side 0 is the user, 1 the item. It belongs to one event loop."""

    counts: Counts

    def at_hand(self, users: Sequence[Id], items: Sequence[Id]) -> tuple[Side, Side] | None:
        """Both sides of a batch, at once; None if something has to be fetched."""

    async def fetch(self, users: Sequence[Id], items: Sequence[Id]) -> tuple[Side, Side]:
        """The same with one round trip at most; it ends within the store's time limit and fails for no outage."""

    async def recall(self, keys: Sequence[bytes]) -> list[HalfArray | None]:
        """Rows [width] that `remember` was given for new entities, by a digest of what they are."""

    def remember(self, key: bytes, row: HalfArray) -> None:
        """Keep the row of a new entity for a while, if that can be done."""

    def forget(self, side: int, id_: Id, attributes: Attributes | None) -> None:
        """Keep no row of an id, nor of a new entity with these attributes, in this process."""

    async def erase(self, side: int, id_: Id, attributes: Attributes | None) -> bool:
        """Nor anywhere else that can be written to; False if that is not known to be done."""

    async def close(self) -> None:
        """Let go of everything; what is under way ends first."""


class TableStore:
    """The tables of the version, which lie on this machine: everything is at hand."""

    def __init__(self, users: Table, items: Table, new: RowCache | None = None) -> None:
        """`new` keeps the rows of new entities; without one they are forgotten."""
        self.counts = Counts()
        self._tables = (users, items)
        self._new = RowCache(users.rows.shape[1], 0, 1) if new is None else new

    def at_hand(self, users: Sequence[Id], items: Sequence[Id]) -> tuple[Side, Side]:
        """Both sides of a batch: a search and a gather each."""
        return self._side(self._tables[0], users), self._side(self._tables[1], items)

    async def fetch(self, users: Sequence[Id], items: Sequence[Id]) -> tuple[Side, Side]:
        """The same as `at_hand`."""
        return self.at_hand(users, items)

    async def recall(self, keys: Sequence[bytes]) -> list[HalfArray | None]:
        """Rows of new entities that this process encoded and still has."""
        rows = self._new.rows(0, keys)
        self.counts.cache += sum(row is not None for row in rows)
        return rows

    def remember(self, key: bytes, row: HalfArray) -> None:
        """Keep it in this process."""
        self.counts.encoder += 1
        self._new.put(0, key, Stored(row, trained=False))

    def forget(self, side: int, id_: Id, attributes: Attributes | None) -> None:
        """The tables themselves stay as they were exported."""
        if attributes is not None:
            self._new.drop(0, key_of(side, attributes))

    async def erase(self, side: int, id_: Id, attributes: Attributes | None) -> bool:
        """There is nothing else."""
        self.forget(side, id_, attributes)
        return True

    async def close(self) -> None:
        """Nothing is under way."""

    def _side(self, table: Table, ids: Sequence[Id]) -> Side:
        numbers = table.find(ids)
        missing = numbers < 0
        trained = table.trained.take(numbers, mode="wrap")
        # -1, an id that is not there, wraps around to the last row, the unknown entity's.
        rows = table.rows.take(numbers, axis=0, mode="wrap")
        if unknown := int(np.count_nonzero(missing)):
            trained[missing] = False
            self.counts.unknown += unknown
        self.counts.table += len(ids) - unknown
        return Side(rows, trained, missing.view(np.int8), lambda i: table.attributes(int(numbers[i])))


def key_of(side: int, attributes: Attributes) -> bytes:
    """A digest that equal new entities share."""
    return hashlib.sha256(f"{side}{json.dumps(attributes, sort_keys=True)}".encode()).digest()
