"""Reading columns: what is accepted, and that every refusal names the right line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.datasets.files import UnitSeparated, join_lists, read_csv, read_delimited, read_parquet, split_values
from training.errors import DataError

TYPES = {"id": pa.int64(), "name": pa.string()}


def refuse(read: Callable[[], object], message: str) -> None:
    with pytest.raises(DataError) as caught:
        read()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def write(folder: Path, content: bytes | str, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@given(st.text("a:\n", max_size=60).map(str.encode), st.lists(st.integers(1, 7), max_size=20))
def test_any_chunks_give_the_same_separators(data: bytes, sizes: list[int]) -> None:
    """However '::' text is cut into chunks, it becomes what replacing in the whole text gives."""
    separate, out, at = UnitSeparated(), b"", 0
    for size in [*sizes, len(data) + 1]:
        if data[at : at + size]:
            out += separate(data[at : at + size])
        at += size
    assert out + separate(b"") == data.replace(b"::", b"\x1f")


@given(st.text("a:\n", max_size=60).map(str.encode), st.integers(1, 5))
def test_arrow_streams_the_same_separators(data: bytes, size: int) -> None:
    """pyarrow's stream around it gives the same bytes whatever the size of the reads."""
    stream, out = pa.TransformInputStream(pa.BufferReader(data), UnitSeparated()), b""
    while piece := stream.read(size):
        out += piece
    assert out == data.replace(b"::", b"\x1f")


def test_double_colons_over_block_boundaries(tmp_path: Path) -> None:
    """A '::' file of several read blocks gives the numbers that were written, and the line of a late error."""
    lines = [f"{i}::a:{i}" for i in range(200_000)]
    path = write(tmp_path, "\n".join(lines) + "\n")
    table = read_delimited(path, TYPES, "::").table
    assert table["id"].to_pylist() == list(range(200_000))
    assert table["name"][123_456].as_py() == "a:123456"
    lines[150_000] = "x::a"
    path = write(tmp_path, "\n".join(lines) + "\n")
    refuse(lambda: read_delimited(path, TYPES, "::"), "t.csv, line 150001: column 'id' holds 'x', not a whole number")


def test_csv_reads_named_columns_only(tmp_path: Path) -> None:
    """Column order, other columns, quotes, a byte order mark, CRLF and empty values do not matter."""
    path = write(tmp_path, '\ufeffid,other,name\r\n1,x,"a, ""b"""\r\n2,y,\r\n')
    assert read_csv(path, TYPES).table.select(["id", "name"]).to_pylist() == [
        {"id": 1, "name": 'a, "b"'},
        {"id": 2, "name": None},
    ]


def test_line_breaks_over_block_boundaries(tmp_path: Path) -> None:
    """A quoted value with line breaks may lie anywhere in a file of several read blocks."""
    value = "ab\n" * 30
    path = write(tmp_path, "id,name\n" + "".join(f'{i},"{value}"\n' for i in range(20_000)))
    table = read_csv(path, TYPES).table
    assert table["id"].to_pylist() == list(range(20_000))
    assert set(table["name"].to_pylist()) == {value}


def test_quotes_within_values(tmp_path: Path) -> None:
    """A quote inside a value without quotes is a letter, also when their number is odd."""
    path = write(tmp_path, 'id,name\n1,5" disk\n2,b\n')
    assert read_csv(path, TYPES).table["name"].to_pylist() == ['5" disk', "b"]


