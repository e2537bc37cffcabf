"""Anybody's tables: CSV or Parquet files and a TOML file that names their columns.

licence = "ours, internal use"  # optional: stands in every bundle that is exported from this data

For example:

    [user]                          # also [item]
    name = "customer"               # parameter name in requests; default "user" and "item"
    id = "customer_id"              # the column
    id_type = "string"              # default "integer"
    file = "customers.csv"          # relative to this file; without one the ids are those of the ratings
    attributes = [{name = "city", column = "City", kind = "category", embed = true}]

    [ratings]
    file = "ratings.parquet"
    user = "customer_id"
    item = "sku"
    rating = "stars"
    min = 1
    max = 5
    time = "bought"                 # optional: seconds since the epoch or a date
    more = "all.parquet"            # optional: more training ratings, which stay on disk (operations.md, Fitting)

    [templates.pair]                # optional, as are templates.user and templates.item
    clauses = ["customer.city", "product.title"]

    [shift]                         # optional
    attribute = "shelf"             # a category of the items
    id_values = ["books"]

Everything that has a default may be left out.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, ValidationError, model_validator

from levi_serve.bundle.schema import Attribute, Entity, Frozen, Name, Schema, Template
from training.datasets.checks import Scale, build_ratings, known_ids, require_unique_ids
from training.datasets.dataset import Dataset, GenreShift, RatingFile
from training.datasets.files import Rows, Types, first, open_parquet, read_csv, read_parquet, split_values, tidy_lists
from training.errors import DataError

_ID_TYPES = {"integer": pa.int64(), "string": pa.string()}


class _Attribute(Attribute):
    column: str | None = None
    separator: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _separated(self) -> Self:
        if self.separator and not self.many:
            raise ValueError(f"attribute {self.name}: 'separator' belongs to a category with many values")
        return self

    @property
    def source(self) -> str:
        return self.column or self.name

    def plain(self) -> Attribute:
        return Attribute(**self.model_dump(exclude={"column", "separator"}))


class _Entity(Entity):
    id: str = "id"
    file: Path | None = None
    attributes: tuple[_Attribute, ...] = ()

    @model_validator(mode="after")
    def _columns(self) -> Self:
        if self.attributes and self.file is None:
            raise ValueError("attributes need a 'file' that holds their columns")
        columns = [self.id, *(a.source for a in self.attributes)]
        if len(set(columns)) != len(columns):
            raise ValueError("the id and every attribute need a column of their own")
        for attribute in self.attributes:
            if attribute.many and not attribute.separator and self.file and self.file.suffix == ".csv":
                raise ValueError(f"attribute {attribute.name}: many values in a CSV column need a 'separator'")
        return self

    def plain(self) -> Entity:
        return Entity(name=self.name, id_type=self.id_type, attributes=tuple(a.plain() for a in self.attributes))


class _User(_Entity):
    name: Name = "user"


class _Item(_Entity):
    name: Name = "item"


class _Ratings(Frozen):
    file: Path
    user: str
    item: str
    rating: str
    min: float
    max: float
    time: str | None = None
    more: Path | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.min < self.max:
            raise ValueError("'min' must be below 'max'")
        if len(set(self.columns)) != len(self.columns):
            raise ValueError("user, item, rating and time need a column of their own")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.user, self.item, self.rating, *([self.time] if self.time else []))


class _Templates(Frozen):
    user: Template | None = None
    item: Template | None = None
    pair: Template | None = None


class _Shift(Frozen):
    attribute: Name
    id_values: Annotated[frozenset[str], Field(min_length=1)]
    min_ratings: Annotated[int, Field(ge=1)] = GenreShift.min_ratings


class _Config(Frozen):
    name: Name = "tables"
    user: _User = _User()
    item: _Item = _Item()
    ratings: _Ratings
    templates: _Templates = _Templates()
    shift: _Shift | None = None
    licence: str = Dataset.licence

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.user.name == self.item.name:
            raise ValueError(f"user.name and item.name must differ, and both are '{self.user.name}'")
        categories = [a.name for a in self.item.attributes if a.kind == "category"]
        if self.shift and self.shift.attribute not in categories:
            raise ValueError(f"shift.attribute '{self.shift.attribute}' is no category of the items ({categories})")
        return self

    def plain(self) -> Schema:
        """The schema; sentences default to all text and categories in the order of the file."""
        user, item = self.user.plain(), self.item.plain()
        about_user, about_item = _spoken(user), _spoken(item)
        pair = Template(
            clauses=(f"{user.name}.id", *about_user, *about_item, f"{item.name}.id"),
            opening="When ",
            closing=f", what can be the {user.name} rating on this {item.name}?:",
        )
        return Schema(
            user=user,
            item=item,
            rating_min=self.ratings.min,
            rating_max=self.ratings.max,
            user_template=self.templates.user or Template(clauses=about_user),
            item_template=self.templates.item or Template(clauses=about_item),
            pair_template=self.templates.pair or pair,
        )


def load_tables(data: Path) -> Dataset:
    """The dataset that a TOML file (or `dataset.toml` in a folder) describes.

    Raises DataError naming the TOML key, or the data file and its line or column.
    """
    path = data / "dataset.toml" if data.is_dir() else data
    config, schema = _config(path)
    ratings_path = path.parent / config.ratings.file
    types: Types = dict(
        zip(
            config.ratings.columns,
            (_ID_TYPES[config.user.id_type], _ID_TYPES[config.item.id_type], pa.float32(), None),
            strict=False,
        )
    )
    ratings = _read(ratings_path, types)
    if config.ratings.time:
        ratings = _in_seconds(ratings, config.ratings.time)
    users, user_home = _entity_table(config.user, path.parent, ratings, config.ratings.user)
    items, item_home = _entity_table(config.item, path.parent, ratings, config.ratings.item)
    values = build_ratings(
        ratings,
        config.ratings.columns,
        (users["id"], items["id"]),
        (user_home, item_home),
        Scale(config.ratings.min, config.ratings.max),
    )
    shift = GenreShift(**config.shift.model_dump()) if config.shift else None
    more = None
    if config.ratings.more:
        names = config.ratings.user, config.ratings.item, config.ratings.rating
        more = RatingFile(path.parent / config.ratings.more, names, (user_home, item_home))
        open_parquet(more.path, dict.fromkeys(names))
    return Dataset(config.name, schema, users, items, values, shift, config.licence, more=more)


def _config(path: Path) -> tuple[_Config, Schema]:
    try:
        config = _Config.model_validate(tomllib.loads(path.read_text("utf-8")))
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}; it must name the tables and their columns"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not TOML: {error}") from error
    except ValidationError as error:
        raise _explained(error, path) from error
    try:
        return config, config.plain()
    except ValidationError as error:  # only the sentences are still unchecked
        raise _explained(error, path, "templates") from error


def _explained(error: ValidationError, path: Path, key: str = "") -> DataError:
    """The first of pydantic's complaints as one line."""
    detail = error.errors(include_url=False)[0]
    key = ".".join(map(str, detail["loc"])) or key
    message = " ".join(detail["msg"].removeprefix("Value error, ").split())
    return DataError(f"{path}{f', key {key}' if key else ''}: {message}")


