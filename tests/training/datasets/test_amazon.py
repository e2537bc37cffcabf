"""training.datasets.amazon: the shifts, what is refused, and that memory does not follow the size of the files."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from training.datasets.amazon import COLUMNS, load_amazon, load_sentiment
from training.errors import DataError
from training.splits import split


def line(n: int, category: str, date: str, stars: int, product: str = "", customer: int = 0, body: str = "") -> str:
    values = dict.fromkeys(COLUMNS, "x") | {
        "customer_id": str(customer or n),
        "review_id": f"R{n}",
        "product_id": product or f"P{n}",
        "product_title": f"A title of {product or n}",
        "product_category": category,
        "star_rating": str(stars),
        "review_body": body or ("loved it, great" if stars > 3 else "awful and boring"),
        "review_date": date,
    }
    return "\t".join(values[c] for c in COLUMNS)


def write(folder: Path, lines: list[str], name: str = "Books.tsv.gz") -> Path:
    text = "\n".join(["\t".join(COLUMNS), *lines]) + "\n"
    if name.endswith(".gz"):
        with gzip.open(folder / name, "wt") as file:
            file.write(text)
    else:
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """Books of 2000–2006, forty a year, and ten reviews of toys and of cameras."""
    n, books, others = 0, [], []
    for year in range(2000, 2007):
        for _ in range(40):
            n += 1
            books.append(line(n, "Books", f"{year}-05-01", 1 + n % 5))
    for category in ("Toys", "Camera"):
        for _ in range(10):
            n += 1
            others.append(line(n, category, "2001-01-01", 5 if n % 2 else 1))
    write(tmp_path, books)
    return write(tmp_path, others, "Other.tsv")


def test_shift(reviews: Path) -> None:
    """The first four years of Books are in distribution; its last year and other products are the shift."""
    dataset = load_amazon(reviews)
    parts = split(dataset, 0)
    assert len(dataset.ratings) == 4 * 40 + 40 + 10
    assert {name: len(rows) for name, rows in parts.slices.items()} == {"Books, last year": 40, "toy": 10}
    times = dataset.ratings.time[parts.train]
    assert times.max() < 1_072_915_200  # 2004
    assert len(parts.train) == 128
    assert dataset.items["title"][0].as_py() == "A title of 1"


def test_twice_reviewed(tmp_path: Path) -> None:
    """Of two reviews of a product by one customer the first counts."""
    lines = [line(n, "Books", f"{2000 + n}-01-01", 3, product="P", customer=1 + n) for n in range(6)]
    lines.append(line(9, "Books", "2000-01-01", 5, product="P", customer=1))
    dataset = load_amazon(write(tmp_path, lines))
    assert dataset.ratings.value.tolist() == [3] * 5  # of 2000 to 2003 and of 2005
    assert len(dataset.items) == 1


def test_sentiment(reviews: Path) -> None:
    """Reviews without a side are left out; classes are 0 and 1, and the tower reads the first words."""
    dataset = load_sentiment(reviews)
    assert dataset.binary
    assert set(np.unique(dataset.ratings.value)) == {0, 1}
    assert len(dataset.ratings) == 5 * 32 + 10
    assert set(dataset.items["words"][0].as_py()) <= {"loved", "it", "great", "awful", "and", "boring"}


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("a\tb", "line 3: 2 columns where 15 are expected"),
        (line(2, "Books", "2001-13-01", 3), "line 3: month must be in 1..12"),
        (line(2, "Books", "2001-01-01", 6), "line 3: star_rating 6"),
        (line(2, "Books", "2001-01-01", 3).replace("\t2\t", "\tnobody\t", 1), "line 3: invalid literal"),
    ],
)
def test_bad_lines(tmp_path: Path, bad: str, says: str) -> None:
    """A line that is not as it should be is named."""
    with pytest.raises(DataError, match=says):
        load_amazon(write(tmp_path, [line(1, "Books", "2000-01-01", 3), bad]))


def test_other_troubles(tmp_path: Path) -> None:
    """No files, no column, no Books, too few years, a cut archive, one class: each says so."""
    with pytest.raises(DataError, match=r"holds no \.tsv"):
        load_amazon(tmp_path)
    (tmp_path / "a.tsv").write_text("customer_id\n1\n")
    with pytest.raises(DataError, match="line 1: there is no column 'marketplace'"):
        load_amazon(tmp_path)
    (tmp_path / "a.tsv").unlink()
    write(tmp_path, [line(1, "Toys", "2000-01-01", 3)])
    with pytest.raises(DataError, match="there is no review of Books"):
        load_amazon(tmp_path)
    write(tmp_path, [line(n, "Books", f"{2000 + n}-01-01", 3) for n in range(3)])
    with pytest.raises(DataError, match="from 2000 to 2002"):
        load_amazon(tmp_path)
    write(tmp_path, [line(n, "Books", f"{2000 + n}-01-01", 5) for n in range(6)])
    with pytest.raises(DataError, match="one class"):
        load_sentiment(tmp_path)
    whole = (tmp_path / "Books.tsv.gz").read_bytes()
    (tmp_path / "Books.tsv.gz").write_bytes(whole[:-10])
    with pytest.raises(DataError, match=r"Books\.tsv\.gz cannot be read"):
        load_amazon(tmp_path)


def test_memory(tmp_path: Path) -> None:
    """Reading 60 MB of reviews takes less than a third of that above what an almost empty file takes."""
    program = (
        "import re, sys; from pathlib import Path; from training.datasets.amazon import load_amazon\n"
        "load_amazon(Path(sys.argv[1])); print(re.search('VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    )
    peaks = []
    for name, count in (("small", 2), ("large", 1000)):
        (tmp_path / name).mkdir()
        lines = [
            line(60 * y + n, "Books", f"{2000 + y}-01-01", 3, body="word " * (10 if name == "small" else 2000))
            for y in range(6)
            for n in range(count)
        ]
        write(tmp_path / name, lines)
        found = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / name)], check=True, capture_output=True, text=True
        )
        peaks.append(int(found.stdout) * 1024)
    assert peaks[1] - peaks[0] < 20e6
