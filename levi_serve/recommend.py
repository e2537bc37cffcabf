"""Recommendations: the best of the catalogue for one user, in one pass over the memory-mapped table of items, and over
what was added to it since.

The pass takes the table a chunk at a time and keeps the best so far: its time grows with the catalogue, its memory does
not. The table is sorted by id, so of two items with the same rating the one with the smaller id comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, Self

import numpy as np

from levi_serve.bundle import AnyArray, BoolArray, DoubleArray, FloatArray, Int64Array
from levi_serve.bundle.rated import Rated
from levi_serve.bundle.rows import STORED, HalfArray, Id, Table
from levi_serve.bundle.schema import Attributes
from levi_serve.errors import DeadlineError, ModelOutputError, UnsupportedError
from levi_serve.predictor import DECIMALS, Scores, entity_feeds
from levi_serve.store import Given

CHUNK = 256
"""Items in one run of the graph: what it computes for them stays in a core's own cache."""

_NOTHING: Int64Array = np.empty(0, np.int64)


class Additions(NamedTuple):
    """What differs from the table of items: some of its rows are hidden, E items are added, in the table's order."""

    hidden: Int64Array
    """Rows of the table."""
    ids: Sequence[Id] = ()
    rows: HalfArray = np.empty((0, 0), STORED)
    """[E, W]"""
    attributes: Sequence[Attributes] = ()
    places: DoubleArray = np.empty(0)
    """[E], where each would stand in the table: k − ½ before its row k."""

    @classmethod
    def of(cls, table: Table, hidden: Int64Array, added: Mapping[Id, tuple[HalfArray, Attributes]]) -> Self:
        """`added` has each item's row and attributes."""
        ids = sorted(added, key=lambda id_: id_.encode() if isinstance(id_, str) else id_)
        if not ids:
            return cls(hidden)
        rows = np.stack([added[id_][0] for id_ in ids])
        return cls(hidden, ids, rows, [added[id_][1] for id_ in ids], table.places(ids))


NONE = Additions(_NOTHING)


class Catalogue:
    """All items of one moment. Their numbers count through the table and then through what is added."""

    def __init__(self, table: Table, added: Additions) -> None:
        """Both as they are now."""
        self._table = table
        self._added = added
        self._count = len(table)

    def __len__(self) -> int:
        return self._count + len(self._added.ids)

    def id(self, number: int) -> Id:
        """The id of one item."""
        return self._table.id(number) if number < self._count else self._added.ids[number - self._count]

    def attributes(self, number: int) -> Attributes:
        """The attributes of one item."""
        if number < self._count:
            return self._table.attributes(number)
        return self._added.attributes[number - self._count]

    def trained(self, numbers: Int64Array) -> BoolArray:
        """Whether these items [k] were trained on."""
        trained: BoolArray = self._table.trained.take(numbers, mode="clip")
        trained[numbers >= self._count] = False
        return trained

    def rows(self, numbers: Int64Array) -> HalfArray:
        """The rows [k, W] of these items [k]."""
        rows: HalfArray = self._table.rows.take(numbers, axis=0, mode="clip")
        late = numbers >= self._count
        if late.any():
            rows[late] = self._added.rows[numbers[late] - self._count]
        return rows

    def allowed(self, exclude: AnyArray) -> BoolArray:
        """Whether each item may be recommended, if those in the rows `exclude` of the table may not."""
        allowed = np.ones(len(self), np.bool_)
        allowed[exclude] = False
        allowed[self._added.hidden] = False
        return allowed

    def chunks(self) -> Iterator[tuple[int, HalfArray]]:
        """The number of the first item of each chunk, and the rows [≤ CHUNK, W]."""
        for first, rows in ((0, self._table.rows[: self._count]), (self._count, self._added.rows)):
            for start in range(0, len(rows), CHUNK):
                yield first + start, rows[start : start + CHUNK]

    def order(self, ratings: DoubleArray, numbers: Int64Array) -> AnyArray:
        """Places that sort these items [k], highest rating first, then smallest id."""
        if not self._added.ids:  # numbers ascend
            return np.argsort(-ratings, kind="stable")
        places = np.append(np.arange(self._count, dtype=np.float64), self._added.places)
        return np.lexsort((places[numbers], -ratings))


class Best(NamedTuple):
    """Some items and what the model says of them, best first."""

    numbers: Int64Array
    """[k], numbers in the catalogue."""
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

    def __init__(
        self,
        model: Model,
        items: Table,
        users: Table | None,
        rated: Rated | None,
        additions: Callable[[], Additions] = lambda: NONE,
    ) -> None:
        """`model` is of entity views. `rated` is about rows of `users`. `additions` says what differs from the table of
        items at the moment.
        """
        self._model = model
        self.items = items
        self._users = users
        self._rated = rated
        self._additions = additions

    def catalogue(self) -> Catalogue:
        """All items, as they are now."""
        return Catalogue(self.items, self._additions())

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
        self,
        user: HalfArray,
        k: int,
        exclude: AnyArray = _NOTHING,
        wanted: Callable[[], bool] = lambda: True,
        items: Catalogue | None = None,
    ) -> Best:
        """The best `k` of these items, or all there are, for the user with this row [W], without those in the rows
        `exclude` of the table.

        Raises:
            DeadlineError: `wanted`, which is asked before each chunk, said no.
            ModelOutputError: the model gave no number for any item.

        """
        items = items or self.catalogue()
        allowed = items.allowed(exclude)
        user = user[np.newaxis]
        best: _Rated | None = None
        unusable = 0
        for start, rows in items.chunks():
            if not wanted():
                raise DeadlineError
            heads, ratings = self._model.rate(entity_feeds(user, rows))
            usable = np.isfinite(ratings) & np.isfinite(heads).all(axis=1)
            here = allowed[start : start + len(rows)]
            unusable += int(np.count_nonzero(here & ~usable))
            (places,) = np.nonzero(here & usable)
            # As answers show them: what looks the same is in the order of ids.
            shown = ratings[places].astype(np.float64).round(DECIMALS)
            found = _Rated(start + places, heads[places], shown)
            best = _cut(items, _joined(best, found) if best else found, k)
        assert best is not None  # a catalogue has an item
        if unusable and not len(best.numbers):
            raise ModelOutputError
        feeds = entity_feeds(user, items.rows(best.numbers))
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
    """[B], numbers in the catalogue."""
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


def _cut(items: Catalogue, rated: _Rated, k: int) -> _Rated:
    """The best `k`. What stands earlier in the catalogue stands earlier here, before its equals."""
    order = items.order(rated.ratings, rated.numbers)[:k]
    return _Rated(rated.numbers[order], rated.heads[order], rated.ratings[order])
