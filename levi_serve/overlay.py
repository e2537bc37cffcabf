"""What came, changed or went since a version was exported, laid over the version's own tables.

An entity that was put has a row that the version's encoder made of its attributes. Where the version's table has the
same attributes for an id, the version has learned it since, and its own row is the better one. An id that was erased is
no longer known, whatever the tables hold.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

import numpy as np

from levi_serve.bundle.entities import Change
from levi_serve.bundle.keys import rows_digest
from levi_serve.bundle.manifest import Manifest
from levi_serve.bundle.rows import STORED, HalfArray, Id, Table
from levi_serve.bundle.schema import Attribute, Attributes, Entity, Value
from levi_serve.entities import Entities
from levi_serve.errors import BackendError, DeadlineError, NotReadyError, OverloadedError, ServeError
from levi_serve.predictor import Encoded, Known, ids_of, merged
from levi_serve.recommend import Additions
from levi_serve.store import Side, State, Store

log = logging.getLogger("levi")

Encode = Callable[[int, Attributes], Awaitable[HalfArray]]
"""Side and attributes to a row [W]."""

_LATER = (BackendError, DeadlineError, NotReadyError, OverloadedError)
"""What keeps a row from being made at the moment."""


class Overlay(Store):
    """A store over another one, of one version."""

    def __init__(
        self, store: Store, manifest: Manifest, tables: tuple[Table | None, Table | None], unknown: HalfArray
    ) -> None:
        """`unknown` [2, W] stands in for what was erased."""
        self.counts = store.counts
        self.digest = rows_digest(manifest)
        self._store = store
        self._entities = manifest.schema_.entities
        self._tables = tables
        self._gone = tuple(Encoded({}, row) for row in unknown)
        self._laid: tuple[dict[Id, Encoded], dict[Id, Encoded]] = ({}, {})
        self._heard = 0
        self._one_at_a_time = asyncio.Lock()
        self._additions: Additions | None = None

    async def follow(self, entities: Entities, encode: Encode) -> bool:
        """Take over what changed since the last time; whether that is all. What cannot be encoded at the moment is left
        for the next time.
        """
        async with self._one_at_a_time:
            for heard, change in entities.after(self._heard):
                try:
                    await self._take(change, encode)
                except _LATER as error:
                    log.warning("%s %r cannot be encoded yet: %s", change.entity, change.id, error)
                    return False
                except ServeError as error:
                    log.error("%s %r cannot be encoded: %s", change.entity, change.id, error)  # noqa: TRY400
                self._heard = heard
        return True

    def forget(self, side: int, id_: Id, attributes: Attributes | None) -> None:
        """As below."""
        self._store.forget(side, id_, attributes)

    async def erase(self, side: int, id_: Id, attributes: Attributes | None) -> bool:
        """As below."""
        return await self._store.erase(side, id_, attributes)

    def given(self, side: int, id_: Id) -> Attributes | None:
        """The attributes with which an id was put, if it was."""
        found = self._laid[side].get(id_)
        return None if found is None or found is self._gone[side] else found.given

    def additions(self) -> Additions:
        """Items for recommendations that the version's table does not have, or no longer."""
        if self._additions is None:
            table, laid = self._tables[1], self._laid[1]
            assert table is not None  # without one nothing is recommended
            here = [id_ for id_, found in laid.items() if found is not self._gone[1]]
            numbers = table.find(list(laid))
            self._additions = Additions.of(
                table, numbers[numbers >= 0], {id_: (laid[id_].row, laid[id_].given) for id_ in here}
            )
        return self._additions

    def at_hand(self, users: Sequence[Id], items: Sequence[Id]) -> tuple[Side, Side] | None:
        """Both sides of a batch, if the store below has the rest at hand."""
        if not any(self._laid):
            return self._store.at_hand(users, items)
        known = self._over(0, users), self._over(1, items)
        found = self._store.at_hand(ids_of(known[0]), ids_of(known[1]))
        return found and self._whole(found, known)

    async def fetch(self, users: Sequence[Id], items: Sequence[Id]) -> tuple[Side, Side]:
        """The same, with what the store below fetches."""
        known = self._over(0, users), self._over(1, items)
        return self._whole(await self._store.fetch(ids_of(known[0]), ids_of(known[1])), known)

    async def recall(self, keys: Sequence[bytes]) -> list[HalfArray | None]:
        """As below."""
        return await self._store.recall(keys)

    def remember(self, key: bytes, row: HalfArray) -> None:
        """As below."""
        self._store.remember(key, row)

    async def close(self) -> None:
        """As below."""
        await self._store.close()

    async def _take(self, change: Change, encode: Encode) -> None:
        """One change. A version whose schema has no such entity has nothing to do with it."""
        sides = [side for side, entity in enumerate(self._entities) if entity.name == change.entity]
        if not sides or isinstance(change.id, int) != (self._entities[sides[0]].id_type == "integer"):
            return
        side, id_ = sides[0], change.id
        before = self.given(side, id_)
        found = self._gone[side]
        if change.attributes is not None:
            attributes = _fitting(self._entities[side], change.attributes)
            if self._own(side, id_) == attributes:
                self._lay(side, id_, None)
                return
            if change.digest == self.digest:
                row = np.frombuffer(change.row, STORED)
            else:
                row = await encode(side, attributes)
            found = Encoded(attributes, row)
        # Laid first: what the store below still has is no longer asked for, so that it cannot come back from there.
        self._lay(side, id_, found)
        self.forget(side, id_, before)

    def _lay(self, side: int, id_: Id, found: Encoded | None) -> None:
        self._laid[side].pop(id_, None)
        if found is not None:
            self._laid[side][id_] = found
        if side == 1:
            self._additions = None

    def _own(self, side: int, id_: Id) -> Attributes | None:
        """What the version's own table says of an id."""
        table = self._tables[side]
        number = -1 if table is None else int(table.find([id_])[0])
        return None if table is None or number < 0 else table.attributes(number)

    def _over(self, side: int, ids: Sequence[Id]) -> list[Known]:
        return [self._laid[side].get(id_, id_) for id_ in ids]

    def _whole(self, found: tuple[Side, Side], known: tuple[Sequence[Known], Sequence[Known]]) -> tuple[Side, Side]:
        """The rest and what is laid over it, in order."""
        return self._joined(0, found[0], known[0]), self._joined(1, found[1], known[1])

    def _joined(self, side: int, found: Side, known: Sequence[Known]) -> Side:
        whole = merged(found, known)
        if whole is not found:
            gone = [place for place, entity in enumerate(known) if entity is self._gone[side]]
            whole.state[gone] = State.UNKNOWN
            self.counts.unknown += len(gone)
            self.counts.added += len(known) - len(found.rows) - len(gone)
        return whole


def _fitting(entity: Entity, attributes: Attributes) -> Attributes:
    """Those attributes that this version's schema has, and has so."""
    kinds: Mapping[str, Attribute] = {attribute.name: attribute for attribute in entity.attributes}
    return {name: value for name, value in attributes.items() if name in kinds and _fits(kinds[name], value)}


def _fits(attribute: Attribute, value: Value) -> bool:
    if attribute.kind == "number":
        return isinstance(value, int | float)
    return isinstance(value, tuple) if attribute.many else isinstance(value, str)
