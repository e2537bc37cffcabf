"""The in-process cache: rows by id under a bound in bytes, and ids that are known to be absent for a short while."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from sys import getsizeof
from typing import NamedTuple, TypeAlias

import numpy as np

from levi_serve.bundle import BoolArray
from levi_serve.bundle.keys import Stored
from levi_serve.bundle.rows import STORED, HalfArray

Key: TypeAlias = int | str | bytes

_PER_ENTRY = 272
"""Bytes of an entry beside its row, its key and its attributes. A dict of n entries has between 3n and 6n places of 4
bytes, and 24 bytes for two thirds of them: at most 120, and twice that while it is copied. 18 are list items, 3 arrays.
"""
_PER_ABSENT = 512
"""The same for an absent id: an OrderedDict's entry, its link and the time."""


class Gathered(NamedTuple):
    """Entries of the cache, copied out of it."""

    rows: HalfArray
    """[B, width]"""
    trained: BoolArray
    """[B]"""
    attributes: list[bytes]


class RowCache:
    """Rows of several spaces (users, items, new entities) that share one bound.

    What goes is decided by CLOCK: a hit only sets a mark; the hand that looks for room takes the first entry without a
    mark and wipes the marks it passes.
    """

    def __init__(self, width: int, max_bytes: int, spaces: int) -> None:
        """Rows of `width` columns. Memory is taken as entries come, and never more than `max_bytes`."""
        self.bytes = 0
        """What the entries take."""
        self._max_bytes = max_bytes
        self._per_entry = width * STORED().itemsize + _PER_ENTRY
        self._slots: tuple[dict[Key, int], ...] = tuple({} for _ in range(spaces))
        places = max_bytes // self._cost(0, b"")
        # Address space only: the system gives memory page by page when a place is first written to.
        self._rows: HalfArray = np.empty((places, width), dtype=STORED)
        self._trained: BoolArray = np.zeros(places, dtype=np.bool_)
        self._spaces = bytearray(places)
        self._marks = bytearray(places)
        self._marked = np.frombuffer(self._marks, dtype=np.uint8)
        self._keys: list[Key | None] = []
        self._attributes: list[bytes] = []
        self._free: list[int] = []
        self._hand = 0

    def __len__(self) -> int:
        return sum(map(len, self._slots))

    def slots(self, space: int, keys: Sequence[Key]) -> list[int | None]:
        """Where each key's entry is, if there is one; good until the next `put`."""
        return list(map(self._slots[space].get, keys))

    def gather(self, slots: Sequence[int]) -> Gathered:
        """Copies of these entries."""
        at = np.array(slots, dtype=np.intp)
        self._marked[at] = 1
        attributes = [self._attributes[slot] for slot in slots]
        return Gathered(self._rows.take(at, axis=0), self._trained.take(at), attributes)

    def rows(self, space: int, keys: Sequence[Key]) -> list[HalfArray | None]:
        """A copy of each key's row [width], if there is one."""
        return [None if slot is None else self.gather([slot]).rows[0] for slot in self.slots(space, keys)]

    def put(self, space: int, key: Key, stored: Stored) -> None:
        """Keep an entry, unless it alone is beyond the bound. One that is there already stays: a key has one row."""
        cost = self._cost(key, stored.attributes)
        if key in self._slots[space] or cost > self._max_bytes:
            return
        while self.bytes + cost > self._max_bytes:
            self._evict()
        if self._free:
            slot = self._free.pop()
        else:
            slot = len(self._keys)
            self._keys.append(None)
            self._attributes.append(b"")
        self._slots[space][key] = slot
        self._rows[slot], self._trained[slot] = stored.row, stored.trained
        self._keys[slot], self._attributes[slot], self._spaces[slot] = key, stored.attributes, space
        self.bytes += cost

    def drop(self, space: int, key: Key) -> None:
        """Forget an entry, if it is there."""
        slot = self._slots[space].get(key)
        if slot is not None:
            self._remove(slot, key)
            self._rows[slot] = 0

    def _evict(self) -> None:
        """Take out the next entry that was not read since the hand passed it."""
        while True:
            slot = self._marks.find(0, self._hand, len(self._keys))
            end = len(self._keys) if slot < 0 else slot
            self._marks[self._hand : end] = bytes(end - self._hand)
            self._hand = 0 if slot < 0 else slot + 1
            key = None if slot < 0 else self._keys[slot]
            if key is not None:
                break
        self._remove(slot, key)

    def _remove(self, slot: int, key: Key) -> None:
        self.bytes -= self._cost(key, self._attributes[slot])
        del self._slots[self._spaces[slot]][key]
        self._keys[slot], self._attributes[slot] = None, b""
        self._free.append(slot)

    def _cost(self, key: Key, attributes: bytes) -> int:
        return self._per_entry + getsizeof(key) + (getsizeof(attributes) if attributes else 0)


class Absent:
    """Ids that were looked for and are nowhere, for `life_s` seconds each: they may be added meanwhile."""

    def __init__(self, life_s: float, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        """The oldest go when there are more than `max_bytes` hold."""
        self.bytes = 0
        self._life_s = life_s
        self._max_bytes = max_bytes
        self._clock = clock
        self._ends: OrderedDict[Key, float] = OrderedDict()

    def __contains__(self, key: Key) -> bool:
        end = self._ends.get(key)
        return end is not None and end > self._clock()

    def add(self, key: Key) -> None:
        """It was looked for just now."""
        now = self._clock()
        self._drop(key)
        self._ends[key] = now + self._life_s
        self.bytes += getsizeof(key) + _PER_ABSENT
        while self._ends and (self.bytes > self._max_bytes or next(iter(self._ends.values())) <= now):
            self._drop(next(iter(self._ends)))

    def _drop(self, key: Key) -> None:
        if self._ends.pop(key, None) is not None:
            self.bytes -= getsizeof(key) + _PER_ABSENT
