"""A dataset as a nightly run has put it together: base data and feedback in Parquet, and the split with them.

A folder holds `dataset.json` (schema, shift, licence), `users.parquet`, `items.parquet` and `ratings.parquet`. The
latter's column `part` says what each rating is used for, and `batch` which night brought it; 0 is the base data.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from levi_serve.bundle.schema import Frozen, Schema
from training.checkpoint import write_json
from training.datasets.dataset import Dataset, GenreShift, GivenShift, Ratings
from training.errors import DataError

_ABOUT = "dataset.json"


class _About(Frozen):
    name: str
    schema_: Schema
    licence: str
    binary: bool
    attribute: str | None
    """Of a shift by a category of the items."""
    id_values: tuple[str, ...]
    names: tuple[str, ...]
    """Of a shift that the loader gave."""
    min_ratings: int


def write_snapshot(folder: Path, dataset: Dataset, batch: npt.NDArray[np.int32]) -> None:
    """Write a dataset that has its `part`, and the `batch` [m] of each rating."""
    shift, ratings = dataset.shift, dataset.ratings
    genre, given = (shift if isinstance(shift, kind) else None for kind in (GenreShift, GivenShift))
    assert genre is None or isinstance(genre, GenreShift)
    assert given is None or isinstance(given, GivenShift)
    columns = {"user": ratings.user, "item": ratings.item, "value": ratings.value, "time": ratings.time}
    columns |= {"part": dataset.part, "batch": batch} | ({"shift": given.of} if given else {})
    pq.write_table(pa.table(columns), folder / "ratings.parquet")
    pq.write_table(dataset.users, folder / "users.parquet")
    pq.write_table(dataset.items, folder / "items.parquet")
    about = _About(
        name=dataset.name,
        schema_=dataset.schema,
        licence=dataset.licence,
        binary=dataset.binary,
        attribute=genre.attribute if genre else None,
        id_values=tuple(sorted(genre.id_values)) if genre else (),
        names=given.names if given else (),
        min_ratings=shift.min_ratings if shift else 1,
    )
    write_json(folder / _ABOUT, about.model_dump(mode="json"))


def load_snapshot(folder: Path) -> Dataset:
    """What `write_snapshot` wrote. Raises DataError if it is not there whole."""
    try:
        about = _About.model_validate_json((folder / _ABOUT).read_bytes())
        users, items, table = (pq.read_table(folder / f"{name}.parquet") for name in ("users", "items", "ratings"))
    except (OSError, ValidationError, pa.ArrowException) as error:
        raise DataError(f"{folder}: is no snapshot of a nightly run ({' '.join(str(error).split())})") from None
    column = {name: table[name].to_numpy() for name in table.column_names}
    shift: GenreShift | GivenShift | None = None
    if about.attribute is not None:
        shift = GenreShift(about.attribute, frozenset(about.id_values), about.min_ratings)
    elif about.names:
        shift = GivenShift(about.names, column["shift"], about.min_ratings)
    ratings = Ratings(column["user"], column["item"], column["value"], column["time"])
    return Dataset(about.name, about.schema_, users, items, ratings, shift, about.licence, about.binary, column["part"])


def batches(folder: Path) -> npt.NDArray[np.int32]:
    """The night [m] that brought each rating of a snapshot; 0 is the base data."""
    found: npt.NDArray[np.int32] = pq.read_table(folder / "ratings.parquet", columns=["batch"])["batch"].to_numpy()
    return found
