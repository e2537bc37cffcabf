"""levi_serve.store: a version's own tables."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from levi_serve.bundle.rows import Id, Table, write_table
from levi_serve.cache import RowCache
from levi_serve.store import Side, State, TableStore

WIDTH = 3
USERS: list[Id] = [138, 7, -9, 2**40]
MOVIES: list[Id] = ["B00X", "b00x", "日本", ""]


def write(folder: Path, name: str, ids: list[Id]) -> Table:
    """Row i is [i, i + 0.5, 0.1]; every second entity was trained; the unknown row is all -1."""
    rows = np.stack([[i, i + 0.5, 0.1] for i in range(len(ids))] + [[-1.0] * WIDTH])
    write_table(folder, name, ids, [{"n": i} for i in range(len(ids))], np.arange(len(ids)) % 2 == 0, rows)
    return Table(folder, name)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> tuple[Table, Table]:
    folder = tmp_path_factory.mktemp("tables")
    return write(folder, "users", USERS), write(folder, "movies", MOVIES)


@pytest.fixture
def store(tables: tuple[Table, Table]) -> TableStore:
    return TableStore(*tables)


def numbers(side: Side) -> list[float]:
    """The first column, which is the number under which the entity was written."""
    return side.rows[:, 0].tolist()


def test_rows_of_both_sides(store: TableStore) -> None:
    """Ids in any order and number, integers or text, get exactly their own rows, marks and attributes."""
    user, item = store.at_hand([7, 2**40, 7], ["日本", "", "b00x"])
    assert (numbers(user), numbers(item)) == ([1, 3, 1], [2, 3, 1])
    assert user.rows.tolist()[1] == [3, 3.5, float(np.float16(0.1))]
    assert (user.trained.tolist(), item.trained.tolist()) == ([False, False, False], [True, False, False])
    assert user.state.tolist() == item.state.tolist() == [State.FOUND] * 3
    assert [item.attributes(i) for i in range(3)] == [{"n": 2}, {"n": 3}, {"n": 1}]
    assert (user.rows.dtype, user.trained.dtype, user.state.dtype) == (np.float16, np.bool_, np.int8)


def test_unknown_ids(store: TableStore) -> None:
    """An id that is not there has the unknown entity's row, is not trained, and disturbs no neighbour."""
    user, item = store.at_hand([8, 138, 2**62], ["B00X", "B00", "z" * 1000])
    assert (numbers(user), numbers(item)) == ([-1, 0, -1], [0, -1, -1])
    assert user.state.tolist() == [State.UNKNOWN, State.FOUND, State.UNKNOWN]
    assert (user.trained.tolist(), item.trained.tolist()) == ([False, True, False], [True, False, False])
    assert user.attributes(1) == {"n": 0}


def test_rows_are_copies(store: TableStore, tables: tuple[Table, Table]) -> None:
    """What a batch does to its rows stays in the batch."""
    user, _ = store.at_hand([138], [""])
    user.rows[:] = 9
    user.trained[:] = False
    assert numbers(store.at_hand([138], [""])[0]) == [0]
    assert bool(tables[0].trained[tables[0].find([138])[0]])


def test_no_ids(store: TableStore) -> None:
    """A batch of nothing has no rows."""
    user, item = store.at_hand([], [])
    assert (user.rows.shape, item.state.shape) == ((0, WIDTH), (0,))


def test_fetch_is_at_hand(store: TableStore) -> None:
    """There is nothing to wait for."""
    user, item = asyncio.run(store.fetch([7], ["B00X"]))
    assert (numbers(user), numbers(item)) == ([1], [0])


def test_counts(store: TableStore) -> None:
    """Each id is counted by what answered."""
    store.at_hand([8, 138, 7], ["B00X", "B00", ""])
    assert (store.counts.table, store.counts.unknown) == (4, 2)


def test_rows_of_new_entities(tables: tuple[Table, Table]) -> None:
    """A row that was encoded is had again, bit for bit, as long as there is room; without a cache it is forgotten."""
    row = np.array([np.nan, -0.0, 6e-8], np.float16)
    keeping, forgetting = TableStore(*tables, RowCache(WIDTH, 10_000, 1)), TableStore(*tables)
    for store in (keeping, forgetting):
        store.remember(b"key", row)
        assert store.counts.encoder == 1
    found = asyncio.run(keeping.recall([b"other", b"key"]))
    assert found[0] is None
    assert found[1] is not None
    assert found[1].tobytes() == row.tobytes()
    assert keeping.counts.cache == 1
    assert asyncio.run(forgetting.recall([b"key"])) == [None]
    asyncio.run(keeping.close())
