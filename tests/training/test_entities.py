"""training.entities: what the servers' list does to base data and batches, told by hand on the tiny tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from levi_serve.bundle.entities import Change, open_entities
from levi_serve.bundle.feedback import Event, Events, encode_event
from tests.serving.conftest import start_redis
from training.datasets.dataset import Dataset, GivenShift, attributes
from training.entities import Listed, forget, lay, read_list
from training.errors import UsageError
from training.splits import PARTS, Split, split

__all__ = ["start_redis"]

FILM = {"title": "night river", "genres": ("Drama",), "year": 1999}


@pytest.fixture(scope="module")
def parts(base: Dataset) -> Split:
    return split(base, 3)


def rows_of(data: Dataset, parts: Split) -> dict[tuple[int, int], tuple[float, int, str]]:
    """Value, time and part by the ids of user and item."""
    users, items, r = data.users["id"].to_pylist(), data.items["id"].to_pylist(), data.ratings
    part = {int(row): name for name in PARTS for row in getattr(parts, name)}
    return {
        (users[r.user[k]], items[r.item[k]]): (float(r.value[k]), int(r.time[k]), part[k])
        for k in range(len(data.ratings))
    }


def described(data: Dataset, side: int) -> dict[Any, Any]:
    table = (data.users, data.items)[side]
    return dict(zip(table["id"].to_pylist(), attributes(table, data.schema.entities[side]), strict=True))


def test_nothing_listed(base: Dataset, parts: Split) -> None:
    """The data as they are."""
    assert lay(base, parts, read_list(None, "levi", base.schema)) == (base, parts)


def test_laid_over(base: Dataset, parts: Split) -> None:
    """Who was erased has no row and no rating, who was put has the attributes that were put; all other ratings keep
    value, time and part. Of an entity its latest change counts.
    """
    user, (film, other) = base.users["id"][3].as_py(), base.items["id"].to_pylist()[4:6]
    changes = [
        Change("user", user, None),
        Change("movie", film, FILM),
        Change("movie", film, None),
        Change("movie", 9001, None),
        Change("movie", 9001, FILM),
        Change("movie", other, FILM),
        Change("shop", 1, None),
    ]
    before = rows_of(base, parts)
    data, left = lay(base, parts, Listed.of(changes, base.schema))
    assert rows_of(data, left) == {pair: told for pair, told in before.items() if pair[0] != user and pair[1] != film}
    assert 0 < len(data.ratings) < len(base.ratings)
    users, films = described(base, 0), described(base, 1)
    del users[user], films[film]
    assert described(data, 0) == users
    assert described(data, 1) == films | {9001: FILM, other: FILM}
    assert data.items.schema == base.items.schema
    assert left.slices.keys() <= parts.slices.keys()


def test_a_given_shift_follows_its_ratings(base: Dataset) -> None:
    """Each rating that is left keeps the slice that the loader gave it."""
    of = (np.arange(len(base.ratings)) % 3).astype(np.int8)
    given = replace(base, shift=GivenShift(("one", "two"), of))
    user = base.users["id"][0].as_py()
    data, left = lay(given, split(given, 0), Listed.of([Change("user", user, None)], base.schema))
    assert isinstance(data.shift, GivenShift)
    np.testing.assert_array_equal(data.shift.of, of[base.ratings.user != 0])
    np.testing.assert_array_equal(np.sort(left.ood), np.flatnonzero(data.shift.of))


def batch(path: Path, pairs: Iterable[tuple[int, int]]) -> Path:
    events = (Event(id=f"{u}-{i}", user=u, item=i, rating=4, time=1, received=2) for u, i in pairs)
    path.write_bytes(b"".join(map(encode_event, events)))
    return path


def test_forgotten_events(base: Dataset, tmp_path: Path) -> None:
    """Lines that name an erased entity go; a batch without such lines is not written anew."""
    mixed, clean = batch(tmp_path / "a", [(1, 2), (3, 4), (5, 6)]), batch(tmp_path / "b", [(3, 4)])
    inode = clean.stat().st_ino
    forget([mixed, clean], Listed.of([Change("user", 1, None), Change("movie", 6, None)], base.schema))
    assert [event.id for event in Events(mixed)] == ["3-4"]
    assert clean.stat().st_ino == inode


def test_lists(base: Dataset, tmp_path: Path, start_redis: Callable[..., Any]) -> None:
    """As servers keep them, in a file and in Redis; a file that is not there is a mistake, not an empty list."""
    for place in (str(tmp_path / "entities"), start_redis().url):
        kept = open_entities(place, "levi")
        kept.put(Change("user", 1, None), 10)
        kept.put(Change("movie", 9001, FILM), 10)
        kept.close()
        assert read_list(place, "levi", base.schema) == Listed((frozenset({1}), frozenset()), ({}, {9001: FILM}))
    with pytest.raises(UsageError, match="is no file"):
        read_list(str(tmp_path / "none"), "levi", base.schema)
    assert not (tmp_path / "none").exists()
