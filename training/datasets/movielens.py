"""GroupLens' MovieLens files: ml-100k, ml-1m, and the CSV files of ml-latest, ml-20m, ml-25m and ml-32m."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from levi_serve.bundle.schema import Attribute, Entity, Schema, Template
from training.datasets.checks import Scale, build_ratings, known_ids, require_unique_ids, require_values
from training.datasets.dataset import Dataset, GenreShift
from training.datasets.files import (
    Rows,
    first,
    join_lists,
    read_csv,
    read_delimited,
    split_values,
)
from training.errors import DataError

LICENCE = "GroupLens, University of Minnesota: research use; no redistribution and no commercial use without permission"
"""The files' README has the terms in full."""

SHIFT = GenreShift("genres", frozenset({"Action", "Comedy", "Drama", "Romance", "Thriller"}))
"""The genre shift of Roh et al., Sec. 5."""

STARS = Scale(1, 5, 1)
HALF_STARS = Scale(0.5, 5, 0.5)

USER_ATTRIBUTES = (
    Attribute(name="occupation", kind="category", embed=True),
    Attribute(name="zipcode", kind="category", embed=True, prefix=3),
    Attribute(name="age", kind="number", embed=True, edges=(18, 25, 35, 45, 50, 56)),
)
MOVIE_ATTRIBUTES = (
    Attribute(name="title", kind="text"),
    Attribute(name="year", kind="number", edges=tuple(range(1930, 2021, 10))),
    Attribute(name="genres", kind="category", many=True, slots=6),
)

# The codes of ml-1m's users.dat, from its README.
_OCCUPATIONS = (
    "other",
    "academic/educator",
    "artist",
    "clerical/admin",
    "college/grad student",
    "customer service",
    "doctor/health care",
    "executive/managerial",
    "farmer",
    "homemaker",
    "K-12 student",
    "lawyer",
    "programmer",
    "retired",
    "sales/marketing",
    "scientist",
    "self-employed",
    "technician/engineer",
    "tradesman/craftsman",
    "unemployed",
    "writer",
)

_MARKS = {"ml-100k": "u.data", "ml-1m": "ratings.dat", "ml-csv": "ratings.csv"}
"""The file that tells the three layouts apart."""

_RATINGS = {"user": pa.int64(), "item": pa.int64(), "rating": pa.float32(), "time": pa.int64()}


def schema(user_attributes: tuple[Attribute, ...], scale: Scale) -> Schema:
    """Users, movies and the paper's sentence (App. D.1); users of ml-csv have no attributes."""
    about_user = tuple(f"user.{a.name}" for a in user_attributes)
    return Schema(
        user=Entity(name="user", attributes=user_attributes),
        item=Entity(name="movie", attributes=MOVIE_ATTRIBUTES),
        rating_min=scale.low,
        rating_max=scale.high,
        user_template=Template(clauses=about_user),
        item_template=Template(clauses=("movie.title",)),
        pair_template=Template(
            clauses=("user.id", *about_user, "movie.title", "movie.id"),
            opening="When ",
            closing=", what can be the user rating on this movie?:",
        ),
    )


def load_100k(data: Path) -> Dataset:
    """MovieLens-100K. Raises DataError naming file and line if anything is not as its README says."""
    _require_layout(data, "ml-100k")
    counts = _counts(data / "u.info")
    genres = _genre_names(data / "u.genre")
    user_types = {
        "id": pa.int64(),
        "age": pa.int64(),
        "gender": pa.string(),
        "occupation": pa.string(),
        "zipcode": pa.string(),
    }
    item_types = {
        "id": pa.int64(),
        "title": pa.string(),
        "released": pa.string(),
        "on video": pa.string(),
        "url": pa.string(),
        **dict.fromkeys(genres, pa.bool_()),
    }
    users = read_delimited(data / "u.user", user_types, "|")
    items = read_delimited(data / "u.item", item_types, "|")
    ratings = read_delimited(data / "u.data", _RATINGS, "\t")
    for name, rows in (("users", users), ("items", items), ("ratings", ratings)):
        if len(rows.table) != counts[name]:
            raise DataError(
                f"{rows.path} has {len(rows.table)} lines, but u.info counts {counts[name]} {name}; "
                "one of the two was cut or changed, get the files again"
            )
    flags = np.column_stack([require_values(items, genre).to_numpy() for genre in genres])
    parents, columns = np.nonzero(flags)
    movies = _movies(items, "id", join_lists(parents, pa.array(genres).take(pa.array(columns)), len(flags)))
    return _with_users("ml-100k", users, users.table["occupation"], items, movies, ratings)


