"""Recommendations: the best of the catalogue for one user, in one pass over the memory-mapped table of items.

The pass takes the table a chunk at a time and keeps the best so far: its time grows with the catalogue, its memory does
not. The table is sorted by id, so of two items with the same rating the one with the smaller id comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from levi_serve.bundle import AnyArray, Int64Array
from levi_serve.bundle.rated import Rated
from levi_serve.bundle.rows import HalfArray, Id, Table
from levi_serve.errors import DeadlineError, ModelOutputError, UnsupportedError
from levi_serve.predictor import Scores
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


class Recommender:
    """Goes through the items of one version. A pass keeps its thread busy from beginning to end."""

    def __init__(
        self, score: Callable[[AnyArray, AnyArray], Scores], items: Table, users: Table | None, rated: Rated | None
    ) -> None:
        """`score` rates items by the user's row [1, W] and theirs [B, W]. `rated` is about rows of `users`."""
        self._score = score
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
        best: Best | None = None
        for start in range(0, count, CHUNK):
            if not wanted():
                raise DeadlineError
            rows = self.items.rows[start : min(start + CHUNK, count)]
            scores = self._score(user, rows)
            found = _found(start, scores, allowed[start : start + len(rows)])
            best = _cut(_joined(best, found) if best else found, k)
        assert best is not None  # a catalogue has an item
        if best.unusable and not len(best.numbers):
            raise ModelOutputError
        return best


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


def _found(start: int, scores: Scores, allowed: AnyArray) -> Best:
    """The items of a chunk that may be recommended, in the table's order; `start` is the chunk's first."""
    (places,) = np.nonzero(allowed & scores.usable)
    return Best(start + places, _picked(scores, places), int(np.count_nonzero(allowed & ~scores.usable)))


def _joined(best: Best, found: Best) -> Best:
    """Both, the second behind the first."""
    pairs = zip(_columns(best.scores), _columns(found.scores), strict=True)
    scores = Scores(*(np.concatenate(pair) for pair in pairs))
    return Best(np.append(best.numbers, found.numbers), scores, best.unusable + found.unusable)


def _cut(best: Best, k: int) -> Best:
    """The best `k`. What stands earlier in the table stands earlier here: a stable sort keeps it before its equals."""
    order = np.argsort(-best.scores.rating, kind="stable")[:k]
    return Best(best.numbers[order], _picked(best.scores, order), best.unusable)


def _picked(scores: Scores, places: AnyArray) -> Scores:
    return Scores(*(column[places] for column in _columns(scores)))


def _columns(scores: Scores) -> tuple[AnyArray, ...]:
    return scores.rating, scores.heads, scores.disagreement, scores.ood_score, scores.usable, scores.watched
