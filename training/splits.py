"""Which ratings are fitted, chosen on, calibrated on and tested on; and folds inside the fitted ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from levi_serve.bundle import AnyArray, Int64Array
from training.datasets.dataset import Dataset, GivenShift, Ratings
from training.errors import DataError

PARTS = ("train", "selection", "calibration", "test", "ood")
_ID_PARTS = PARTS[:4]
CUTS = (0, 80, 85, 90, 100)  # percent of the ID ratings


@dataclass(frozen=True)
class Split:
    """Row numbers of `dataset.ratings`, ascending; the five parts are disjoint and cover all ratings."""

    train: Int64Array
    selection: Int64Array
    calibration: Int64Array
    """For the monitor's calibration only."""
    test: Int64Array
    """For the evaluation only."""
    ood: Int64Array
    """The shifted ratings, for the evaluation only; empty without a shift."""
    slices: dict[str, Int64Array]
    """The part of `ood` whose items carry a value, for each value with enough ratings; most ratings first."""


def split(dataset: Dataset, seed: int) -> Split:
    """ID ratings at random into 80 % train, 5 % selection, 5 % calibration, 10 % test; the others are `ood`.

    Part k of n ratings ends at its cumulative share of n, rounded half up: sizes differ from the shares by less than
    one rating. A dataset that brings its parts along is split as it says. Raises DataError if a part would be empty.
    """
    if dataset.part is not None:
        given = {name: np.flatnonzero(dataset.part == k) for k, name in enumerate(PARTS)}
        return Split(**given, slices=_slices(dataset, given["ood"]))
    shift = dataset.shift
    in_distribution = shift.of == 0 if isinstance(shift, GivenShift) else id_items(dataset)[dataset.ratings.item]
    id_rows = np.flatnonzero(in_distribution)
    ood = np.flatnonzero(~in_distribution)
    n = len(id_rows)
    cuts = [(n * cut + 50) // 100 for cut in CUTS]
    order = np.random.default_rng(seed).permutation(id_rows)
    parts = {name: np.sort(order[start:end]) for name, start, end in zip(_ID_PARTS, cuts[:-1], cuts[1:], strict=True)}
    for name, rows in (*parts.items(), *([("ood", ood)] if dataset.shift else [])):
        if not len(rows):
            raise DataError(
                f"{dataset.name}: the split leaves no rating for '{name}' ({n} ID and {len(ood)} OOD ratings); "
                "give more ratings or another shift"
            )
    return Split(**parts, ood=ood, slices=_slices(dataset, ood))


def sampled(dataset: Dataset, parts: Split, most: int, seed: int) -> tuple[Dataset, Split]:
    """The dataset with at most `most` random ratings of each part, and its split; slices keep their names."""
    rng = np.random.default_rng(seed)
    kept = {name: np.sort(rng.permutation(getattr(parts, name))[:most]) for name in PARTS}
    rows = np.sort(np.concatenate(list(kept.values())))
    place = {name: np.searchsorted(rows, chosen) for name, chosen in kept.items()}
    slices = {
        name: np.searchsorted(rows, chosen)
        for name, members in parts.slices.items()
        if len(chosen := np.intersect1d(members, kept["ood"]))
    }
    r = dataset.ratings
    ratings = Ratings(r.user[rows], r.item[rows], r.value[rows], r.time[rows])
    shift = dataset.shift
    if isinstance(shift, GivenShift):
        shift = replace(shift, of=shift.of[rows])
    return replace(dataset, ratings=ratings, shift=shift, part=None), Split(**place, slices=slices)


def item_folds(dataset: Dataset, train: Int64Array, k: int, seed: int) -> Iterator[tuple[Int64Array, Int64Array]]:
    """K pairs (fit, held out) of `train` such that no item is in both; every item is held out once.

    Items are dealt at random, so that folds have equally many items (give or take one), not ratings. Raises DataError
    unless there are at least k items and 2 folds.
    """
    items = np.unique(dataset.ratings.item[train])
    if not 2 <= k <= len(items):
        raise DataError(f"{dataset.name}: {len(items)} items cannot be dealt into {k} folds; give 2 to {len(items)}")
    fold_of = np.zeros(len(dataset.items), np.int64)
    fold_of[np.random.default_rng(seed).permutation(items)] = np.arange(len(items)) % k
    fold = fold_of[dataset.ratings.item[train]]
    for i in range(k):
        yield train[fold != i], train[fold == i]


def genre_folds(dataset: Dataset, train: Int64Array) -> Iterator[tuple[str, Int64Array, Int64Array]]:
    """For every ID value of the shift in alphabetical order: (value, fit, held out).

    Held out are the ratings of `train` whose items have the value, fitted all others. Raises DataError if there is no
    shift or one of the two would be empty.
    """
    if dataset.shift is None or isinstance(dataset.shift, GivenShift):
        raise DataError(f"{dataset.name} has no shift whose values could be held out; use item folds")
    rows, values = _values(dataset.items[dataset.shift.attribute])
    for value in sorted(dataset.shift.id_values):
        having = np.zeros(len(dataset.items), bool)
        having[rows[pc.equal(values, value).to_numpy(zero_copy_only=False)]] = True
        held_out = having[dataset.ratings.item[train]]
        if held_out.all() or not held_out.any():
            share = "every" if held_out.any() else "no"
            raise DataError(f"{dataset.name}: {share} rating of the training part has '{value}'; it makes no fold")
        yield value, train[~held_out], train[held_out]


def id_items(dataset: Dataset) -> AnyArray:
    """Which items are in distribution [items]."""
    if dataset.shift is None or isinstance(dataset.shift, GivenShift):
        return np.ones(len(dataset.items), bool)
    rows, values = _values(dataset.items[dataset.shift.attribute])
    is_id = np.zeros(len(dataset.items), bool)
    wanted = pa.array(sorted(dataset.shift.id_values), pa.string())
    is_id[rows[pc.is_in(values, wanted).to_numpy(zero_copy_only=False)]] = True
    return is_id


def _slices(dataset: Dataset, ood: Int64Array) -> dict[str, Int64Array]:
    if dataset.shift is None:
        return {}
    if isinstance(dataset.shift, GivenShift):
        parts = {name: ood[dataset.shift.of[ood] == k] for k, name in enumerate(dataset.shift.names, start=1)}
        return {name: rows for name, rows in parts.items() if len(rows) >= dataset.shift.min_ratings}
    item, items = dataset.ratings.item[ood], len(dataset.items)
    rows, values = _values(dataset.items[dataset.shift.attribute])
    coded = values.dictionary_encode()
    names = coded.dictionary.to_pylist()
    # Each (value, item) once, even if the source repeats a value.
    codes, rows = np.divmod(np.unique(coded.indices.to_numpy().astype(np.int64) * items + rows), items)
    counts = np.bincount(codes, weights=np.bincount(item, minlength=items)[rows], minlength=len(names))
    found = {}
    for code in sorted(np.flatnonzero(counts >= dataset.shift.min_ratings), key=lambda c: (-counts[c], names[c])):
        having = np.zeros(items, bool)
        having[rows[codes == code]] = True
        found[names[code]] = ood[having[item]]
    return found


def _values(column: pa.ChunkedArray) -> tuple[Int64Array, pa.Array]:
    """Every (row, value) of a category column, with one value per row or many."""
    array = column.combine_chunks()
    if pa.types.is_list(array.type):
        return pc.list_parent_indices(array).to_numpy().astype(np.int64), array.flatten()
    present = pc.is_valid(array)
    return np.flatnonzero(present.to_numpy(zero_copy_only=False)), array.filter(present)
