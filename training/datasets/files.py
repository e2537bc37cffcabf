"""Columns out of text and Parquet files, and where each row stands in its file.

pyarrow parses; what it objects to becomes one line that names file and line. It parses on one thread,
because only then does it count rows (25 million ratings take three seconds all the same).
"""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from levi_serve.bundle import AnyArray
from training.errors import DataError

Types: TypeAlias = Mapping[str, Any]
"""The columns to read and their Arrow types; None where the file decides (a time)."""

_UNIT = "\x1f"  # the separator that ASCII reserves for this, in place of '::'
_COLUMNS = re.compile(r"Row #(\d+): Expected (\d+) columns, got (\d+)")
_VALUE = re.compile(r"In CSV column #(\d+): Row #(\d+): CSV conversion error to (\w+): invalid value '(.*)'", re.DOTALL)
_UTF8 = re.compile(r"In CSV column #(\d+): Row #(\d+): .*invalid UTF8 data")
_WANTED = {"bool": "0 or 1", "int64": "a whole number", "float": "a number", "double": "a number"}


@dataclass(frozen=True)
class Rows:
    """Columns of one file."""

    path: Path
    table: pa.Table
    place: Callable[[int], str]
    """Where a row of the table stands: file and line (Parquet: file and row), counted from 1."""


def read_csv(path: Path, types: Types, *, whole: bool = False) -> Rows:
    """Columns of a UTF-8 CSV file with a header; values may be quoted and hold line breaks.

    Empty values are null. Raises DataError naming the line for anything that is not so; with `whole` also when the
    last line has no end, which in a file known to have one means that it was cut.
    """
    header = _header(path)
    _require(types, header, f"{path}, line 1")
    if whole:
        _require_last_newline(path)
    _require_closed_quotes(path)
    return _parse(
        path,
        header,
        types,
        lambda row: f"{path}, {_line(path, row + 2)}",
        pa.csv.ReadOptions(use_threads=False),
        pa.csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
    )


def read_delimited(path: Path, types: Types, delimiter: str) -> Rows:
    """All columns of a Latin-1 file without header or quotes, as GroupLens writes them; `delimiter` may be '::'.

    Raises DataError naming the line, also when the last line has no end: the file was cut.
    """
    _readable(path)
    _require_last_newline(path)
    return _parse(
        path,
        list(types),
        types,
        lambda row: f"{path}, line {row + 1}",
        pa.csv.ReadOptions(use_threads=False, encoding="latin-1", column_names=list(types)),
        pa.csv.ParseOptions(
            delimiter=_UNIT if delimiter == "::" else delimiter, quote_char=False, ignore_empty_lines=False
        ),
    )


def read_parquet(path: Path, types: Types) -> Rows:
    """Columns of a Parquet file, cast to `types` where that loses nothing.

    Raises DataError naming the column for another type, and for a file that is not Parquet.
    """
    _readable(path)
    try:
        _require(types, pa.parquet.read_schema(path).names, str(path))
        table = pa.parquet.read_table(path, columns=list(types))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {_one_line(error)}") from error
    columns = {
        name: table[name] if wanted is None else _cast(table[name], wanted, f"{path}, column '{name}'")
        for name, wanted in types.items()
    }
    return _checked(Rows(path, pa.table(columns), lambda row: f"{path}, row {row + 1}"))


def open_parquet(path: Path, types: Types) -> Any:
    """A `pyarrow.parquet.ParquetFile` with these columns; raises DataError as `read_parquet` does."""
    _readable(path)
    try:
        file = pa.parquet.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {_one_line(error)}") from error
    _require(types, file.schema_arrow.names, str(path))
    return file


def read_group(file: Any, number: int, path: Path, types: Types) -> Rows:
    """The columns of one row group of `open_parquet`'s file; raises DataError as `read_parquet` does."""
    try:
        table = file.read_row_group(number, columns=list(types))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {_one_line(error)}") from error
    before = sum(file.metadata.row_group(n).num_rows for n in range(number))
    columns = {name: _cast(table[name], wanted, f"{path}, column '{name}'") for name, wanted in types.items()}
    return Rows(path, pa.table(columns), lambda row: f"{path}, row {before + row + 1}")


def first(mask: Any) -> int:
    """The first true row of a boolean Arrow array; -1 if there is none."""
    return int(pc.index(mask, True).as_py())


