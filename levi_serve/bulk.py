"""Ratings of very many pairs at once: rows of the tables through the graph, without HTTP, queues or an event loop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from levi_serve.bundle import AnyArray, BoolArray, DoubleArray, Int64Array
from levi_serve.bundle.rows import Id, Table
from levi_serve.errors import ModelOutputError
from levi_serve.predictor import GivenPair, PairReader, Scores, entity_feeds
from levi_serve.recommend import CHUNK, Recommender
from levi_serve.store import TableStore
from levi_serve.versions import Version, load

_ALONE = 16
"""A user with so many pairs gets runs of its own: one row then stands for all of them."""
_TEXTS = 16
"""Sentences in one run of the backbone (pair views)."""


class Rated(NamedTuple):
    """What is told of B pairs."""

    values: DoubleArray
    """[B, 3]: rating, disagreement and ood_score; NaN if an id is not in the catalogue or the model gave no number."""
    cold: tuple[BoolArray, BoolArray]
    """[B] each: whether user and item were not trained on."""


class Best(NamedTuple):
    """The best items of U users."""

    user: Int64Array  # [r] rows of the users' table
    rank: Int64Array  # [r] from 1
    item: Int64Array  # [r] rows of the items' table
    values: DoubleArray  # [r, 3]


class Bulk:
    """One version, opened to rate in bulk."""

    def __init__(self, repository: Path, name: str, number: int) -> None:
        """Raises BundleError if the version cannot be used."""
        self.version: Version = load(repository, name, number, "cpu", threads=1)
        users, items = self.version.tables
        assert users is not None
        assert items is not None
        self.users: Table = users
        self.items: Table = items
        manifest = self.version.manifest
        self._reader = PairReader(manifest, self.version.tokenizer) if manifest.views == "pair" else None

    def close(self) -> None:
        """Let go of the graphs."""
        self.version.close()

    def rate(self, users: Sequence[Id] | AnyArray, items: Sequence[Id] | AnyArray) -> Rated:
        """Pairs of ids [B]; one that is not in the catalogue has no rating."""
        user, item = self.users.find(users), self.items.find(items)  # type: ignore[arg-type] # arrays do as well
        cold = [
            ~table.trained.take(rows, mode="wrap") | (rows < 0)
            for table, rows in ((self.users, user), (self.items, item))
        ]
        values = np.full((len(user), 3), np.nan)
        (known,) = np.nonzero((user >= 0) & (item >= 0))
        rated = self._by_rows if self._reader is None else self._by_text
        values[known] = rated(user[known], item[known])
        return Rated(values, (cold[0], cold[1]))

    def best(self, users: range, k: int, exclude_rated: bool) -> Best:
        """The best `k` items of each user of these rows of the table, best first (entity views). A user for whom the
        model gives no number has none.
        """
        version = self.version

        def score(user: AnyArray, items: AnyArray) -> Scores:
            return version.predictor.score(entity_feeds(user, items))

        recommender = Recommender(score, self.items, self.users, version.rated)
        nobody = np.empty(0, np.int64)
        parts = [(nobody, nobody, nobody, np.empty((0, 3)))]
        for user in users:
            exclude = version.rated.items_of(user) if exclude_rated and version.rated is not None else ()
            try:
                best = recommender.top(self.users.rows[user], k, np.asarray(exclude, np.int64))
            except ModelOutputError:
                continue
            count = len(best.numbers)
            parts.append((np.full(count, user), np.arange(1, count + 1), best.numbers, _values(best.scores)))
        return Best(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _by_rows(self, user: Int64Array, item: Int64Array) -> DoubleArray:
        """Entity views [B, 3]. What shares a run with a pair follows from the pairs alone, so a repetition is exact."""
        out, score = np.empty((len(user), 3)), self.version.predictor.score
        order = np.argsort(user, kind="stable")
        _, start, count = np.unique(user[order], return_index=True, return_counts=True)
        many = count >= _ALONE
        for first, number in zip(start[many], count[many], strict=True):
            own = order[first : first + number]
            row = self.users.rows[user[own[:1]]]
            for places in _parts(own, CHUNK):
                out[places] = _values(score(entity_feeds(row, self.items.rows[item[places]])))
        for places in _parts(order[~np.repeat(many, count)], CHUNK):
            out[places] = _values(score(entity_feeds(self.users.rows[user[places]], self.items.rows[item[places]])))
        return out

    def _by_text(self, user: Int64Array, item: Int64Array) -> DoubleArray:
        """Pair views [B, 3]."""
        assert self._reader is not None
        out, store = np.empty((len(user), 3)), TableStore(self.users, self.items)
        for places in _parts(np.arange(len(user)), _TEXTS):
            ids = [self.users.id(int(u)) for u in user[places]], [self.items.id(int(i)) for i in item[places]]
            pairs = [GivenPair(*pair) for pair in zip(*ids, strict=True)]
            texts = self._reader.read(pairs, store.at_hand(*ids), range(len(pairs)))
            out[places] = _values(self.version.predictor.score(self._reader.feeds(texts)))
        return out


def _parts(places: Int64Array, size: int) -> list[Int64Array]:
    return [places[at : at + size] for at in range(0, len(places), size)]


def _values(scores: Scores) -> DoubleArray:
    told = np.stack([scores.rating, scores.disagreement, scores.ood_score], axis=1)
    told[~scores.usable] = np.nan
    return told
