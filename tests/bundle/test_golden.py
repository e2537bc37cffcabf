"""levi_serve.bundle.golden: examples written and read."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from levi_serve.bundle.golden import Golden, GoldenEntity, read_golden, write_golden
from levi_serve.bundle.manifest import BundleError


def example(title: str = "Alien") -> Golden:
    return Golden(
        user=GoldenEntity(id=138, attributes={"age": 30}),
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
        assert read_golden(Path(folder) / "golden.jsonl") == [example(title) for title in titles]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x1e", "\n", "\r"])
def test_line_separators_in_texts(tmp_path: Path, separator: str) -> None:
    """A text with a character that some call a line break does not break its line."""
    write_golden(tmp_path / "golden.jsonl", [example(f"one{separator}two"), example()])
    assert read_golden(tmp_path / "golden.jsonl") == [example(f"one{separator}two"), example()]


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
        read_golden(tmp_path / "golden.jsonl")


def test_no_examples(tmp_path: Path) -> None:
    """A version without golden examples proves nothing and is refused."""
    (tmp_path / "golden.jsonl").write_text("")
    with pytest.raises(BundleError, match=r"golden\.jsonl: holds no golden example"):
        read_golden(tmp_path / "golden.jsonl")
