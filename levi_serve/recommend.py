"""Recommendations: the best of the catalogue for one user, in one pass over the memory-mapped table of items.

The pass takes the table a chunk at a time and keeps the best so far: its time grows with the catalogue, its memory does
not. The table is sorted by id, so of two items with the same rating the one with the smaller id comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from levi_serve.bundle import AnyArray, DoubleArray, FloatArray, Int64Array
from levi_serve.bundle.rated import Rated
from levi_serve.bundle.rows import HalfArray, Id, Table
from levi_serve.errors import DeadlineError, ModelOutputError, UnsupportedError
from levi_serve.predictor import DECIMALS, Scores, entity_feeds
from levi_serve.store import Given

CHUNK = 256
"""Items in one run of the graph: what it computes for them stays in a core's own cache."""

_NOTHING: Int64Array = np.empty(0, np.int64)


class Best(NamedTuple):
    """Some items and what the model says of them, best first."""

    numbers: Int64Array
    """[k], rows of the items' table."""
    scores: Scores
    unusable: int
    """Items that were left out, since the model gave no finite number for them."""


class Model(Protocol):
    """What rates: `Predictor` in two steps, since only those that are kept need the second."""

    def rate(self, feeds: dict[str, AnyArray]) -> tuple[FloatArray, FloatArray]:
        """Head ratings [B, n] and ratings [B], finite or not."""

    def scores(self, feeds: dict[str, AnyArray], heads: FloatArray, ratings: AnyArray) -> Scores:
        """All there is to say of the pairs that were rated."""


class Recommender:
    """Goes through the items of one version. A pass keeps its thread busy from beginning to end."""

    def __init__(self, model: Model, items: Table, users: Table | None, rated: Rated | None) -> None:
        """`model` is of entity views. `rated` is about rows of `users`."""
        self._model = model
        self.items = items
        self._users = users
        self._rated = rated

    def rated_by(self, user: Given) -> AnyArray:
        """Rows of the items that a user rated in training; a new one has rated nothing.

        Raises:
            UnsupportedError: there is no table of users.

        """
        if isinstance(user, Mapping):
            return _NOTHING
        if self._users is None or self._rated is None:
            raise UnsupportedError(
                "exclude_rated needs the table of users, which this server does not keep; ask without it"
            )
        (number,) = self._users.find([user])
        return _NOTHING if number < 0 else self._rated.items_of(int(number))

    def top(
        self, user: HalfArray, k: int, exclude: AnyArray = _NOTHING, wanted: Callable[[], bool] = lambda: True
    ) -> Best:
        """The best `k` items, or all there are, for the user with this row [W], without those in the rows `exclude`.

        Raises:
            DeadlineError: `wanted`, which is asked before each chunk, said no.
            ModelOutputError: the model gave no number for any item.

        """
        count = len(self.items)
        allowed = np.ones(count, np.bool_)
        allowed[exclude] = False
        user = user[np.newaxis]
        best: _Rated | None = None
        unusable = 0
        for start in range(0, count, CHUNK):
            if not wanted():
                raise DeadlineError
            rows = self.items.rows[start : min(start + CHUNK, count)]
            heads, ratings = self._model.rate(entity_feeds(user, rows))
            usable = np.isfinite(ratings) & np.isfinite(heads).all(axis=1)
            here = allowed[start : start + len(rows)]
            unusable += int(np.count_nonzero(here & ~usable))
            (places,) = np.nonzero(here & usable)
            # As answers show them: what looks the same is in the order of ids.
            shown = ratings[places].astype(np.float64).round(DECIMALS)
            found = _Rated(start + places, heads[places], shown)
            best = _cut(_joined(best, found) if best else found, k)
        assert best is not None  # a catalogue has an item
        if unusable and not len(best.numbers):
            raise ModelOutputError
        feeds = entity_feeds(user, self.items.rows[best.numbers])
        return Best(best.numbers, self._model.scores(feeds, best.heads, best.ratings), unusable)


def ranked(items: Sequence[Given], ratings: Sequence[float]) -> list[int]:
    """Places of the items in the order that the catalogue's pass would give them; new ones after known ones of the same
    rating, in the order in which they are given.
    """

    def key(place: int) -> tuple[float, bool, Id | bytes]:
        item = items[place]
        if isinstance(item, Mapping):
            return -ratings[place], True, place
        return -ratings[place], False, item.encode() if isinstance(item, str) else item

    return sorted(range(len(items)), key=key)


class _Rated(NamedTuple):
    """Some items in the course of a pass."""

    numbers: Int64Array
    """[B], rows of the items' table."""
    heads: FloatArray
    """[B, n]"""
    ratings: DoubleArray
    """[B]"""


def _joined(best: _Rated, found: _Rated) -> _Rated:
    """Both, the second behind the first."""
    return _Rated(
        np.concatenate([best.numbers, found.numbers]),
        np.concatenate([best.heads, found.heads]),
        np.concatenate([best.ratings, found.ratings]),
    )


def _cut(rated: _Rated, k: int) -> _Rated:
    """The best `k`. What stands earlier in the table stands earlier here: a stable sort keeps it before its equals."""
    order = np.argsort(-rated.ratings, kind="stable")[:k]
    return _Rated(rated.numbers[order], rated.heads[order], rated.ratings[order])
