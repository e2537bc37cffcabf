"""training.merge: what becomes of every kind of event, told by hand on the tiny tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from levi_serve.bundle.feedback import Event, encode_event
from training.datasets import load
from training.datasets.dataset import Dataset, attributes
from training.datasets.snapshot import batches, load_snapshot, write_snapshot
from training.errors import DataError
from training.merge import Merged, merge, part_of
from training.splits import PARTS, Split, split


@pytest.fixture(scope="module")
def parts(base: Dataset) -> Split:
    return split(base, 0)


def night(path: Path, events: Sequence[dict[str, Any]]) -> Path:
    filled = ({"id": str(k), "rating": 4.0, "time": 10.0, "received": 1e9, **one} for k, one in enumerate(events))
    path.write_bytes(b"".join(encode_event(Event(**one)) for one in filled))
    return path


def ratings_of(merged: Merged, user: int, item: int) -> list[tuple[float, int, str, int]]:
    """Value, time, part and night of a pair, by ids."""
    data, r = merged.dataset, merged.dataset.ratings
    users, items = data.users["id"].to_pylist(), data.items["id"].to_pylist()
    rows = np.flatnonzero((r.user == users.index(user)) & (r.item == items.index(item)))
    assert data.part is not None
    return [(float(r.value[k]), int(r.time[k]), PARTS[data.part[k]], int(merged.batch[k])) for k in rows]


def pair(base: Dataset, row: int) -> dict[str, int]:
    """User and item of a base rating, by ids."""
    r = base.ratings
    return {"user": base.users["id"][int(r.user[row])].as_py(), "item": base.items["id"][int(r.item[row])].as_py()}


def unrated(base: Dataset, count: int) -> list[dict[str, int]]:
    """Pairs without a rating."""
    rated = np.zeros((len(base.users), len(base.items)), np.bool_)
    rated[base.ratings.user, base.ratings.item] = True
    users, items = base.users["id"].to_pylist(), base.items["id"].to_pylist()
    return [{"user": users[u], "item": items[i]} for u, i in np.argwhere(~rated)[:count]]


def test_nothing_new(base: Dataset, parts: Split) -> None:
    """Without events, the base data with its split."""
    merged = merge(base, parts, {})
    again = split(merged.dataset, seed=7)
    for name in PARTS:
        np.testing.assert_array_equal(getattr(again, name), getattr(parts, name))
    assert again.slices.keys() == parts.slices.keys()
    assert not merged.batch.any()


def test_a_new_pair(base: Dataset, parts: Split, tmp_path: Path) -> None:
    """It gets the part that its ids say, the night that brought it, and of several ratings the newest one."""
    (new,) = unrated(base, 1)
    one = night(tmp_path / "1", [{**new, "rating": 2.0, "time": 50.0}, {**new, "rating": 3.0, "time": 40.0}])
    two = night(tmp_path / "2", [{**new, "rating": 5.0, "time": 45.0}])
    merged = merge(base, parts, {1: one, 2: two})
    assert ratings_of(merged, new["user"], new["item"]) == [(2.0, 50, PARTS[part_of(new["user"], new["item"])], 1)]
    assert (merged.counts.merged, merged.counts.rated_again) == (3, 2)
    assert len(merged.dataset.ratings) == len(base.ratings) + 1


def test_rated_again(base: Dataset, parts: Split, tmp_path: Path) -> None:
    """A held-out pair of the base data stays held out, whatever is said of it later."""
    for name in ("train", "test", "ood"):
        row = int(getattr(parts, name)[0])
        old = float(base.ratings.value[row])
        said = pair(base, row)
        merged = merge(base, parts, {3: night(tmp_path / name, [{**said, "rating": 6 - old, "time": 99.0}])})
        assert ratings_of(merged, **said) == [(6 - old, 99, name, 0)]
        assert len(merged.dataset.ratings) == len(base.ratings)


def test_shares(base: Dataset) -> None:
    """New pairs are dealt as the split deals: 80, 5, 5 and 10 %, never to ood; a pair always to the same part."""
    drawn = np.bincount([part_of(u, i) for u in range(100) for i in range(100)], minlength=len(PARTS)) / 10_000
    np.testing.assert_allclose(drawn, [0.8, 0.05, 0.05, 0.1, 0.0], atol=0.01)
    assert part_of(1, 11) == part_of(1, 11)


def test_unknown_ids(base: Dataset, parts: Split, tmp_path: Path) -> None:
    """With attributes an id gets a row, once; without, its events wait, and count when an event describes it."""
    user, movie = base.users["id"][0].as_py(), base.items["id"][0].as_py()
    described = {"movie": {"title": "a new star (2026)", "genres": ["Drama"], "year": 2026.0}}
    waiting = [{"user": user, "item": 9001}, {"user": 9002, "item": movie}]
    merged = merge(base, parts, {1: night(tmp_path / "1", waiting)})
    assert (merged.counts.undescribed, merged.counts.merged, len(merged.dataset.items)) == (2, 0, len(base.items))
    events = [{"user": user, "item": 9001, "attributes": described}, {"user": user, "item": 9001, "time": 11.0}]
    merged = merge(base, parts, {1: night(tmp_path / "2", events)})
    assert merged.counts.new_entities == (0, 1)
    assert (merged.counts.undescribed, merged.counts.merged) == (0, 2)
    data = merged.dataset
    assert data.items["id"][-1].as_py() == 9001
    assert attributes(data.items, data.schema.item, [len(data.items) - 1]) == [
        {"title": "a new star (2026)", "genres": ("Drama",), "year": 2026}
    ]
    assert [time for _, time, _, _ in ratings_of(merged, user, 9001)] == [11]


@pytest.mark.parametrize(
    "attributes", [{"title": 3}, {"genres": "Drama"}, {"year": True}, {"stars": 3}, {"title": ""}, {"year": 3.5}]
)
def test_attributes_that_are_none(base: Dataset, parts: Split, tmp_path: Path, attributes: dict[str, Any]) -> None:
    """What the table cannot hold describes nothing."""
    event = {"user": base.users["id"][0].as_py(), "item": 9001, "attributes": {"movie": attributes}}
    merged = merge(base, parts, {1: night(tmp_path / "1", [event])})
    assert (merged.counts.undescribed, merged.counts.new_entities) == (1, (0, 0))


def test_bad_ratings_and_clocks(base: Dataset, parts: Split, tmp_path: Path) -> None:
    """Out of range: left out. From the future: as old as when it was received. From long ago: as it says."""
    a, b, c = unrated(base, 3)
    events = [{**a, "rating": 5.5}, {**b, "time": 2e9, "received": 1e9}, {**c, "time": -3e8}]
    merged = merge(base, parts, {1: night(tmp_path / "1", events)})
    assert (merged.counts.out_of_range, merged.counts.future, merged.counts.merged) == (1, 1, 2)
    assert ratings_of(merged, a["user"], a["item"]) == []
    assert ratings_of(merged, b["user"], b["item"])[0][1] == 1e9
    assert ratings_of(merged, c["user"], c["item"])[0][1] == -3e8


def test_snapshot(base: Dataset, parts: Split, tmp_path: Path) -> None:
    """A night's data comes back from its folder; a folder that is not whole is named."""
    merged = merge(base, parts, {4: night(tmp_path / "1", unrated(base, 5))})
    folder = tmp_path / "data"
    folder.mkdir()
    write_snapshot(folder, merged.dataset, merged.batch)
    found = load("snapshot", folder)
    assert (found.schema, found.shift, found.licence) == (base.schema, base.shift, base.licence)
    assert found.items.equals(merged.dataset.items)
    for column in ("user", "item", "value", "time"):
        np.testing.assert_array_equal(getattr(found.ratings, column), getattr(merged.dataset.ratings, column))
    assert found.part is not None
    assert merged.dataset.part is not None
    np.testing.assert_array_equal(found.part, merged.dataset.part)
    np.testing.assert_array_equal(batches(folder), merged.batch)
    (folder / "items.parquet").unlink()
    with pytest.raises(DataError, match="is no snapshot"):
        load_snapshot(folder)
