"""From the columns of the files to rows of the entity tables, and the checks on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from levi_serve.bundle import FloatArray, Int64Array
from training.datasets.dataset import Ratings
from training.datasets.files import Rows, first
from training.errors import DataError


@dataclass(frozen=True)
class Scale:
    """What a rating may be; `step` None allows everything between the ends."""

    low: float
    high: float
    step: float | None = None

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}" + (f" in steps of {self.step:g}" if self.step else "")


def require_values(rows: Rows, column: str) -> pa.ChunkedArray:
    """The column, without gaps. Raises DataError naming the first line that has no value."""
    values = rows.table[column]
    if values.null_count:
        raise DataError(
            f"{rows.place(first(pc.is_null(values)))}: column '{column}' is empty; fill it or drop the line"
        )
    return values


def require_ids(rows: Rows, column: str) -> pa.ChunkedArray:
    """The column, without gaps and negative ids."""
    values = require_values(rows, column)
    if pa.types.is_integer(values.type):
        row = first(pc.less(values, 0))
        if row >= 0:
            raise DataError(f"{rows.place(row)}: {column} {values[row]} is negative; ids count from 0")
    return values


def require_unique_ids(rows: Rows, column: str) -> None:
    """Raise DataError naming both lines unless every id of an entity table is there, right and once."""
    values = require_ids(rows, column)
    codes = pc.index_in(values, value_set=pc.unique(values)).to_numpy()
    repeat = _repeated(codes.astype(np.int64))
    if repeat is not None:
        one, other = np.flatnonzero(codes == repeat)[:2].tolist()
        raise DataError(f"{rows.place(other)}: {column} {values[one]} is already in {_short(rows, one)}; keep one")


def known_ids(rows: Rows, column: str) -> pa.Array:
    """The distinct ids that a ratings file mentions, sorted: the entities of a source without a table of them."""
    return pc.unique(require_ids(rows, column)).sort()


def build_ratings(
    rows: Rows,
    columns: Sequence[str],
    ids: tuple[pa.ChunkedArray, pa.ChunkedArray],
    homes: tuple[Path, Path],
    scale: Scale,
) -> Ratings:
    """Ratings between rows of the two entity tables.

    `columns` names user, item, rating and, where there is one, time (seconds); `ids` are the entity tables' ids and
    `homes` the files they came from, user first. Raises DataError naming the line of an id without a row, of a rating
    that is not on the scale, and of a pair rated twice.
    """
    user = _row_numbers(rows, columns[0], ids[0], homes[0])
    item = _row_numbers(rows, columns[1], ids[1], homes[1])
    value = _values(rows, columns[2], scale)
    _require_distinct_pairs(rows, columns, user, item)
    time = pc.fill_null(rows.table[columns[3]], 0).to_numpy() if len(columns) > 3 else np.zeros(len(value), np.int64)
    return Ratings(user, item, value, time)


def _row_numbers(rows: Rows, column: str, ids: pa.Array, home: Path) -> npt.NDArray[np.int32]:
    values = require_ids(rows, column)
    found = pc.index_in(values, value_set=ids)
    if found.null_count:
        row = first(pc.is_null(found))
        raise DataError(f"{rows.place(row)}: {column} {values[row]} has no row in {home}; add it or drop the rating")
    numbers: npt.NDArray[np.int32] = found.to_numpy()
    return numbers


def _values(rows: Rows, column: str, scale: Scale) -> FloatArray:
    values: FloatArray = require_values(rows, column).to_numpy()
    # Compared as 32-bit numbers: the end 0.7 of a scale is no more exact than the rating 0.7.
    low, high = np.float32(scale.low), np.float32(scale.high)
    right = (values >= low) & (values <= high)  # false for NaN
    if scale.step is not None:
        steps = (values - low) / np.float32(scale.step)
        right &= steps == np.floor(steps)
    if not right.all():
        row = int(np.argmin(right))
        raise DataError(f"{rows.place(row)}: {column} {values[row]:g} is not on the scale {scale}; mend or drop it")
    return values


def _require_distinct_pairs(
    rows: Rows, columns: Sequence[str], user: npt.NDArray[np.int32], item: npt.NDArray[np.int32]
) -> None:
    width = int(item.max()) + 1
    keys = user.astype(np.int64)
    keys *= width
    keys += item
    repeat = _repeated(keys)
    if repeat is not None:
        one, other = np.flatnonzero((user == repeat // width) & (item == repeat % width))[:2].tolist()
        who = " and ".join(f"{column} {rows.table[column][one]}" for column in columns[:2])
        raise DataError(f"{rows.place(other)}: {who} are already in {_short(rows, one)}; keep one of the two")


def _repeated(keys: Int64Array) -> int | None:
    """The smallest key that occurs twice; sorts `keys` in place, which spares a copy of 25 million."""
    keys.sort()
    repeats = keys[1:][keys[1:] == keys[:-1]]
    return int(repeats[0]) if len(repeats) else None


def _short(rows: Rows, row: int) -> str:
    """The place without the file, for the second place in a message."""
    return rows.place(row).removeprefix(f"{rows.path}, ")
