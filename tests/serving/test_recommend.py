"""levi_serve.recommend: the pass through the catalogue against a sort of everything, and the order of candidates."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from levi_serve import recommend
from levi_serve.bundle.rated import Rated, write_rated
from levi_serve.bundle.rows import Table, write_table
from levi_serve.errors import DeadlineError, ModelOutputError, UnsupportedError
from levi_serve.predictor import Scores
from levi_serve.recommend import Additions, Recommender, ranked

USER = np.array([7, 0.5], np.float16)


class Items:
    """A table of items whose row i is [i, i]; the last row is the unknown item's."""

    def __init__(self, count: int) -> None:
        numbers = np.append(np.arange(count), 2047)
        self.rows = np.stack([numbers, numbers], axis=1).astype(np.float16)

    def __len__(self) -> int:
        return len(self.rows) - 1


class Model:
    """Gives item i the i-th of some ratings, and heads, disagreement and score that tell who it was."""

    def __init__(self, ratings: list[float]) -> None:
        self.ratings = np.array(ratings)
        self.runs: list[int] = []

    def rate(self, feeds: dict[str, Any]) -> tuple[Any, Any]:
        users, items = feeds.values()
        assert users.dtype == items.dtype == np.float16
        assert users.tolist() == [[7, 0.5]]
        self.runs.append(len(items))
        numbers = items[:, 0].astype(int)
        return np.stack([numbers, numbers + 0.5], axis=1), self.ratings[numbers]

    def scores(self, feeds: dict[str, Any], heads: np.ndarray, ratings: np.ndarray) -> Scores:
        numbers = list(feeds.values())[1][:, 0].astype(int)
        return Scores(ratings, heads, numbers / 10, numbers / 100, np.isfinite(ratings), heads)


def recommender(ratings: list[float]) -> Recommender:
    return Recommender(Model(ratings), Items(len(ratings)), None, None)  # type: ignore[arg-type]


@pytest.fixture
def chunk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how many items a run takes."""
    return lambda size: monkeypatch.setattr(recommend, "CHUNK", size)


def test_by_hand(chunk: Callable[[int], None]) -> None:
    """Best first, equal ratings by place, and everything told of an item stays with it."""
    chunk(2)
    best = recommender([3.0, 4.0, 5.0, 4.0, 1.0]).top(USER, 3)
    assert best.numbers.tolist() == [2, 1, 3]
    assert best.scores.rating.tolist() == [5, 4, 4]
    assert best.scores.heads.tolist() == [[2, 2.5], [1, 1.5], [3, 3.5]]
    assert best.scores.disagreement.tolist() == [0.2, 0.1, 0.3]
    assert best.scores.ood_score.tolist() == [0.02, 0.01, 0.03]
    assert best.scores.usable.tolist() == [True] * 3
    assert best.unusable == 0


rating = st.sampled_from([1.0, 2.5, 4.999999, 5.0, float("nan"), float("inf")])


@given(st.data(), st.lists(rating, min_size=1, max_size=60), st.integers(1, 70), st.integers(1, 64))
def test_any_catalogue(data: st.DataObject, ratings: list[float], k: int, size: int) -> None:
    """Whatever the chunk, the first k of a sort of everything that may be recommended, draws by place in the table."""
    exclude = data.draw(st.sets(st.integers(0, len(ratings) - 1)))
    allowed = [i for i in range(len(ratings)) if i not in exclude]
    expected = sorted((i for i in allowed if np.isfinite(ratings[i])), key=lambda i: (-ratings[i], i))[:k]
    broken = sum(not np.isfinite(ratings[i]) for i in allowed)
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(recommend, "CHUNK", size)
        if broken and not expected:
            with pytest.raises(ModelOutputError):
                recommender(ratings).top(USER, k, np.array(sorted(exclude), np.int32))
            return
        best = recommender(ratings).top(USER, k, np.array(sorted(exclude), np.int32))
    assert best.numbers.tolist() == expected
    assert best.scores.rating.tolist() == [ratings[i] for i in expected]
    assert best.scores.heads[:, 0].tolist() == expected
    assert best.unusable == broken


@pytest.mark.parametrize(("count", "runs"), [(1, [1]), (3, [3]), (4, [4]), (5, [4, 1]), (9, [4, 4, 1])])
def test_each_item_is_rated_once(chunk: Callable[[int], None], count: int, runs: list[int]) -> None:
    """The runs are chunks of the table from its first item to its last, without the unknown one."""
    chunk(4)
    one = recommender([1.0] * count)
    assert one.top(USER, 100).numbers.tolist() == list(range(count))
    assert one._model.runs == runs  # type: ignore[attr-defined]


def test_everything_rated_already() -> None:
    """A user who has rated the whole catalogue gets an empty list, which is no failure of the model."""
    assert recommender([1.0, float("nan")]).top(USER, 3, np.array([0, 1])).numbers.tolist() == []


def test_a_pass_that_nobody_wants_ends(chunk: Callable[[int], None]) -> None:
    """Before each chunk it is asked whether somebody still waits; if not, nothing further is run."""
    chunk(2)
    one = recommender([1.0] * 10)
    answers = iter([True, True, False])
    with pytest.raises(DeadlineError):
        one.top(USER, 3, wanted=lambda: next(answers))
    assert one._model.runs == [2, 2]  # type: ignore[attr-defined]


def test_memory_does_not_grow_with_what_is_told(chunk: Callable[[int], None]) -> None:
    """A catalogue ten times as large takes little more, by far not the 14 MB that all its items' heads would."""
    chunk(64)

    def peak(count: int) -> int:
        one = Recommender(Wide(), Items(count), None, None)  # type: ignore[arg-type]
        one.top(USER, 5)
        tracemalloc.start()
        one.top(USER, 5)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(20_000) - peak(2_000) < 200_000