def test_latin1_without_quotes(tmp_path: Path) -> None:
    """GroupLens' files are Latin-1, and a quote in them is a letter."""
    path = write(tmp_path, '1|"é\n2|b"\n'.encode("latin-1"))
    assert read_delimited(path, TYPES, "|").table["name"].to_pylist() == ['"é', 'b"']


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "t.csv is empty"),
        ("id,name\n", "t.csv has no rows"),
        ("id,title\n1,a\n", "t.csv, line 1: there is no column 'name'; the columns are: id, title"),
        ("id,name,id\n1,a,2\n", "t.csv, line 1: there is more than one column 'id'"),
        ("id,name\n1,a\n2\n", "t.csv, line 3: 1 columns where 2 are expected"),
        ("id,name\n1,a,b\n", "t.csv, line 2: 3 columns where 2 are expected"),
        ("id,name\n1,a\n2,b\nc,c\n", "t.csv, line 4: column 'id' holds 'c', not a whole number"),
        ("name,id\na,1\nb,2.5\n", "t.csv, line 3: column 'id' holds '2.5', not a whole number"),
        ("id,name\n1,a\n99999999999999999999,b\n", "t.csv, line 3: column 'id' holds '99999999999999999999'"),
        ("id,name\ntrue,a\n", "t.csv, line 2: column 'id' holds 'true', not a whole number"),
        (b"id,name\n1,a\n2,\xff\n", "t.csv, line 3: column 'name' is not UTF-8"),
        (b"id,n\xe9me\n1,a\n", "t.csv, line 1: the header is not UTF-8"),
        (b"id,name\n1,a\n2,b\0\n", "t.csv, line 3: column 'name' holds a NUL byte"),
        (b"id,name\n1\0,a\n", "t.csv, line 2: column 'id' holds '1\\x00', not a whole number"),
        ('id,name\n1,"a\nb"\nx,c\n', "t.csv, line 4: column 'id' holds 'x'"),
        ('id,name\n1,"a\n\nb"\n2,"c\nd"\n3\n', "t.csv, line 7: 1 columns where 2 are expected"),
        (f"id,name\n1,a\n2,{'x' * (3 << 20)}\n", "t.csv: a line is longer than a megabyte, or a quote is never closed"),
        ('id,name\n1,a"b\n2,c\nx,d\n', "t.csv, line 4: column 'id' holds 'x'"),
        ('id,name\n1,a\n2,"b\n3,c\n', "t.csv, line 3: the quotes do not match"),
        ('id,name\n1,"a\nb"\n2,"b', "t.csv, line 4: the quotes do not match"),
        (f"id,name\n1,{'y' * 200_000}\nx,c\n", "t.csv, record 3: column 'id' holds 'x'"),
        ("id,name\n1,a\n\n2,b\nx,c\n", "t.csv, line 5: column 'id' holds 'x'"),
    ],
)
def test_csv_refusals(tmp_path: Path, content: bytes | str, message: str) -> None:
    """Every damage to a CSV file is one line that names the place where it is."""
    path = write(tmp_path, content)
    refuse(lambda: read_csv(path, TYPES), message)


def test_long_values_are_shown_short(tmp_path: Path) -> None:
    """A value of a thousand letters does not fill the message."""
    path = write(tmp_path, f"id,name\n{'9' * 1000},a\n")
    with pytest.raises(DataError, match=re.escape("'" + "9" * 40 + "…'")) as caught:
        read_csv(path, TYPES)
    assert len(str(caught.value)) < 200 + len(str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "t.csv is empty"),
        ("1|a\n2|b", "t.csv, line 2: the file ends within this line"),
        ("1|a\n2\n", "t.csv, line 2: 1 columns where 2 are expected"),
        ("x|a\n2|b\n", "t.csv, line 1: column 'id' holds 'x'"),
        ("1|a\n2|b\0\n", "t.csv, line 2: column 'name' holds a NUL byte"),
        ("1|a\n\nx|b\n", "t.csv, line 3: column 'id' holds 'x'"),
    ],
)
def test_delimited_refusals(tmp_path: Path, content: str, message: str) -> None:
    """Every damage to a GroupLens file is one line that names the place where it is."""
    path = write(tmp_path, content)
    refuse(lambda: read_delimited(path, TYPES, "|"), message)


