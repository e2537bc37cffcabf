"""Training ratings that need not fit into memory: most stay in a Parquet file and pass through a buffer.

An epoch takes the file's row groups in a random order, fills the buffer with whole groups, shuffles it and gives it out
as batches. While the buffer holds all ratings, that is the shuffle of ratings in memory, and a fit ends with the same
numbers. Of a longer file, only ratings whose groups are in the buffer together can meet in a batch: a file that is
sorted by user is better mixed before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from levi_serve.bundle import BoolArray, Int64Array
from training.datasets.checks import Scale, build_ratings
from training.datasets.dataset import Dataset, RatingFile
from training.datasets.files import open_parquet, read_group
from training.splits import id_items

BUFFER = 1 << 20
"""Ratings that are shuffled together, 24 bytes each; a larger row group is shuffled whole."""


@dataclass(frozen=True)
class Stream:
    """The training ratings of a dataset with more of them in a file.

    Of the file's ratings those count that are in distribution and that the dataset does not hold itself: what is held
    out of the fit stays out, though the file may have all ratings.
    """

    dataset: Dataset
    own: Int64Array
    """Rows of `dataset.ratings` that are fitted too."""
    without: frozenset[int]
    """Rows of items whose ratings in the file do not count."""
    counts: tuple[int, ...]
    """Ratings of each row group that count."""
    mean: float
    known: tuple[Int64Array, Int64Array]
    """Rows of the users and of the items that occur, ascending."""

    def __len__(self) -> int:
        return len(self.own) + sum(self.counts)

    @classmethod
    def open(cls, dataset: Dataset, own: Int64Array, without: Iterable[int] = ()) -> Stream:
        """Read the file once: what counts, its mean, and who occurs.

        Raises:
            DataError: naming the file, and the row that is not as it should be.
        """
        left_out = frozenset(int(item) for item in without)
        stream = cls(dataset, own, left_out, (), 0.0, (own, own))
        seen = np.zeros(len(dataset.users), bool), np.zeros(len(dataset.items), bool)
        total, counts = 0.0, []
        for number in range(stream.groups + 1):
            user, item, value = stream.read(number).numpy().T
            seen[0][user.astype(np.int64)] = True
            seen[1][item.astype(np.int64)] = True
            total += float(value.sum())
            counts.append(len(value))
        known = np.flatnonzero(seen[0]), np.flatnonzero(seen[1])
        return cls(dataset, own, left_out, tuple(counts[1:]), total / sum(counts), known)

    def shuffled(self, order: torch.Generator) -> Iterator[Tensor]:
        """One epoch: blocks [b, 3] of user row, item row and rating, each a buffer that was shuffled."""
        sizes = (len(self.own), *self.counts)
        turns = range(len(sizes)) if sum(sizes) <= BUFFER else torch.randperm(len(sizes), generator=order).tolist()
        block: list[int] = []
        for number in [*turns, None]:
            if block and (number is None or sum(sizes[n] for n in [*block, number]) > BUFFER):
                ratings = torch.cat([self.read(n) for n in sorted(block)])
                yield ratings[torch.randperm(len(ratings), generator=order)]
                block = []
            if number is not None:
                block.append(number)

    def read(self, number: int) -> Tensor:
        """[g, 3] ratings of a row group that count; number 0 is the dataset's own, the file's follow."""
        if not number:
            r = self.dataset.ratings
            columns = [r.user[self.own], r.item[self.own], r.value[self.own]]
            return torch.from_numpy(np.stack(columns, 1, dtype=np.float64))
        rows, file = read_group(self._file, number - 1, self.file.path, self._types), self.file
        ids = self.dataset.users["id"], self.dataset.items["id"]
        schema = self.dataset.schema
        scale = Scale(schema.rating_min, schema.rating_max)
        ratings = build_ratings(rows, file.columns, ids, file.homes, scale)
        pairs = self._pairs(ratings.user, ratings.item)
        place = np.searchsorted(self._held, pairs).clip(max=len(self._held) - 1)
        kept = self._fitted_items[ratings.item] & (self._held[place] != pairs)
        columns = [ratings.user[kept], ratings.item[kept], ratings.value[kept]]
        return torch.from_numpy(np.stack(columns, 1, dtype=np.float64))

    def pairs(self) -> tuple[Int64Array, Int64Array]:
        """Who rated what: [m] rows of users and of items; this list is held in memory, 16 bytes a rating."""
        read = [self.read(number)[:, :2].long().numpy() for number in range(self.groups + 1)]
        users, items = np.concatenate(read).T
        return users, items

    @property
    def file(self) -> RatingFile:
        """Where the ratings are."""
        assert self.dataset.more is not None
        return self.dataset.more

    @property
    def groups(self) -> int:
        """Row groups in the file."""
        return int(self._file.num_row_groups)

    @cached_property
    def _file(self) -> Any:
        return open_parquet(self.file.path, self._types)

    @cached_property
    def _types(self) -> dict[str, Any]:
        types = (self.dataset.users["id"].type, self.dataset.items["id"].type, pa.float32())
        return dict(zip(self.file.columns, types, strict=True))

    @cached_property
    def _fitted_items(self) -> BoolArray:
        items = id_items(self.dataset).copy()
        items[list(self.without)] = False
        return items

    @cached_property
    def _held(self) -> Int64Array:
        return np.sort(self._pairs(self.dataset.ratings.user, self.dataset.ratings.item))

    def _pairs(self, user: Any, item: Any) -> Int64Array:
        """One number for each pair."""
        number: Int64Array = user.astype(np.int64) * len(self.dataset.items) + item
        return number