def load_1m(data: Path) -> Dataset:
    """MovieLens-1M. Raises DataError naming file and line if anything is not as its README says."""
    _require_layout(data, "ml-1m")
    user_types = {
        "id": pa.int64(),
        "gender": pa.string(),
        "age": pa.int64(),
        "occupation": pa.int64(),
        "zipcode": pa.string(),
    }
    item_types = {"id": pa.int64(), "title": pa.string(), "genres": pa.string()}
    users = read_delimited(data / "users.dat", user_types, "::")
    items = read_delimited(data / "movies.dat", item_types, "::")
    ratings = read_delimited(data / "ratings.dat", _RATINGS, "::")
    codes = require_values(users, "occupation")
    wrong = first(pc.or_(pc.less(codes, 0), pc.greater_equal(codes, len(_OCCUPATIONS))))
    if wrong >= 0:
        raise DataError(
            f"{users.place(wrong)}: occupation {codes[wrong]} is none of the codes 0 to {len(_OCCUPATIONS) - 1}; "
            "get the file again"
        )
    movies = _movies(items, "id", split_values(items.table["genres"], "|"))
    return _with_users("ml-1m", users, pa.array(_OCCUPATIONS).take(codes), items, movies, ratings)


def load_csv(data: Path) -> Dataset:
    """ratings.csv and movies.csv, half stars; users are the ids of ratings.csv, sorted.

    Raises DataError naming file and line if anything is not as GroupLens' README says.
    """
    _require_layout(data, "ml-csv")
    item_types = {"movieId": pa.int64(), "title": pa.string(), "genres": pa.string()}
    columns = ("userId", "movieId", "rating", "timestamp")
    items = read_csv(data / "movies.csv", item_types, whole=True)
    ratings = read_csv(data / "ratings.csv", dict(zip(columns, _RATINGS.values(), strict=True)), whole=True)
    genres = pc.replace_substring(items.table["genres"], "(no genres listed)", "")
    movies = _movies(items, "movieId", split_values(genres, "|"))
    users = pa.table({"id": known_ids(ratings, "userId")})
    values = build_ratings(ratings, columns, (users["id"], movies["id"]), (ratings.path, items.path), HALF_STARS)
    return Dataset("ml-csv", schema((), HALF_STARS), users, movies, values, SHIFT, LICENCE)


def _require_layout(data: Path, name: str) -> None:
    if not (data / _MARKS[name]).is_file():
        others = [other for other, mark in _MARKS.items() if (data / mark).is_file()]
        advice = f"the files there are {others[0]}: load them as that" if others else "give the folder that holds it"
        raise DataError(f"{data / _MARKS[name]} is missing; {advice}")


def _counts(path: Path) -> dict[str, int]:
    table = read_delimited(path, {"count": pa.int64(), "what": pa.string()}, " ").table
    counts = dict(zip(table["what"].to_pylist(), table["count"].to_pylist(), strict=True))
    if set(counts) != {"users", "items", "ratings"}:
        raise DataError(f"{path} must count users, items and ratings, one per line; get it again")
    return counts


def _genre_names(path: Path) -> list[str]:
    """Genres in the order of u.item's flag columns. GroupLens' file ends in an empty line."""
    table = read_delimited(path, {"genre": pa.string(), "column": pa.int64()}, "|").table.drop_null()
    if not len(table) or table["column"].to_pylist() != list(range(len(table))):
        raise DataError(f"{path}: the numbers after the genres must count from 0; get it again")
    names: list[str] = table["genre"].to_pylist()
    return names


def _movies(items: Rows, id_column: str, genres: pa.ListArray) -> pa.Table:
    require_unique_ids(items, id_column)
    title = pc.utf8_trim_whitespace(items.table["title"])
    # Greedy: of several years in brackets the last is the film's.
    year = pc.struct_field(pc.extract_regex(title, r"^.*\((?P<year>[0-9]{4})\)"), "year").cast(pa.int64())
    return pa.table({"id": items.table[id_column], "title": title, "year": year, "genres": genres})


def _with_users(
    name: str, users: Rows, occupation: pa.ChunkedArray, items: Rows, movies: pa.Table, ratings: Rows
) -> Dataset:
    require_unique_ids(users, "id")
    table = pa.table(
        {
            "id": users.table["id"],
            "occupation": occupation,
            "zipcode": users.table["zipcode"],
            "age": users.table["age"],
        }
    )
    ids, homes = (table["id"], movies["id"]), (users.path, items.path)
    values = build_ratings(ratings, tuple(_RATINGS), ids, homes, STARS)
    return Dataset(name, schema(USER_ATTRIBUTES, STARS), table, movies, values, SHIFT, LICENCE)
