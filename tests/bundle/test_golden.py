"""levi_serve.bundle.golden: examples written and read."""

from __future__ import annotations

import base64
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from levi_serve.bundle.golden import Golden, GoldenEntity, read_golden, write_golden
from levi_serve.bundle.manifest import BundleError

WIDTH = 3
ROW = np.array([1.5, -2, 65504], np.float16)


def example(title: str = "Alien", row: np.ndarray | None = ROW) -> Golden:
    return Golden(
        user=GoldenEntity(id=138, attributes={"age": 30}, row=None if row is None else row.tobytes()),
        item=GoldenEntity(id=None, attributes={"title": title, "genres": ("War", "Drama")}),
        sentences=["the user", f"the movie title is {title}"],
        tokens=[[1, 2], [1, 3, 2]],
        head_ratings=[0.1, 5.5],
        rating=2.8,
    )


@given(st.lists(st.text(), min_size=1, max_size=4))
def test_written_and_read(titles: list[str]) -> None:
    """Examples come back as they were written, whatever line-breaking characters their texts hold."""
    with tempfile.TemporaryDirectory() as folder:
        write_golden(Path(folder) / "golden.jsonl", [example(title) for title in titles])
        assert read_golden(Path(folder) / "golden.jsonl", WIDTH) == [example(title) for title in titles]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x1e", "\n", "\r"])
def test_line_separators_in_texts(tmp_path: Path, separator: str) -> None:
    """A text with a character that some call a line break does not break its line."""
    write_golden(tmp_path / "golden.jsonl", [example(f"one{separator}two"), example()])
    assert read_golden(tmp_path / "golden.jsonl", WIDTH) == [example(f"one{separator}two"), example()]


@pytest.mark.parametrize(
    ("second", "says"),
    [
        (b"{", "line 2: Invalid JSON"),
        (b"", "line 2: Invalid JSON"),
        (b'{"user": 1}', "line 2: Input should be an object"),
        (b"\xff", "line 2: Invalid JSON"),
    ],
)
def test_the_bad_line_is_named(tmp_path: Path, second: bytes, says: str) -> None:
    """A line that is no example is refused with its number."""
    line = example().model_dump_json().encode()
    (tmp_path / "golden.jsonl").write_bytes(b"\n".join([line, second, line]) + b"\n")
    with pytest.raises(BundleError, match=f"golden.jsonl: {says}"):
        read_golden(tmp_path / "golden.jsonl", WIDTH)


def test_no_examples(tmp_path: Path) -> None:
    """A version without golden examples proves nothing and is refused."""
    (tmp_path / "golden.jsonl").write_text("")
    with pytest.raises(BundleError, match=r"golden\.jsonl: holds no golden example"):
        read_golden(tmp_path / "golden.jsonl", WIDTH)


def test_rows_come_back_to_the_bit(tmp_path: Path) -> None:
    """An id's row is stored as base64 of its bytes, and read as fp16; an entity by attributes has none."""
    write_golden(tmp_path / "golden.jsonl", [example()])
    written = json.loads((tmp_path / "golden.jsonl").read_text())
    assert base64.b64decode(written["user"]["row"], altchars=b"-_") == bytes.fromhex("003e00c0ff7b")
    assert written["item"]["row"] is None
    (read,) = read_golden(tmp_path / "golden.jsonl", WIDTH)
    assert read.user.stored.dtype == np.float16
    assert read.user.stored.tolist() == [1.5, -2, 65504]


@given(st.lists(st.integers(0, 2**16 - 1), min_size=WIDTH, max_size=WIDTH))
def test_any_row(bits: list[int]) -> None:
    """Every fp16 comes back, NaN and infinity included."""
    row = np.array(bits, np.uint16).view(np.float16)
    with tempfile.TemporaryDirectory() as folder:
        write_golden(Path(folder) / "golden.jsonl", [example(row=row)])
        (read,) = read_golden(Path(folder) / "golden.jsonl", WIDTH)
    assert read.user.stored.tobytes() == row.tobytes()


@pytest.mark.parametrize("row", [None, ROW[:2], np.append(ROW, ROW)])
def test_an_id_without_its_row(tmp_path: Path, row: np.ndarray | None) -> None:
    """An example by id whose row is missing or of another width is refused with its line."""
    write_golden(tmp_path / "golden.jsonl", [example(), example(row=row)])
    with pytest.raises(BundleError, match=r"golden\.jsonl: line 2: id 138 has no row of 3 columns"):
        read_golden(tmp_path / "golden.jsonl", WIDTH)


def test_a_row_that_is_no_base64(tmp_path: Path) -> None:
    """A row that was edited by hand is refused with its line."""
    text = example().model_dump_json().replace('"row":"', '"row":"!')
    (tmp_path / "golden.jsonl").write_text(text)
    with pytest.raises(BundleError, match=r"golden\.jsonl: line 1: Data should be valid base64"):
        read_golden(tmp_path / "golden.jsonl", WIDTH)
