"""levi_serve.bundle.rows: tables written and found again."""

from __future__ import annotations

import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from levi_serve.bundle.rows import STORED, Id, Layout, Table, write_table
from levi_serve.bundle.schema import Attributes


def write(folder: Path, ids: list[Id], attributes: list[Attributes] | None = None) -> Table:
    """A table whose row i is [i, i + 0.5] and whose unknown row is [-1, -0.5]; every second entity was trained."""
    rows = np.append(np.arange(len(ids)), -1)[:, None] + np.array([0, 0.5])
    write_table(folder, "users", ids, attributes or [{}] * len(ids), np.arange(len(ids)) % 2 == 0, rows)
    return Table(folder, "users")


def test_layout_width() -> None:
    """A row is as wide as all of its parts together."""
    assert Layout(tower=1, heads=2, factors=4, embedding=8, bias=16, support=32).width == 63


def test_rows_follow_their_ids(tmp_path: Path) -> None:
    """Ids that come unsorted find their own rows, marks and attributes, and missing ids are -1."""
    table = write(tmp_path, [30, -1, 2**40, 7], [{"n": "a"}, {"n": "b"}, {"n": "c"}, {"n": "d"}])
    found = table.find([7, 30, 8, 2**40, -1, 2**40 + 1, -2])
    assert (found < 0).tolist() == [False, False, True, False, False, True, True]
    known = found[found >= 0]
    assert table.rows[known].tolist() == [[3, 3.5], [0, 0.5], [2, 2.5], [1, 1.5]]
    assert table.trained[known].tolist() == [False, True, True, False]
    assert [table.attributes(int(row))["n"] for row in known] == ["d", "a", "c", "b"]
    assert len(table) == 4
    assert [table.id(row) for row in range(4)] == [-1, 7, 30, 2**40]
    assert type(table.id(0)) is int
    assert table.rows[table.unknown].tolist() == [-1, -0.5]


def test_text_ids(tmp_path: Path) -> None:
    """Text ids match whole: neither a prefix, nor a longer text, nor one with a NUL at its end, nor other case."""
    table = write(tmp_path, ["B00", "Ä1", "b00", "日本", ""])
    found = table.find(["B00", "日本", "", "Ä1"])
    assert table.rows[found].tolist() == [[0, 0.5], [3, 3.5], [4, 4.5], [1, 1.5]]
    assert table.find(["B0", "B000", "B00" * 50, "B00\0", "\0", "B00 ", "ä1", "日", "C"]).tolist() == [-1] * 9
    assert table.find([]).tolist() == []
    assert [table.id(row) for row in range(len(table))] == ["", "B00", "b00", "Ä1", "日本"]


def test_a_long_text_costs_no_copy_of_the_table(tmp_path: Path) -> None:
    """An id that is longer than all of the table's is not found, and the table is not widened to compare it."""
    table = write(tmp_path, [f"{i:05}" for i in range(1000)])
    tracemalloc.start()
    try:
        assert table.find(["0" * 100_000, "00007", "\ud800"]).tolist() == [-1, 7, -1]
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@given(st.sets(st.integers(-(2**62), 2**62), min_size=1, max_size=20), st.sets(st.integers(-(2**62), 2**62)))
def test_any_integers(ids: set[int], others: set[int]) -> None:
    """Every stored integer is found in its row, and no other one is."""
    finds(sorted(ids, key=hash), sorted(others - ids))


@given(st.sets(st.text(), min_size=1, max_size=20), st.sets(st.text()))
def test_any_texts(ids: set[str], others: set[str]) -> None:
    """Every stored text is found in its row, and no other one is."""
    ids = {i for i in ids if not i.endswith("\0")}  # the one thing that fixed-width text cannot hold
    if ids:
        finds(sorted(ids, key=hash), sorted(others - ids))


def finds(ids: list[Id], others: list[Id]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        table = write(Path(folder), ids)
        found = table.find([*ids, *others])
        assert table.rows[found[: len(ids)], 0].tolist() == list(range(len(ids)))
        assert found[len(ids) :].tolist() == [-1] * len(others)


value = st.text() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.lists(st.text()).map(tuple)


@given(st.lists(st.dictionaries(st.text(), value), min_size=1, max_size=6))
def test_any_attributes(attributes: list[Attributes]) -> None:
    """Attributes come back as they were given: any text, numbers, and tuples as tuples."""
    with tempfile.TemporaryDirectory() as folder:
        table = write(Path(folder), list(range(len(attributes))), attributes)
        assert [table.attributes(i) for i in range(len(attributes))] == attributes


def test_rows_are_rounded_to_the_stored_type(tmp_path: Path) -> None:
    """Rows are stored in fp16, rounded to nearest: 2049 has no fp16 and becomes 2048."""
    write_table(tmp_path, "users", [1], [{}], np.array([True]), np.array([[2049.0, 0.1], [0.0, 1.0]]))
    rows = Table(tmp_path, "users").rows
    assert rows.dtype == STORED == np.float16
    assert rows[0].tolist() == [2048.0, float(np.float16(0.1))]


def test_a_table_is_memory_mapped(tmp_path: Path) -> None:
    """A table stays on disk and cannot be written to by accident."""
    table = write(tmp_path, [1, 2])
    assert all(isinstance(a.base, np.memmap) for a in (table.ids, table.rows, table.trained))
    with pytest.raises(ValueError, match="read-only"):
        table.rows[0] = 0
