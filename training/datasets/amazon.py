"""Amazon reviews (`amazon_us_reviews`): TSV files, gzipped or not, read as a stream, with the paper's time and
product shift (App. D.1), as ratings or, from the review's text, as sentiment (App. E.3).

The folder holds the files of Books and of any of watches, toys, sports, music, jewelry, furniture and baby. In
distribution are the first four years of Books; the shift is its last year and every other product. Only what is kept
stays in memory: of each kept review two row numbers, a rating and a time, of each product its title; for sentiment also
the first words of the text.
"""

from __future__ import annotations

import gzip
import re
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, TextIO, cast

import numpy as np
import pyarrow as pa

from levi_serve.bundle.schema import Attribute, Entity, Schema, Template
from training.datasets.dataset import Dataset, GivenShift, Ratings
from training.errors import DataError

COLUMNS = (  # noqa: SIM905 - read more easily than a list
    "marketplace customer_id review_id product_id product_parent product_title product_category star_rating "
    "helpful_votes total_votes vine verified_purchase review_headline review_body review_date"
).split()
BOOKS = "Books"
YEARS = 4
"""Years of Books that are in distribution."""
PRODUCTS = {
    "Watches": "watch", "Toys": "toy", "Sports": "sports", "Music": "music", "Jewelry": "jewelry",
    "Furniture": "furniture", "Baby": "baby",
}  # fmt: skip
"""Slices of the product shift by the file's category."""
TIME = "Books, last year"
WORDS = 48
"""Words of a review that sentiment reads."""
LICENCE = "Amazon.com: Amazon Customer Reviews; research use, no redistribution"
_WORD = re.compile(r"[a-z']+")


class _Review(NamedTuple):
    customer: int
    review: str
    product: str
    title: str
    category: str
    stars: int
    body: str
    year: int
    time: int


@dataclass
class _Kept:
    """What is kept of the reviews, as numbers."""

    user: array[int] = field(default_factory=lambda: array("q"))
    item: array[int] = field(default_factory=lambda: array("q"))
    value: array[float] = field(default_factory=lambda: array("f"))
    time: array[int] = field(default_factory=lambda: array("q"))
    slice: array[int] = field(default_factory=lambda: array("b"))
    users: dict[int, int] = field(default_factory=dict)
    items: dict[str, int] = field(default_factory=dict)
    titles: list[str] = field(default_factory=list)
    """Per item: the product's title, or the review's first words."""

    def add(self, r: _Review, item: str, text: str, value: float, slice_: int) -> None:
        self.user.append(self.users.setdefault(r.customer, len(self.users)))
        known = self.items.setdefault(item, len(self.items))
        if known == len(self.titles):
            self.titles.append(text)
        self.item.append(known)
        self.value.append(value)
        self.time.append(r.time)
        self.slice.append(slice_)


def load_amazon(data: Path) -> Dataset:
    """Star ratings of products. Of several reviews of a product by one customer the first in the files counts.

    Raises DataError naming file and line of what is not as it should be, and if no review of Books is there.
    """
    names, kept = _read(data, sentiment=False)
    schema = Schema(
        user=Entity(name="customer"),
        item=Entity(name="product", id_type="string", attributes=(Attribute(name="title", kind="text"),)),
        rating_min=1,
        rating_max=5,
        user_template=Template(clauses=("customer.id",)),
        item_template=Template(clauses=("product.title",)),
        pair_template=Template(
            clauses=("customer.id", "product.title", "product.id"),
            opening="When ",
            closing=", what can be the customer rating on this product?:",
        ),
    )
    return _dataset("amazon", schema, kept, names, {"title": kept.titles}, binary=False)


def load_sentiment(data: Path) -> Dataset:
    """Whether a review is positive (4 or 5 stars) or negative (1 or 2), from its text: the review is the item.

    Its first words are a category of many values, so that the scratch tower reads them too. Raises DataError as
    `load_amazon`, and if all reviews are of one class.
    """
    names, kept = _read(data, sentiment=True)
    schema = Schema(
        user=Entity(name="customer"),
        item=Entity(
            name="review",
            id_type="string",
            attributes=(
                Attribute(name="body", kind="text"),
                Attribute(name="words", kind="category", many=True, slots=WORDS, embed=True),
            ),
        ),
        rating_min=0,
        rating_max=1,
        user_template=Template(clauses=("customer.id",)),
        item_template=Template(clauses=("review.body",)),
        pair_template=Template(clauses=("review.body",)),
    )
    words = pa.array(
        [list(dict.fromkeys(_WORD.findall(t.lower())))[:WORDS] for t in kept.titles], pa.list_(pa.string())
    )
    dataset = _dataset("sentiment", schema, kept, names, {"body": kept.titles, "words": words}, binary=True)
    if len(np.unique(dataset.ratings.value)) < 2:
        raise DataError(f"{data}: all reviews are of one class; there is nothing to tell apart")
    return dataset