def _spoken(entity: Entity) -> tuple[str, ...]:
    return tuple(f"{entity.name}.{a.name}" for a in entity.attributes if a.kind != "number")


def _read(path: Path, types: Types) -> Rows:
    if path.suffix == ".csv":
        return read_csv(path, types)
    if path.suffix == ".parquet":
        return read_parquet(path, types)
    raise DataError(f"{path}: tables are .csv or .parquet files; convert it")


def _entity_table(entity: _Entity, folder: Path, ratings: Rows, ratings_column: str) -> tuple[pa.Table, Path]:
    """The table and the file it came from."""
    if entity.file is None:
        return pa.table({"id": known_ids(ratings, ratings_column)}), ratings.path
    path = folder / entity.file
    types = {entity.id: _ID_TYPES[entity.id_type]} | {a.source: _type(a) for a in entity.attributes}
    rows = _read(path, types)
    require_unique_ids(rows, entity.id)
    columns = {a.name: _column(rows, a) for a in entity.attributes}
    return pa.table({"id": rows.table[entity.id], **columns}), path


def _type(attribute: _Attribute) -> pa.DataType:
    if attribute.kind == "number":
        return pa.float64()
    return pa.list_(pa.string()) if attribute.many and not attribute.separator else pa.string()


def _column(rows: Rows, attribute: _Attribute) -> pa.ChunkedArray | pa.Array:
    column = rows.table[attribute.source]
    if attribute.separator:
        return split_values(column, attribute.separator)
    if attribute.many:
        return tidy_lists(column)
    if attribute.kind != "number":
        return column
    column = pc.if_else(pc.is_nan(column), None, column)  # how pandas writes a missing number
    row = first(pc.is_inf(column))
    if row >= 0:
        raise DataError(f"{rows.place(row)}: column '{attribute.source}' is infinite; give a number or leave it empty")
    # Whole numbers stay whole: a sentence says 24, not 24.0.
    whole = pc.all(pc.equal(column, pc.round(column)), min_count=0).as_py()
    return column.cast(pa.int64()) if whole and np.abs(column.drop_null().to_numpy()).max(initial=0) < 2**53 else column


def _in_seconds(rows: Rows, name: str) -> Rows:
    column = rows.table[name]
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("s"), safe=False)
    elif not pa.types.is_integer(column.type):
        raise DataError(f"{_no_time(rows, name)} holds neither whole seconds nor dates (2015-08-31); convert it")
    index = rows.table.column_names.index(name)
    return Rows(rows.path, rows.table.set_column(index, name, column.cast(pa.int64())), rows.place)


def _no_time(rows: Rows, name: str) -> str:
    """The first text that is no time, if it shows at first sight, or the column."""
    column = rows.table[name]
    if pa.types.is_string(column.type):
        row = first(pc.invert(pc.match_substring_regex(column, r"^\s*(\d+|\d{4}-\d\d-\d\d.*)\s*$")))
        if row >= 0:
            return f"{rows.place(row)}: column '{name}'"
    return f"{rows.path}, column '{name}'"
