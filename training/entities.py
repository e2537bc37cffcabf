"""What the servers' list of entities says is laid over a night's data: who was erased is not in it, who was put is.

The latest change of an entity counts. The events of an erased one go from the batches, its ratings and attributes from
the tables, so that the version that comes of them does not know it. A put entity has a row, rated or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from levi_serve.bundle.entities import Change, open_entities
from levi_serve.bundle.feedback import Event, Events, encode_event
from levi_serve.bundle.redis_url import is_redis
from levi_serve.bundle.rows import Id
from levi_serve.bundle.schema import Attributes, Entity, Schema
from training.atomic import atomic_file
from training.datasets.dataset import Dataset, GivenShift, Ratings
from training.errors import UsageError
from training.merge import column_value
from training.splits import PARTS, Split, split


@dataclass(frozen=True)
class Listed:
    """The list, by side: users, then items."""

    erased: tuple[frozenset[Id], frozenset[Id]]
    put: tuple[Mapping[Id, Attributes], Mapping[Id, Attributes]]

    @classmethod
    def of(cls, changes: Iterable[Change], schema: Schema) -> Listed:
        """What these changes come to; of entities that the schema does not have, nothing."""
        latest: tuple[dict[Id, Attributes | None], dict[Id, Attributes | None]] = ({}, {})
        names = [entity.name for entity in schema.entities]
        for change in changes:
            if change.entity in names:
                latest[names.index(change.entity)][change.id] = change.attributes
        users, items = (
            (
                frozenset(ident for ident, said in side.items() if said is None),
                {ident: said for ident, said in side.items() if said is not None},
            )
            for side in latest
        )
        return cls((users[0], items[0]), (users[1], items[1]))

    def names(self, event: Event) -> bool:
        """Whether an event is about somebody who was erased."""
        return event.user in self.erased[0] or event.item in self.erased[1]


def read_list(place: str | None, model: str, schema: Schema) -> Listed:
    """The list that `levi-serve --entities` names, or nothing.

    Raises:
        UsageError: there is no such file.
        PlaceError: it cannot be read.

    """
    if place is None:
        return Listed.of((), schema)
    if not is_redis(place) and not Path(place).is_file():
        raise UsageError(f"--entities {place}: is no file; the server makes it when it starts")
    found = open_entities(place, model)
    try:
        return Listed.of(found.since(0)[1], schema)
    finally:
        found.close()


def forget(batches: Iterable[Path], listed: Listed) -> None:
    """Write batches anew without the events of who was erased."""
    for batch in batches:
        events = list(Events(batch))
        kept = [event for event in events if not listed.names(event)]
        if len(kept) < len(events):
            with atomic_file(batch) as temporary:
                temporary.write_bytes(b"".join(map(encode_event, kept)))


def lay(base: Dataset, parts: Split, listed: Listed) -> tuple[Dataset, Split]:
    """The base data with its split as the list leaves them."""
    if not any((*listed.erased, *listed.put)):
        return base, parts
    tables, places = [], []
    sides = zip((base.users, base.items), base.schema.entities, listed.erased, listed.put, strict=True)
    for table, entity, erased, put in sides:
        kept = np.array([ident not in erased for ident in table["id"].to_pylist()], np.bool_)
        places.append(np.where(kept, np.cumsum(kept) - 1, -1).astype(np.int32))
        tables.append(_with(table.filter(pa.array(kept)), entity, put))
    part = np.empty(len(base.ratings), np.int8)
    for k, name in enumerate(PARTS):
        part[getattr(parts, name)] = k
    r, shift = base.ratings, base.shift
    user, item = places[0][r.user], places[1][r.item]
    rows: npt.NDArray[np.int64] = np.flatnonzero((user >= 0) & (item >= 0))
    if isinstance(shift, GivenShift):
        shift = replace(shift, of=shift.of[rows])
    ratings = Ratings(user[rows], item[rows], r.value[rows], r.time[rows])
    found = replace(base, users=tables[0], items=tables[1], ratings=ratings, shift=shift, part=part[rows])
    return found, split(found, 0)


def _with(table: pa.Table, entity: Entity, put: Mapping[Id, Attributes]) -> pa.Table:
    """The table with these entities' attributes instead of what it had, and new ones last."""
    if not put:
        return table
    fields = table.schema
    said = {ident: _record(ident, told, entity, fields) for ident, told in put.items()}
    records: Sequence[dict[str, object]] = [said.pop(record["id"], record) for record in table.to_pylist()]
    return pa.Table.from_pylist([*records, *said.values()], schema=fields)


def _record(ident: Id, told: Attributes, entity: Entity, fields: pa.Schema) -> dict[str, object]:
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in told.items()}
    known = [a for a in entity.attributes if a.name in plain]
    return {"id": ident, **{a.name: column_value(a, plain[a.name], fields.field(a.name).type) for a in known}}
