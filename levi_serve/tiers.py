"""The tiered store: cache, then Redis, then the version's own table where there is one.

Redis comes before the table because a table that is larger than memory is read from disk while nothing else runs; what
both hold is the same, since keys name a version by its files. Without a table, an id that Redis does not have is
UNKNOWN only if Redis has the mark that all rows were published: one that was emptied or is being filled cannot say, and
neither can one that does not answer or whose value is damaged. Those ids are DEGRADED, and that is never remembered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from levi_serve.bundle import BoolArray, Int8Array
from levi_serve.bundle.keys import Keys, Stored, decode_value, encode_value
from levi_serve.bundle.rows import HalfArray, Id, Table, read_attributes
from levi_serve.bundle.schema import Attributes
from levi_serve.cache import Absent, RowCache
from levi_serve.store import Counts, Side, State, key_of

if TYPE_CHECKING:  # redis takes 0.1 s to import, and most servers need none
    from levi_serve.remote import Remote

SPACES = 3
"""Of the cache: users, items, new entities."""
_NEW = 2
_ABSENT_BYTES = 1 << 20
"""Of absent ids, for each side: some thousand ids, or a thousand of the longest that a request may bring."""

Looked: TypeAlias = Stored | State
"""What came of looking for an id: its row, or why there is none."""
Flight: TypeAlias = "asyncio.Task[tuple[dict[Id, Looked], dict[Id, Looked]]]"


class TieredStore:
    """Rows of one version from the nearest place that has them."""

    def __init__(
        self,
        keys: Keys,
        tables: tuple[Table | None, Table | None],
        unknown: HalfArray,
        remote: Remote,
        cache: RowCache,
        absent_s: float,
        new_ttl_s: int,
    ) -> None:
        """`unknown` [2, width] stands in for users and items without a row. `cache` has SPACES spaces. An id that is
        nowhere is not looked for again for `absent_s`; Redis keeps the row of a new entity for `new_ttl_s`.
        """
        self.counts = Counts()
        self.remote = remote
        self._keys = keys
        self._tables = tables
        self._unknown = unknown
        self._cache = cache
        self._absent = (Absent(absent_s, _ABSENT_BYTES), Absent(absent_s, _ABSENT_BYTES))
        self._new_ttl_s = new_ttl_s
        self._flights: tuple[dict[Id, Flight], dict[Id, Flight]] = ({}, {})

    def at_hand(self, users: Sequence[Id], items: Sequence[Id]) -> tuple[Side, Side] | None:
        """Both sides of a batch, if the cache has them all; or if Redis cannot be asked, from the tables."""
        user, item = self._begin(0, users), self._begin(1, items)
        if user.missing or item.missing:
            if self.remote.available:
                return None
            for part in (user, item):
                ids = part.wanted()
                part.fill(self._settle(part.side, ids, [State.DEGRADED] * len(ids)))
        return self._end(user), self._end(item)

    async def fetch(self, users: Sequence[Id], items: Sequence[Id]) -> tuple[Side, Side]:
        """Both sides of a batch; ids that another call is fetching already are waited for, not asked for again."""
        user, item = self._begin(0, users), self._begin(1, items)
        flights = self._fly(user.wanted(), item.wanted())
        if under_way := {flight for side in flights for flight in side.values()}:
            await asyncio.wait(under_way)  # a caller that is cancelled here cancels no flight: others may wait for it
        for part, side in zip((user, item), flights, strict=True):
            part.fill({id_: flight.result()[part.side][id_] for id_, flight in side.items()})
        return self._end(user), self._end(item)

    async def recall(self, keys: Sequence[bytes]) -> list[HalfArray | None]:
        """Rows of new entities that this or another server encoded."""
        rows = self._cache.rows(_NEW, keys)
        self.counts.cache += sum(row is not None for row in rows)
        missing = [i for i, row in enumerate(rows) if row is None]
        names = self._keys.new(keys[i] for i in missing)
        values = await self.remote.get(names) if missing else None
        if values is not None:
            for i, said in zip(missing, self._read(names, values, sure=True), strict=True):
                if isinstance(said, Stored):
                    rows[i] = said.row
                    self._cache.put(_NEW, keys[i], said)
        return rows

    def remember(self, key: bytes, row: HalfArray) -> None:
        """Keep it in this process and, in the background, in Redis."""
        self.counts.encoder += 1
        stored = Stored(row, trained=False)
        self._cache.put(_NEW, key, stored)
        (name,) = self._keys.new([key])
        self.remote.put(name, encode_value(name, stored), self._new_ttl_s)

    def forget(self, side: int, id_: Id, attributes: Attributes | None) -> None:
        """Out of the cache."""
        self._cache.drop(side, id_)
        if attributes is not None:
            self._cache.drop(_NEW, key_of(side, attributes))

    async def erase(self, side: int, id_: Id, attributes: Attributes | None) -> bool:
        """And out of Redis, under this version's keys."""
        self.forget(side, id_, attributes)
        names = self._keys.known(side, [id_])
        if attributes is not None:
            names += self._keys.new([key_of(side, attributes)])
        return await self.remote.delete(names)

    async def close(self) -> None:
        """Let what is under way end, and disconnect from Redis."""
        if under_way := {flight for flights in self._flights for flight in flights.values()}:
            await asyncio.wait(under_way)
        await self.remote.close()

    def _begin(self, side: int, ids: Sequence[Id]) -> _Part:
        """What the cache knows."""
        slots = self._cache.slots(side, ids)
        if None not in slots:
            gathered = self._cache.gather(slots)  # type: ignore[arg-type] # there is no None
            return _Part(side, ids, len(ids), *gathered, np.zeros(len(ids), dtype=np.int8), [])
        held = [i for i, slot in enumerate(slots) if slot is not None]
        part = _Part(
            side,
            ids,
            len(held),
            rows=self._unknown[[side]].repeat(len(ids), axis=0),
            trained=np.zeros(len(ids), dtype=np.bool_),
            attributes=[b""] * len(ids),
            state=np.full(len(ids), State.UNKNOWN, dtype=np.int8),
            missing=[i for i, slot in enumerate(slots) if slot is None and ids[i] not in self._absent[side]],
        )
        part.rows[held], part.trained[held], attributes = self._cache.gather([s for s in slots if s is not None])
        part.state[held] = State.FOUND
        for i, told in zip(held, attributes, strict=True):
            part.attributes[i] = told
        return part

    def _end(self, part: _Part) -> Side:
        self.counts.cache += part.held
        if np.count_nonzero(part.state):
            self.counts.unknown += int(np.count_nonzero(part.state == State.UNKNOWN))
            self.counts.degraded += int(np.count_nonzero(part.state == State.DEGRADED))
        return Side(part.rows, part.trained, part.state, lambda i: self._attributes(part, i))

    def _attributes(self, part: _Part, i: int) -> Attributes:
        if part.attributes[i]:
            return read_attributes(part.attributes[i])
        table = self._tables[part.side]
        return {} if table is None else table.attributes(int(table.find([part.ids[i]])[0]))

    def _fly(self, users: list[Id], items: list[Id]) -> tuple[dict[Id, Flight], dict[Id, Flight]]:
        """The flight that brings each id: one that is in the air, or a new one for all the others."""
        wanted = [
            [id_ for id_ in ids if id_ not in flights]
            for ids, flights in zip((users, items), self._flights, strict=True)
        ]
        if any(wanted):
            flight = asyncio.create_task(self._load(*wanted))
            for ids, flights in zip(wanted, self._flights, strict=True):
                flights.update(dict.fromkeys(ids, flight))
        return {id_: self._flights[0][id_] for id_ in users}, {id_: self._flights[1][id_] for id_ in items}

    async def _load(self, users: list[Id], items: list[Id]) -> tuple[dict[Id, Looked], dict[Id, Looked]]:
        """Look for ids of both sides in one round trip to Redis, then in the tables."""
        marks, user_names, item_names = self._keys.marks, self._keys.known(0, users), self._keys.known(1, items)
        names = [*marks, *user_names, *item_names]
        try:
            values = await self.remote.get(names) or [None] * len(names)
        finally:
            for ids, flights in zip((users, items), self._flights, strict=True):
                for id_ in ids:
                    del flights[id_]
        all_users, all_items, *found = values
        user_said = self._read(user_names, found[: len(users)], sure=all_users is not None)
        item_said = self._read(item_names, found[len(users) :], sure=all_items is not None)
        return self._settle(0, users, user_said), self._settle(1, items, item_said)

    def _read(self, names: Sequence[bytes], values: Sequence[bytes | None], sure: bool) -> list[Looked]:
        """What Redis says of some keys; `sure` if all rows of that kind are in it."""
        looked: list[Looked] = []
        for name, value in zip(names, values, strict=True):
            stored = None if value is None else decode_value(name, value, self._unknown.shape[1])
            if stored:
                self.counts.redis += 1
            elif value is not None:
                self.counts.corrupt += 1
            looked.append(stored or (State.UNKNOWN if sure and value is None else State.DEGRADED))
        return looked

    def _settle(self, side: int, ids: Sequence[Id], said: Sequence[Looked]) -> dict[Id, Looked]:
        """Ask the table, which knows everything, for what Redis has not; and keep what is certain."""
        looked = dict(zip(ids, said, strict=True))
        table = self._tables[side]
        if table is not None:
            looked |= self._search(table, [id_ for id_, what in looked.items() if not isinstance(what, Stored)])
        for id_, what in looked.items():
            if isinstance(what, Stored):
                self._cache.put(side, id_, what)
            elif what is State.UNKNOWN:
                self._absent[side].add(id_)
        return looked

    def _search(self, table: Table, ids: list[Id]) -> dict[Id, Looked]:
        looked: dict[Id, Looked] = dict.fromkeys(ids, State.UNKNOWN)
        for id_, number in zip(ids, table.find(ids).tolist(), strict=True):
            if number >= 0:
                looked[id_] = Stored(table.rows[number], bool(table.trained[number]))
                self.counts.table += 1
        return looked


@dataclass(slots=True)
class _Part:
    """One side of a batch [B] while it is being looked up."""

    side: int
    ids: Sequence[Id]
    held: int
    """How many the cache had."""
    rows: HalfArray
    trained: BoolArray
    attributes: list[bytes]
    """As Redis told them; empty where only the table can."""
    state: Int8Array
    missing: list[int]
    """Places that the cache could not fill."""

    def wanted(self) -> list[Id]:
        """The ids at those places, each once."""
        return list(dict.fromkeys(self.ids[i] for i in self.missing))

    def fill(self, looked: Mapping[Id, Looked]) -> None:
        """Put in what was found of them."""
        for i in self.missing:
            what = looked[self.ids[i]]
            if isinstance(what, Stored):
                self.rows[i], self.trained[i], self.attributes[i] = what
                self.state[i] = State.FOUND
            else:
                self.state[i] = what
