"""Splits and folds: covers, sizes, and what is held apart."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from levi_serve.bundle.schema import Attribute, Entity, Schema, Template
from training.datasets.dataset import Dataset, GenreShift, Ratings
from training.datasets.sample import generate
from training.errors import DataError
from training.splits import genre_folds, item_folds, sampled, split

SCHEMA = Schema(
    user=Entity(name="user"),
    item=Entity(name="movie", attributes=(Attribute(name="genres", kind="category", many=True),)),
    rating_min=1,
    rating_max=5,
    user_template=Template(clauses=()),
    item_template=Template(clauses=()),
    pair_template=Template(clauses=()),
)


def dataset(
    item: list[int], genres: list[list[str] | None] | list[str | None], id_values: set[str] | None, least: int = 1
) -> Dataset:
    """Ratings of the given items by as many users."""
    n = len(item)
    ratings = Ratings(
        np.arange(n, dtype=np.int32), np.array(item, np.int32), np.full(n, 3, np.float32), np.zeros(n, np.int64)
    )
    users = pa.table({"id": np.arange(n)})
    items = pa.table({"id": np.arange(len(genres)), "genres": genres})
    shift = GenreShift("genres", frozenset(id_values), least) if id_values is not None else None
    return Dataset("test", SCHEMA, users, items, ratings, shift)


@given(st.lists(st.integers(0, 4), min_size=30, max_size=300), st.integers(0, 2**32), st.booleans())
def test_a_split_is_a_partition(item: list[int], seed: int, shifted: bool) -> None:
    """The five parts cover every rating once, in order, with sizes within one rating of their shares."""
    item = [*item, *[0] * 20, 4]
    data = dataset(item, [["A"], ["B"], ["A", "C"], ["B", "D"], ["C"]], {"A", "B"} if shifted else None)
    s = split(data, seed)
    parts = [s.train, s.selection, s.calibration, s.test, s.ood]
    assert np.sort(np.concatenate(parts)).tolist() == list(range(len(item)))
    assert all(p.dtype == np.int64 and (np.diff(p) > 0).all() for p in parts)
    assert s.ood.tolist() == ([i for i, x in enumerate(item) if x == 4] if shifted else [])
    n = len(item) - len(s.ood)
    for part, share in zip(parts, (0.8, 0.05, 0.05, 0.1), strict=False):
        assert abs(len(part) - share * n) < 1


def test_seeds() -> None:
    """One seed gives one split, another gives another, and the shifted part never moves."""
    data = dataset([0, 1] * 50, [["A"], ["B"]], {"A"})
    one, again, other = split(data, 1), split(data, 1), split(data, 2)
    assert one.train.tolist() == again.train.tolist()
    assert one.test.tolist() == again.test.tolist()
    assert one.train.tolist() != other.train.tolist()
    assert one.ood.tolist() == other.ood.tolist() == list(range(1, 100, 2))


def test_sizes_are_rounded_half_up() -> None:
    """30 ratings: the cuts 24, 25.5 and 27 become 24, 26 and 27."""
    s = split(dataset([0] * 30, [["A"]], None), 0)
    assert [len(p) for p in (s.train, s.selection, s.calibration, s.test)] == [24, 2, 1, 3]


def test_slices_by_hand() -> None:
    """Shifted items count for each of their values once; values of ID items and small values are no slices."""
    genres = [["A", "X"], ["X", "Y"], ["Y", "Y"], None, [], ["Z"], ["W", "X"]]
    item = [0] * 40 + [1, 1, 2, 2, 3, 4, 5, 6, 1]
    s = split(dataset(item, genres, {"A"}, least=2), 0)
    assert s.ood.tolist() == list(range(40, 49))
    assert {name: rows.tolist() for name, rows in s.slices.items()} == {
        "Y": [40, 41, 42, 43, 48],
        "X": [40, 41, 47, 48],
    }
    assert list(s.slices) == ["Y", "X"]
    assert list(split(dataset(item, genres, {"A"}, least=5), 0).slices) == ["Y"]
    assert list(split(dataset(item, genres, {"A"}, least=6), 0).slices) == []


def test_shift_on_a_single_category() -> None:
    """A category with one value per item shifts just as one with many; missing values are shifted."""
    s = split(dataset([0] * 30 + [1, 1, 2], ["A", "B", None], {"A"}), 0)
    assert s.ood.tolist() == [30, 31, 32]
    assert {name: rows.tolist() for name, rows in s.slices.items()} == {"B": [30, 31]}


@pytest.mark.parametrize(
    ("item", "id_values", "part"),
    [
        ([0] * 5 + [1], {"A"}, "selection"),
        ([0] * 8 + [1], {"A"}, "calibration"),
        ([0] * 30, {"A"}, "ood"),
        ([1], {"A"}, "train"),
    ],
)
def test_empty_parts_are_refused(item: list[int], id_values: set[str], part: str) -> None:
    """A dataset too small for a part, or with nothing shifted, is refused by the part's name."""
    with pytest.raises(DataError, match=f"test: the split leaves no rating for '{part}'"):
        split(dataset(item, [["A"], ["B"]], id_values), 0)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=80), st.integers(0, 99), st.data())
