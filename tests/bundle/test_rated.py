"""levi_serve.bundle.rated: the sparse table of training ratings, written and read."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from levi_serve.bundle.rated import Rated, write_rated

USERS, ITEMS = 5, 40


def write(folder: Path, pairs: list[tuple[int, int]]) -> Rated:
    user, item = np.array(pairs, np.int64).reshape(-1, 2).T
    write_rated(folder, USERS, user, item)
    return Rated(folder)


def test_by_hand(tmp_path: Path) -> None:
    """Ratings in any order become ascending items per user; a user without ratings has an empty list."""
    rated = write(tmp_path, [(3, 7), (0, 9), (3, 2), (3, 39), (0, 0)])
    assert np.load(tmp_path / "rated.offsets.npy").tolist() == [0, 2, 2, 2, 5, 5]
    assert np.load(tmp_path / "rated.items.npy").tolist() == [0, 9, 2, 7, 39]
    assert [rated.items_of(user).tolist() for user in range(len(rated))] == [[0, 9], [], [], [2, 7, 39], []]


@given(st.sets(st.tuples(st.integers(0, USERS - 1), st.integers(0, ITEMS - 1))))
def test_any_ratings(pairs: set[tuple[int, int]]) -> None:
    """Every user has exactly his own items, none at all included."""
    with tempfile.TemporaryDirectory() as folder:
        rated = write(Path(folder), sorted(pairs, key=hash))
        assert len(rated) == USERS
        for user in range(USERS):
            assert rated.items_of(user).tolist() == sorted(i for u, i in pairs if u == user)


def test_it_is_memory_mapped(tmp_path: Path) -> None:
    """The table stays on disk in the types that its description names, and cannot be written to."""
    rated = write(tmp_path, [(0, 1)])
    assert (rated.offsets.dtype, rated.items.dtype) == (np.int64, np.int32)
    assert all(isinstance(array, np.memmap) for array in (rated.offsets, rated.items))
    with pytest.raises(ValueError, match="read-only"):
        rated.items_of(0)[0] = 2
