"""Entity rows: what the server knows of each user and item, as memory-mapped tables sorted by id.

A table named `users` is four files: `users.ids.npy` [N], `users.rows.npy` [N + 1, width] fp16 whose last row is that
of an unknown entity without attributes, `users.trained.npy` [N] bool, and `users.attributes.jsonl` with one JSON
object a line, found through `users.offsets.npy` [N + 1].
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from levi_serve.bundle import AnyArray, BoolArray, DoubleArray, Int64Array
from levi_serve.bundle.schema import Attributes, Frozen

Id: TypeAlias = int | str
HalfArray: TypeAlias = npt.NDArray[np.float16]

STORED = np.float16
"""A row is rounded to this type before it is used, wherever it comes from, so that every tier gives one rating."""


class Layout(Frozen):
    """Columns of an entity row, in this order. All widths are column counts; a part may be empty.

    Entity views: first-layer halves of tower and heads, each already applied to this entity (bias in the user half).
    Pair views: only `embedding`, the id embedding, since the graph itself applies the tower.
    """

    tower: int
    """First layer of the scratch tower, before its activation."""
    heads: int
    """First layers of all n heads, n × hidden, layer by layer, before their activation."""
    factors: int
    """Id embedding as it enters the user × item product."""
    embedding: int
    """Id embedding as an input of the graph (pair views)."""
    bias: int = 1
    """Rating bias."""
    support: int
    """How far this entity's views lie from the fitted ones: RMS of the whitened components, about 1."""

    @property
    def width(self) -> int:
        """Columns of a row."""
        return self.tower + self.heads + self.factors + self.embedding + self.bias + self.support


class Table:
    """One entity's rows, opened read-only and memory-mapped: memory does not grow with the catalogue."""

    def __init__(self, folder: Path, name: str) -> None:
        """Open the four files of table `name`."""
        # As plain arrays: a `memmap` makes each of the small operations below several times as slow.
        self.ids: AnyArray = np.asarray(np.load(folder / f"{name}.ids.npy", mmap_mode="r"))
        self.rows: HalfArray = np.asarray(np.load(folder / f"{name}.rows.npy", mmap_mode="r"))
        self.trained: BoolArray = np.asarray(np.load(folder / f"{name}.trained.npy", mmap_mode="r"))
        self._offsets: Int64Array = np.asarray(np.load(folder / f"{name}.offsets.npy", mmap_mode="r"))
        self._attributes = np.memmap(folder / f"{name}.attributes.jsonl", dtype=np.uint8, mode="r")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def unknown(self) -> int:
        """Row number of the unknown entity."""
        return len(self.ids)

    def find(self, ids: Sequence[Id]) -> Int64Array:
        """Row numbers [len(ids)]; -1 for an id that is not in the catalogue."""
        if self.ids.dtype.kind != "S":
            return self._find(np.array(ids, dtype=np.int64))
        keys = [str(i).encode("utf-8", "surrogatepass") for i in ids]
        # NumPy drops NULs at the end of text and cuts text to the table's width: such ids are not the ones it finds.
        whole = [len(key) <= self.ids.itemsize and not key.endswith(b"\0") for key in keys]
        return np.where(whole, self._find(np.array(keys, dtype=self.ids.dtype)), -1)

    def places(self, ids: Sequence[Id]) -> DoubleArray:
        """Where ids [len(ids)] that may be new would stand among the rows: k − ½ before row k."""
        if self.ids.dtype.kind != "S":
            before: AnyArray = self.ids.searchsorted(np.array(ids, dtype=np.int64))
            return before.astype(np.float64) - 0.5
        keys = [str(i).encode("utf-8", "surrogatepass") for i in ids]
        wanted = np.array(keys, dtype=self.ids.dtype)  # cut to the table's width: behind the id that it then equals
        longer = np.array([len(key) > self.ids.itemsize for key in keys])
        before = np.where(longer, self.ids.searchsorted(wanted, "right"), self.ids.searchsorted(wanted))
        return before.astype(np.float64) - 0.5

    def _find(self, wanted: AnyArray) -> Int64Array:
        """Row numbers of `wanted`, which has the ids' own type: another one would have the whole table converted."""
        at = self.ids.searchsorted(wanted)
        found = self.ids.take(at, mode="clip") == wanted
        if np.count_nonzero(found) < len(at):
            at[~found] = -1
        return at

    def id(self, row: int) -> Id:
        """The id of one entity of the catalogue."""
        key = self.ids[row].item()
        return key.decode() if isinstance(key, bytes) else key

    def attributes(self, row: int) -> Attributes:
        """The attributes of one entity of the catalogue."""
        return read_attributes(self.attributes_json(row))

    def attributes_json(self, row: int) -> bytes:
        """The attributes as they are stored."""
        return self._attributes[self._offsets[row] : self._offsets[row + 1]].tobytes()


def read_attributes(line: bytes) -> Attributes:
    """Attributes from the JSON object that they are stored as."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(line).items()}


def write_table(
    folder: Path,
    name: str,
    ids: Sequence[Id],
    attributes: Sequence[Attributes],
    trained: BoolArray,
    rows: npt.NDArray[np.floating],
) -> None:
    """Write a table. `rows` [N + 1, width] follow `ids` [N], then the unknown entity; the files are sorted by id."""
    keys = np.asarray(ids) if isinstance(ids[0], int) else np.asarray([str(i).encode() for i in ids])
    order = np.argsort(keys)
    np.save(folder / f"{name}.ids.npy", keys[order])
    np.save(folder / f"{name}.rows.npy", rows[np.append(order, len(order))].astype(STORED))
    np.save(folder / f"{name}.trained.npy", trained[order])
    lines = [json.dumps(attributes[i], ensure_ascii=False).encode() + b"\n" for i in order]
    np.save(folder / f"{name}.offsets.npy", np.cumsum([0, *map(len, lines)], dtype=np.int64))
    (folder / f"{name}.attributes.jsonl").write_bytes(b"".join(lines))
