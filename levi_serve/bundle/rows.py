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

from levi_serve.bundle import AnyArray, Int64Array
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
        self.ids: AnyArray = np.load(folder / f"{name}.ids.npy", mmap_mode="r")
        self.rows: HalfArray = np.load(folder / f"{name}.rows.npy", mmap_mode="r")
        self.trained: npt.NDArray[np.bool_] = np.load(folder / f"{name}.trained.npy", mmap_mode="r")
        self._offsets: Int64Array = np.load(folder / f"{name}.offsets.npy", mmap_mode="r")
        self._attributes = np.memmap(folder / f"{name}.attributes.jsonl", dtype=np.uint8, mode="r")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def unknown(self) -> int:
        """Row number of the unknown entity."""
        return len(self.ids)

    def find(self, ids: Sequence[Id]) -> Int64Array:
        """Row numbers [len(ids)]; -1 for an id that is not in the catalogue."""
        wanted = _id_array(ids, self.ids.dtype)
        at = np.searchsorted(self.ids, wanted)
        found = (at < len(self.ids)) & (self.ids[np.minimum(at, len(self.ids) - 1)] == wanted)
        return np.where(found, at, -1)

    def id(self, row: int) -> Id:
        """The id of one entity of the catalogue."""
        key = self.ids[row].item()
        return key.decode() if isinstance(key, bytes) else key

    def attributes(self, row: int) -> Attributes:
        """The attributes of one entity of the catalogue."""
        line = self._attributes[self._offsets[row] : self._offsets[row + 1]].tobytes()
        return {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(line).items()}


def write_table(
    folder: Path,
    name: str,
    ids: Sequence[Id],
    attributes: Sequence[Attributes],
    trained: npt.NDArray[np.bool_],
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


def _id_array(ids: Sequence[Id], dtype: np.dtype[np.generic]) -> AnyArray:
    """The ids as the table's key type; text longer than any stored id stays longer and so matches nothing."""
    if dtype.kind != "S":
        return np.asarray(ids, dtype=np.int64)
    keys = [str(i).encode() for i in ids]
    # NumPy drops NULs at the end of text: such an id must not match the one without them.
    return np.asarray([key + b"\xff" if key.endswith(b"\0") else key for key in keys], dtype=np.bytes_)