def test_item_folds_share_no_item(item: list[int], seed: int, draw: st.DataObject) -> None:
    """Folds hold out every training rating once, and no item is on both sides of a fold."""
    data = dataset([*item, 0, 1, 2], [["A"]] * 10, None)
    train = np.arange(0, len(item) + 3, dtype=np.int64)[draw.draw(st.integers(0, 1)) :]
    items = np.unique(data.ratings.item[train])
    k = draw.draw(st.integers(2, len(items)))
    held = []
    for fit, held_out in item_folds(data, train, k, seed):
        fitted, hidden = set(data.ratings.item[fit].tolist()), set(data.ratings.item[held_out].tolist())
        assert not fitted & hidden
        assert len(items) // k <= len(hidden) <= -(-len(items) // k)
        assert sorted([*fit.tolist(), *held_out.tolist()]) == train.tolist()
        held.append(held_out)
    assert len(held) == k
    assert sorted(np.concatenate(held).tolist()) == train.tolist()


def test_item_folds_need_items() -> None:
    """Fewer than two folds, or more than there are items, are refused."""
    data = dataset([0, 1, 2], [["A"]] * 3, None)
    for k in (0, 1, 4):
        with pytest.raises(DataError, match=f"3 items cannot be dealt into {k} folds; give 2 to 3"):
            list(item_folds(data, np.arange(3), k, 0))


def test_item_folds_follow_the_seed() -> None:
    """The seed decides which items are held out together."""
    data = dataset(list(range(50)), [["A"]] * 50, None)
    one, again, other = (next(item_folds(data, np.arange(50), 5, seed))[1].tolist() for seed in (1, 1, 2))
    assert one == again
    assert one != other


def test_genre_folds_by_hand() -> None:
    """Each ID genre in turn is held out with every training rating of its items, also of items with other genres."""
    data = dataset([0, 1, 2, 3, 0, 2], [["A"], ["B", "X"], ["A", "B"], ["X"]], {"B", "A"})
    train = np.array([0, 1, 2, 5], np.int64)
    folds = [(value, fit.tolist(), held.tolist()) for value, fit, held in genre_folds(data, train)]
    assert folds == [("A", [1], [0, 2, 5]), ("B", [0], [1, 2, 5])]


def test_genre_folds_that_make_no_fold() -> None:
    """A value that all or none of the training ratings have, and a dataset without shift, are refused."""
    with pytest.raises(DataError, match="no rating of the training part has 'B'"):
        list(genre_folds(dataset([0, 1], [["A"], ["X"]], {"A", "B"}), np.arange(2)))
    with pytest.raises(DataError, match="every rating of the training part has 'A'"):
        list(genre_folds(dataset([0, 0], [["A"]], {"A"}), np.arange(2)))
    with pytest.raises(DataError, match="has no shift"):
        list(genre_folds(dataset([0, 0], [["A"]], None), np.arange(2)))


def test_sampled() -> None:
    """A sample keeps so many ratings of each part, with the values they had, and slices inside the shift."""
    dataset = generate()
    parts = split(dataset, 0)
    smaller, kept = sampled(dataset, parts, 300, 0)
    assert [len(rows) for rows in (kept.train, kept.selection, kept.calibration, kept.test, kept.ood)] == [300] * 5
    assert sorted(np.concatenate([kept.train, kept.selection, kept.calibration, kept.test, kept.ood])) == list(
        range(1500)
    )
    whole = {
        (u, i): v for u, i, v in zip(dataset.ratings.user, dataset.ratings.item, dataset.ratings.value, strict=True)
    }
    trained = {(dataset.ratings.user[r], dataset.ratings.item[r]) for r in parts.train}
    for r in kept.train:
        pair = smaller.ratings.user[r], smaller.ratings.item[r]
        assert pair in trained
        assert whole[pair] == smaller.ratings.value[r]
    assert all(set(rows) <= set(kept.ood) for rows in kept.slices.values())
    assert set(kept.slices) <= set(parts.slices)
    assert sampled(dataset, parts, 300, 0)[0].ratings.value.tolist() == smaller.ratings.value.tolist()