def _dataset(
    name: str, schema: Schema, kept: _Kept, names: tuple[str, ...], columns: dict[str, object], *, binary: bool
) -> Dataset:
    user, item = np.array(kept.user, np.int32), np.array(kept.item, np.int32)
    _, first = np.unique(user.astype(np.int64) * len(kept.items) + item, return_index=True)
    rows = np.sort(first)
    ratings = Ratings(
        user[rows], item[rows], np.array(kept.value, np.float32)[rows], np.array(kept.time, np.int64)[rows]
    )
    users = pa.table({"id": pa.array(list(kept.users), pa.int64())})
    items = pa.table({"id": list(kept.items), **columns})
    shift = GivenShift(names, np.array(kept.slice, np.int8)[rows])
    return Dataset(name, schema, users, items, ratings, shift, LICENCE, binary)


def _read(data: Path, *, sentiment: bool) -> tuple[tuple[str, ...], _Kept]:
    """Two passes over the files: the years of Books, then the reviews that are kept."""
    files = sorted(p for p in data.iterdir() if p.name.endswith((".tsv", ".tsv.gz"))) if data.is_dir() else [data]
    if not files:
        raise DataError(f"{data} holds no .tsv or .tsv.gz file; give the folder of the amazon_us_reviews files")
    years = {r.year for path in files for r in _reviews(path) if r.category == BOOKS}
    if not years:
        raise DataError(f"{data}: there is no review of {BOOKS}, which the shift starts from; add its file")
    first, last = min(years), max(years)
    if last < first + YEARS:
        raise DataError(
            f"{data}: the reviews of {BOOKS} are from {first} to {last}; the time shift needs a year after the first "
            f"{YEARS}"
        )
    names = (TIME, *PRODUCTS.values())
    number = {category: k for k, category in enumerate(PRODUCTS, start=2)}
    kept = _Kept()
    for path in files:
        for r in _reviews(path):
            if r.category == BOOKS:
                slice_ = 0 if r.year < first + YEARS else 1 if r.year == last else -1
            else:
                slice_ = number.get(r.category, -1)
            if slice_ < 0 or (sentiment and (r.stars == 3 or not r.body)):
                continue
            if sentiment:
                kept.add(r, r.review, " ".join(r.body.split()[:WORDS]), float(r.stars > 3), slice_)
            else:
                kept.add(r, r.product, r.title, float(r.stars), slice_)
    return names, kept


def _reviews(path: Path) -> Iterator[_Review]:
    """The reviews of one file, a line at a time."""
    with _opened(path) as lines:
        header = next(lines, "").rstrip("\r\n").split("\t")
        if missing := [c for c in COLUMNS if c not in header]:
            raise DataError(f"{path}, line 1: there is no column '{missing[0]}'; the columns are: {', '.join(header)}")
        at = [header.index(c) for c in COLUMNS]
        for number, line in enumerate(lines, start=2):
            cells = line.rstrip("\r\n").split("\t")
            if len(cells) != len(header):
                raise DataError(
                    f"{path}, line {number}: {len(cells)} columns where {len(header)} are expected; mend or drop it"
                )
            yield _review(path, number, [cells[i] for i in at])


def _review(path: Path, number: int, c: list[str]) -> _Review:
    try:
        stars, date = int(c[7]), datetime.fromisoformat(c[14]).replace(tzinfo=UTC)
        customer = int(c[1])
    except ValueError as error:
        raise DataError(f"{path}, line {number}: {error}; mend or drop it") from None
    if not 1 <= stars <= 5 or customer < 0:
        raise DataError(f"{path}, line {number}: star_rating {stars} or customer_id {customer} is out of range")
    return _Review(customer, c[2], c[3], c[5], c[6], stars, c[13], date.year, int(date.timestamp()))


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            yield cast("TextIO", lines)
    except (EOFError, gzip.BadGzipFile, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}; get it again") from None
