"""A dataset is two entity tables, ratings between their rows, a schema and a shift."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from levi_serve.bundle.schema import Attributes, Entity, Schema, Template, Value
from training.errors import UsageError


@dataclass(frozen=True)
class Ratings:
    """m ratings as parallel arrays; entities are row numbers of the entity tables."""

    user: npt.NDArray[np.int32]  # [m]
    item: npt.NDArray[np.int32]  # [m]
    value: npt.NDArray[np.float32]  # [m]
    time: npt.NDArray[np.int64]  # [m] seconds since the epoch; 0 where the source has none

    def __len__(self) -> int:
        return len(self.value)


@dataclass(frozen=True)
class GenreShift:
    """Items with at least one ID value of a category are in distribution; the others are the shift
    (Roh et al., Sec. 5: genres of MovieLens).
    """

    attribute: str
    id_values: frozenset[str]
    min_ratings: int = 200
    """A value of the shifted items is a slice of its own when it has at least this many ratings."""


@dataclass(frozen=True)
class GivenShift:
    """The loader says of every rating whether it is in distribution, or else to which slice of the shift it belongs."""

    names: tuple[str, ...]
    of: npt.NDArray[np.int8]  # [m] 0 in distribution, k for names[k - 1]
    min_ratings: int = 1


@dataclass(frozen=True)
class RatingFile:
    """Further training ratings, which stay in their Parquet file; stream.py reads them."""

    path: Path
    columns: tuple[str, str, str]
    """Of the user's id, the item's id and the rating."""
    homes: tuple[Path, Path]
    """The files of the users' and of the items' ids."""


@dataclass(frozen=True)
class Dataset:
    """What every loader returns."""

    name: str
    schema: Schema
    users: pa.Table  # column "id" and one column per attribute; `many` categories are list<string>
    items: pa.Table
    ratings: Ratings
    shift: GenreShift | GivenShift | None
    licence: str = "not stated"
    """Under what terms the data may be used, and so a bundle: it carries entity attributes, and who rated what."""
    binary: bool = False
    """Whether ratings are the two classes 0 and 1; predictions then are probabilities of 1."""
    part: npt.NDArray[np.int8] | None = None  # [m]
    """Which part of the split each rating belongs to, by its place in `splits.PARTS`; None lets the seed decide."""
    more: RatingFile | None = None


def attributes(table: pa.Table, entity: Entity, rows: Sequence[int] | None = None) -> list[Attributes]:
    """The attributes of some rows (default: all) as the schema's values; nulls and empty lists are left out."""
    chosen = table if rows is None else table.take(pa.array(rows, pa.int64()))
    names = [a.name for a in entity.attributes]
    out: list[Attributes] = []
    for record in chosen.select(names).to_pylist():
        present = {n: tuple(v) if isinstance(v, list) else v for n, v in record.items() if v is not None and v != []}
        out.append(cast("dict[str, Value]", present))
    return out


def with_item_text(dataset: Dataset, names: Sequence[str]) -> Dataset:
    """The same data whose sentences also tell these attributes of an item; raises UsageError if it has no such."""
    schema = dataset.schema
    known = {attribute.name for attribute in schema.item.attributes}
    if unknown := set(names) - known:
        raise UsageError(f"--item-text {min(unknown)}: an item of {dataset.name} has {', '.join(sorted(known))}")

    def longer(template: Template) -> Template:
        added = (f"{schema.item.name}.{name}" for name in names)
        return template.model_copy(update={"clauses": tuple(dict.fromkeys((*template.clauses, *added)))})

    templates = {"item_template": longer(schema.item_template), "pair_template": longer(schema.pair_template)}
    return replace(dataset, schema=schema.model_copy(update=templates))


def with_content(dataset: Dataset) -> Dataset:
    """The same data, read more fully: items' sentences name every attribute, and all their categories have codes."""
    item = dataset.schema.item
    described = tuple(
        a.model_copy(update={"embed": a.embed or a.kind == "category" or bool(a.edges)}) for a in item.attributes
    )
    told = with_item_text(dataset, [a.name for a in described])
    coded = {"item": item.model_copy(update={"attributes": described})}
    return replace(told, schema=told.schema.model_copy(update=coded))