def join_lists(parents: AnyArray, values: pa.Array, rows: int) -> pa.ListArray:
    """One list per row from (row, value) pairs whose rows ascend."""
    offsets = np.zeros(rows + 1, np.int32)
    np.cumsum(np.bincount(parents, minlength=rows), out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def tidy_lists(column: pa.ChunkedArray) -> pa.ListArray:
    """Lists of strings, none of them null: values are trimmed, empty and missing ones left out."""
    lists = column.combine_chunks()
    values = pc.utf8_trim_whitespace(lists.flatten())
    kept = pc.fill_null(pc.not_equal(values, ""), False)
    return join_lists(pc.list_parent_indices(lists).filter(kept).to_numpy(), values.filter(kept), len(lists))


def split_values(column: pa.ChunkedArray, separator: str) -> pa.ListArray:
    """Several values per row out of one text; a missing text has none."""
    return tidy_lists(pc.split_pattern(column, separator))


class UnitSeparated:
    """Turns '::' into one byte, chunk by chunk: a ':' that may be half a separator waits for the next chunk.

    Called with an empty chunk at the end, as `pa.TransformInputStream` does.
    """

    def __init__(self) -> None:
        self._held = b""

    def __call__(self, chunk: Any) -> bytes:
        # Replace first: in ':::' the first two make the separator, wherever the chunks meet.
        text = (self._held + bytes(chunk)).replace(b"::", _UNIT.encode())
        self._held = b":" if len(chunk) and text.endswith(b":") else b""
        return text[:-1] if self._held else text


def _parse(path: Path, names: Sequence[str], types: Types, place: Callable[[int], str], read: Any, parse: Any) -> Rows:
    convert = pa.csv.ConvertOptions(
        column_types={name: wanted for name, wanted in types.items() if wanted is not None},
        include_columns=list(types),
        null_values=[""],
        strings_can_be_null=True,
    )
    # pyarrow counts the header as a row, too.
    header = 0 if read.column_names else 1
    try:
        with pa.OSFile(str(path)) as file:
            source = pa.TransformInputStream(file, UnitSeparated()) if parse.delimiter == _UNIT else file
            table = pa.csv.read_csv(source, read, parse, convert)
    except (pa.ArrowException, OSError) as error:
        raise _explained(str(error), path, names, lambda number: place(number - 1 - header)) from error
    return _checked(Rows(path, table, place))


def _explained(message: str, path: Path, names: Sequence[str], line: Callable[[int], str]) -> DataError:
    """The message of pyarrow as one line that says what to mend."""
    if match := _COLUMNS.search(message):
        row, expected, got = map(int, match.groups())
        return DataError(
            f"{line(row)}: {got} columns where {expected} are expected; mend the line or get the file again"
        )
    if match := _VALUE.search(message):
        index, number, kind, value = match.groups()
        shown = repr(value if len(value) <= 40 else value[:40] + "…")
        return DataError(
            f"{line(int(number))}: column '{names[int(index)]}' holds {shown}, not {_WANTED.get(kind, kind)}"
        )
    if match := _UTF8.search(message):
        column, row = map(int, match.groups())
        return DataError(f"{line(row)}: column '{names[column]}' is not UTF-8; save the file as UTF-8")
    if "Empty CSV file" in message:
        return DataError(f"{path} is empty; get it again")
    if "straddl" in message or "out of sync" in message:
        return DataError(f"{path}: a line is longer than a megabyte, or a quote is never closed")
    return DataError(f"{path} cannot be read: {_one_line(message)}")


def _checked(rows: Rows) -> Rows:
    """Refuse files without rows, and the NUL bytes of a damaged or mislabelled file."""
    if not len(rows.table):
        raise DataError(f"{rows.path} has no rows; get it again")
    for name in rows.table.column_names:
        if pa.types.is_string(rows.table[name].type):
            row = first(pc.match_substring(rows.table[name], "\0"))
            if row >= 0:
                raise DataError(
                    f"{rows.place(row)}: column '{name}' holds a NUL byte; the file is damaged, get it again"
                )
    return rows


def _cast(column: pa.ChunkedArray, wanted: Any, where: str) -> pa.ChunkedArray:
    """A Parquet column as another type, if the two mean the same."""
    found = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_list(wanted):
        fits = pa.types.is_list(found) or pa.types.is_large_list(found)
    elif pa.types.is_string(wanted):
        fits = pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_integer(found)
    elif pa.types.is_integer(wanted):
        fits = pa.types.is_integer(found)
    else:
        fits = pa.types.is_integer(found) or pa.types.is_floating(found) or pa.types.is_decimal(found)
    try:
        # Rounding a rating to 32 bits is meant; anything else that would lose something is an error.
        cast = column.cast(wanted, safe=not pa.types.is_floating(wanted)) if fits else None
    except pa.ArrowException as error:
        raise DataError(f"{where} does not fit into {wanted}: {_one_line(error)}") from error
    if cast is None:
        raise DataError(f"{where} holds {found} where {wanted} is expected")
    return cast


def _require(types: Types, there: Sequence[str], where: str) -> None:
    for name in types:
        if there.count(name) != 1:
            state = "there is no" if name not in there else "there is more than one"
            raise DataError(f"{where}: {state} column '{name}'; the columns are: {', '.join(there)}")


def _header(path: Path) -> list[str]:
    _readable(path)
    with path.open("rb") as file:
        line = file.readline()
    if not line:
        raise DataError(f"{path} is empty; get it again")
    try:
        return next(csv.reader([line.decode("utf-8-sig")]))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}, line 1: the header is not UTF-8 text; save the file as UTF-8") from error


def _readable(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"{path} is missing or not a file; give its right place")
    try:
        path.open("rb").close()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _require_last_newline(path: Path) -> None:
    """Raise DataError if the last line has no end."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(size - 1, 0))
        if size == 0 or file.read() == b"\n":
            return
        file.seek(0)
        lines = sum(1 for _ in file)
    raise DataError(f"{path}, line {lines}: the file ends within this line; it was cut, get it again")


def _require_closed_quotes(path: Path) -> None:
    """Raise DataError if the last quote is open: pyarrow would take the rest of the file for one value."""
    with path.open("rb") as file:
        quotes = sum(chunk.count(b'"') for chunk in iter(lambda: file.read(1 << 20), b""))
    if quotes % 2 == 0:
        return
    # Rarely here: a quote is open, or stands within a value without quotes, which is right.
    line = 1
    with path.open(encoding="utf-8", errors="replace", newline="") as text:
        reader = csv.reader(text, strict=True)
        try:
            for _ in reader:
                line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(f"{path}, line {line}: the quotes do not match ({error}); mend the line") from error


def _line(path: Path, record: int) -> str:
    """Where a record (from 1) starts: quoted values may hold line breaks."""
    with path.open(encoding="utf-8", errors="replace", newline="") as text:
        reader = csv.reader(text)
        try:
            for _ in itertools.islice(reader, record - 1):
                pass
        except csv.Error:  # a value of more than 128 KiB before it
            return f"record {record}"
        return f"line {reader.line_num + 1}"


def _one_line(error: object) -> str:
    return " ".join(str(error).split())