class Wide:
    """A model with a hundred heads."""

    def rate(self, feeds: dict[str, Any]) -> tuple[Any, Any]:
        _, items = feeds.values()
        return np.ones((len(items), 100)), np.linspace(1, 5, len(items))

    def scores(self, feeds: dict[str, Any], heads: np.ndarray, ratings: np.ndarray) -> Scores:
        watched = np.ones((len(ratings), 6), np.float32)
        return Scores(ratings, heads, ratings, ratings, np.ones(len(ratings), bool), watched)


@pytest.fixture
def tables(tmp_path: Path) -> tuple[Table, Table, Rated]:
    """Users 5 and 8, items 10, 20 and 30; user 8 has rated 30 and 10."""
    for name, ids in (("users", [5, 8]), ("items", [10, 20, 30])):
        write_table(tmp_path, name, ids, [{}] * len(ids), np.ones(len(ids), bool), np.zeros((len(ids) + 1, 2)))
    write_rated(tmp_path, 2, np.array([1, 1]), np.array([2, 0]))
    return Table(tmp_path, "users"), Table(tmp_path, "items"), Rated(tmp_path)


def test_rated_by(tables: tuple[Table, Table, Rated]) -> None:
    """A known user's items are found through the tables; a user without ratings, unknown or new has none."""
    users, items, rated = tables
    one = Recommender(Model([]), items, users, rated)
    assert one.rated_by(8).tolist() == [0, 2]
    for user in (5, 6, {"age": 30}):
        assert one.rated_by(user).tolist() == []


def test_rated_by_without_a_table_of_users(tables: tuple[Table, Table, Rated]) -> None:
    """Where no table of users is kept nobody knows which row is whose; a new user's answer is known all the same."""
    _, items, rated = tables
    one = Recommender(Model([]), items, None, rated)
    assert one.rated_by({"age": 30}).tolist() == []
    with pytest.raises(UnsupportedError, match="exclude_rated needs the table of users"):
        one.rated_by(8)


NEW: Any = {"title": "x"}


@pytest.mark.parametrize(
    ("items", "ratings", "expected"),
    [
        ([3, 1, 2], [1.0, 2.0, 3.0], [2, 1, 0]),
        ([3, 1, 2], [2.0, 2.0, 2.0], [1, 2, 0]),
        ([10, 9, -1], [2.0, 2.0, 2.0], [2, 1, 0]),
        (["b", "a", "B"], [2.0, 2.0, 2.0], [2, 1, 0]),
        (["é", "z", "日"], [2.0, 2.0, 2.0], [1, 0, 2]),
        ([NEW, 1, NEW, 0], [2.0, 2.0, 2.0, 2.0], [3, 1, 0, 2]),
        ([NEW, 1], [2.000001, 2.0], [0, 1]),
    ],
)
def test_ranked(items: list[Any], ratings: list[float], expected: list[int]) -> None:
    """Best first; draws go to the smaller id as the table sorts them, by bytes where they are text; new ones follow."""
    assert ranked(items, ratings) == expected


@given(st.dictionaries(st.integers(-5, 5) | st.integers(), rating.filter(np.isfinite), min_size=1, max_size=12))
def test_a_rank_of_everything_is_the_pass(catalogue: dict[int, float]) -> None:
    """The whole catalogue ranked as candidates, in any order, stands as the pass puts it."""
    ids = sorted(catalogue)
    best = recommender([catalogue[i] for i in ids]).top(USER, len(ids))
    shuffled = list(catalogue)
    order = ranked(shuffled, [catalogue[i] for i in shuffled])
    assert [shuffled[place] for place in order] == [ids[n] for n in best.numbers.tolist()]


IDS = st.sets(st.text("abä", min_size=1, max_size=3), min_size=1, max_size=8)


@given(IDS, IDS, st.data())
def test_what_is_added_stands_where_its_id_would(table_ids: set[str], added_ids: set[str], data: st.DataObject) -> None:
    """Table and additions give the order of one table with all of it; hidden rows are left out."""
    everything = sorted(table_ids | added_ids, key=str.encode)
    ratings = [data.draw(st.sampled_from([1.0, 2.0, 2.0])) for _ in everything]
    row = {id_: np.array([i, i], np.float16) for i, id_ in enumerate(everything)}
    with TemporaryDirectory() as folder:
        known = sorted(table_ids)
        rows = np.stack([*(row[id_] for id_ in known), row[known[0]]])
        write_table(Path(folder), "items", known, [{"of": id_} for id_ in known], np.ones(len(known), bool), rows)
        table = Table(Path(folder), "items")
        numbers = table.find(sorted(added_ids))
        added = Additions.of(table, numbers[numbers >= 0], {id_: (row[id_], {"new": id_}) for id_ in added_ids})
        one = Recommender(Model(ratings), table, None, None, lambda: added)
        items = one.catalogue()
        best = one.top(USER, data.draw(st.integers(1, 20)), items=items).numbers.tolist()
        expected = sorted(everything, key=lambda id_: (-ratings[everything.index(id_)], id_.encode()))
        assert [items.id(number) for number in best] == expected[: len(best)]
        assert [items.attributes(number) for number in best] == [
            {"new": id_} if id_ in added_ids else {"of": id_} for id_ in expected[: len(best)]
        ]
        assert items.trained(np.array(best)).tolist() == [id_ not in added_ids for id_ in expected[: len(best)]]