def test_whole_files_end_in_a_newline(tmp_path: Path) -> None:
    """A CSV file may lack the last newline unless the caller knows that it has one."""
    path = write(tmp_path, "id,name\n1,a\n2,b")
    assert len(read_csv(path, TYPES).table) == 2
    refuse(lambda: read_csv(path, TYPES, whole=True), "t.csv, line 3: the file ends within this line")


def test_missing_files(tmp_path: Path) -> None:
    """A missing file and a folder in place of a file are refused by every reader."""
    for path in (tmp_path / "none.csv", tmp_path):
        for read in (
            lambda p=path: read_csv(p, TYPES),
            lambda p=path: read_delimited(p, TYPES, "|"),
            lambda p=path: read_parquet(p, TYPES),
        ):
            refuse(read, f"{path} is missing or not a file")


def test_parquet_casts_what_means_the_same(tmp_path: Path) -> None:
    """Small integers, dictionary strings and lists become the wanted types; doubles become floats."""
    path = tmp_path / "t.parquet"
    table = pa.table(
        {
            "id": pa.array([1, 2], pa.uint8()),
            "name": pa.array(["a", None]).dictionary_encode(),
            "tags": pa.array([["x"], None], pa.large_list(pa.string())),
            "rating": [1.1, 2.0],
            "when": pa.array([5, 6], pa.int32()),
        }
    )
    pq.write_table(table, path)
    wanted = {**TYPES, "tags": pa.list_(pa.string()), "rating": pa.float32(), "when": None}
    read = read_parquet(path, wanted).table
    assert read.schema.types == [pa.int64(), pa.string(), pa.list_(pa.string()), pa.float32(), pa.int32()]
    assert read["name"].to_pylist() == ["a", None]


@pytest.mark.parametrize(
    ("column", "wanted", "message"),
    [
        (pa.array([True]), pa.int64(), "t.parquet, column 'id' holds bool where int64 is expected"),
        (pa.array([1.0]), pa.int64(), "t.parquet, column 'id' holds double where int64 is expected"),
        (pa.array([2**63], pa.uint64()), pa.int64(), "t.parquet, column 'id' does not fit into int64"),
        (pa.array(["1"]), pa.float32(), "t.parquet, column 'id' holds string where float is expected"),
        (pa.array([True]), pa.float32(), "t.parquet, column 'id' holds bool where float is expected"),
        (pa.array([1.5]), pa.string(), "t.parquet, column 'id' holds double where string is expected"),
        (pa.array(["a"]), pa.list_(pa.string()), "t.parquet, column 'id' holds string where list"),
        (pa.array(["a", "\0"]), pa.string(), "t.parquet, row 2: column 'id' holds a NUL byte"),
        (pa.array([], pa.int64()), pa.int64(), "t.parquet has no rows"),
    ],
)
def test_parquet_refusals(tmp_path: Path, column: pa.Array, wanted: pa.DataType, message: str) -> None:
    """A Parquet column of another kind is refused by name, whatever a cast would make of it."""
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"id": column}), path)
    refuse(lambda: read_parquet(path, {"id": wanted}), message)
    refuse(lambda: read_parquet(path, {"no": wanted}), "t.parquet: there is no column 'no'; the columns are: id")


def test_other_files_are_no_parquet(tmp_path: Path) -> None:
    """A CSV file named .parquet is refused in one line."""
    path = write(tmp_path, "id,name\n1,a\n", "t.parquet")
    refuse(lambda: read_parquet(path, TYPES), "t.parquet cannot be read as Parquet")


def test_lists() -> None:
    """Texts are split, trimmed and freed of empty values; pairs are joined with the gaps of rows without any."""
    texts = pa.chunked_array([["a|b", None], ["", " c ||d"]])
    assert split_values(texts, "|").to_pylist() == [["a", "b"], [], [], ["c", "d"]]
    pairs = pa.array([1, 1, 3]).to_numpy()
    assert join_lists(pairs, pa.array(["x", "y", "z"]), 5).to_pylist() == [[], ["x", "y"], [], ["z"], []]
