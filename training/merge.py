"""Base data and batches of feedback become one dataset with a split.

A pair that is rated again keeps its place and its part of the split and takes the newest rating, so no held-out rating
is ever trained on. A new pair's part follows from a hash of its two ids. An id that is in no table gets a row if the
event describes it; without attributes its events wait until the base data knows it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from levi_serve.bundle import DoubleArray, Int64Array
from levi_serve.bundle.feedback import Event, Events
from levi_serve.bundle.rows import Id
from levi_serve.bundle.schema import Attribute, Entity, Frozen, Schema
from training.datasets.dataset import Dataset, GivenShift, Ratings
from training.splits import CUTS, PARTS, Split


class Counts(Frozen):
    """What became of the events."""

    merged: int = 0
    """Events that are in the data, or that a later one of the same pair replaced."""
    rated_again: int = 0
    """Of these, events of a pair that had a rating."""
    new_entities: tuple[int, int] = (0, 0)
    """Users and items that have a row since an event described them."""
    undescribed: int = 0
    """Events of an id that is in no table and has no attributes; they wait."""
    out_of_range: int = 0
    """Events whose rating the schema does not allow."""
    future: int = 0
    """Events dated after they were received; they count as given when they were received."""


@dataclass(frozen=True)
class Merged:
    """The dataset of one night."""

    dataset: Dataset
    """With its `part`."""
    batch: npt.NDArray[np.int32]  # [m] the night that first brought each rating; 0: base
    counts: Counts


class _Catalogue:
    """Rows of the ids of one side; new ones are added as they are described."""

    def __init__(self, entity: Entity, table: pa.Table) -> None:
        self._entity, self._table = entity, table
        self._rows: dict[Id, int] = {ident: row for row, ident in enumerate(table["id"].to_pylist())}
        self._new: list[dict[str, object]] = []

    @property
    def added(self) -> int:
        return len(self._new)

    def row(self, ident: Id, described: Mapping[str, object]) -> int:
        """The id's row; -1 if it has none and the attributes are not enough to make one."""
        row = self._rows.get(ident, -1)
        if row < 0 and isinstance(ident, int) == (self._entity.id_type == "integer") and described:
            said = [a for a in self._entity.attributes if a.name in described]
            values = {a.name: column_value(a, described[a.name], self._table.schema.field(a.name).type) for a in said}
            if any(value is not None for value in values.values()):
                row = self._rows[ident] = len(self._table) + len(self._new)
                self._new.append({"id": ident, **values})
        return row

    def table(self) -> pa.Table:
        """All rows, the new ones last."""
        fields = self._table.schema
        new = [{name: record.get(name) for name in fields.names} for record in self._new]
        return pa.concat_tables([self._table, pa.Table.from_pylist(new, schema=fields)]) if new else self._table


def merge(base: Dataset, parts: Split, nights: Mapping[int, Path]) -> Merged:
    """`base` with its split, and the batches of these nights in their order."""
    tables = _Catalogue(base.schema.user, base.users), _Catalogue(base.schema.item, base.items)
    counts, columns = _columns(base, tables, ((n, event) for n, path in nights.items() for event in Events(path)))
    user, item, value, time, night = columns
    users, items = (catalogue.table() for catalogue in tables)
    part = np.empty(len(base.ratings), np.int8)
    for k, name in enumerate(PARTS):
        part[getattr(parts, name)] = k
    old, width = base.ratings, len(items)
    # The newest event of every pair, and the night that first brought it.
    keys = user.astype(np.int64) * width + item
    order = np.lexsort((np.arange(len(keys)), time, keys))
    last = np.append(keys[order][1:] != keys[order][:-1], True) if len(keys) else np.empty(0, np.bool_)
    pairs, first = np.unique(keys, return_index=True)
    newest = order[last]
    known = old.user.astype(np.int64) * width + old.item
    by_key = np.argsort(known, kind="stable")
    at = np.searchsorted(known[by_key], pairs)
    place = by_key[np.minimum(at, len(known) - 1)]
    again = (at < len(known)) & (known[place] == pairs)
    later = again & (time[newest] >= old.time[place])
    values, times = old.value.copy(), old.time.copy()
    values[place[later]], times[place[later]] = value[newest[later]], time[newest[later]]
    new = newest[~again]
    ids = [users["id"].to_pylist(), items["id"].to_pylist()]
    ratings = Ratings(
        np.append(old.user, user[new].astype(np.int32)),
        np.append(old.item, item[new].astype(np.int32)),
        np.append(values, value[new].astype(np.float32)),
        np.append(times, time[new]),
    )
    of_new = np.array([part_of(ids[0][u], ids[1][i]) for u, i in zip(user[new], item[new], strict=True)], np.int8)
    shift = base.shift
    if isinstance(shift, GivenShift):
        shift = replace(shift, of=np.append(shift.of, np.zeros(len(new), np.int8)))
    dataset = replace(
        base, users=users, items=items, ratings=ratings, shift=shift, part=np.append(part, of_new).astype(np.int8)
    )
    batch = np.append(np.zeros(len(old), np.int32), night[first[~again]]).astype(np.int32)
    told = {"rated_again": len(user) - len(new), "new_entities": (tables[0].added, tables[1].added)}
    return Merged(dataset, batch, counts.model_copy(update=told))


def part_of(user: Id, item: Id) -> int:
    """Which part of the split a new pair belongs to: a place in PARTS, with the split's own shares."""
    drawn = int.from_bytes(blake2b(f"{user!r} {item!r}".encode(), digest_size=8).digest()) % 100
    return int(np.searchsorted(CUTS, drawn, side="right")) - 1


def _columns(
    base: Dataset, tables: tuple[_Catalogue, _Catalogue], events: Iterable[tuple[int, Event]]
) -> tuple[Counts, tuple[Int64Array, Int64Array, DoubleArray, Int64Array, Int64Array]]:
    """Rows of user and item, rating, time and night of every event that can be used, each [e]."""
    undescribed = out_of_range = future = 0
    kept = array("d")
    for night, event in events:
        if not _allowed(base.schema, base.binary, event.rating):
            out_of_range += 1
            continue
        described = (event.attributes.get(entity.name, {}) for entity in base.schema.entities)
        rows = [
            table.row(ident, said)
            for table, ident, said in zip(tables, (event.user, event.item), described, strict=True)
        ]
        if min(rows) < 0:
            undescribed += 1
            continue
        future += event.time > event.received
        kept.extend((*rows, event.rating, min(event.time, event.received), night))
    table = np.frombuffer(kept, np.float64).reshape(-1, 5)
    user, item, time, night_ = (table[:, k].astype(np.int64) for k in (0, 1, 3, 4))
    counts = Counts(merged=len(table), undescribed=undescribed, out_of_range=out_of_range, future=future)
    return counts, (user, item, table[:, 2], time, night_)


def _allowed(schema: Schema, binary: bool, rating: float) -> bool:
    return schema.rating_min <= rating <= schema.rating_max and (not binary or rating in {0, 1})


def column_value(attribute: Attribute, said: object, column: pa.DataType) -> object:
    """What the table's column holds of an attribute that a client has sent; None if it is not of that kind."""
    number, many = attribute.kind == "number", attribute.many
    if not isinstance(said, int | float if number else list if many else str) or isinstance(said, bool):
        return None
    if said in ("", []):
        return None
    try:
        return pa.scalar(said).cast(column).as_py()
    except pa.ArrowException:
        return None
