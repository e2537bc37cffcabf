"""levi_serve.store over the toy's tables, with ids of either type."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from levi_serve.errors import UnknownIdError
from levi_serve.predictor import GivenPair
from levi_serve.store import State, TableStore
from levi_serve.versions import Version, load

from .running import ask, engine_over
from .toy import Toy

USERS = {"ann": {"age": 30}, "bob": {"age": 40}, "zoë": {"age": 50}}
MOVIES = {"B00X": {"title": "One"}, "b00x": {"title": "Two"}}


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Version:
    folder = tmp_path_factory.mktemp("strings")
    Toy("entity", id_type="string", users=USERS, movies=MOVIES).write(folder)
    return load(folder, "levi", 1, "cpu", threads=1)


def test_a_batch_is_looked_up_at_once(toy: Toy, toy_repository: Path) -> None:
    """Known ids get their rows, flags and attributes in the order asked, repeated ones too; unknown ones get the
    unknown entity's row, are not trained, and say so. Fetching gives the same.
    """
    store = TableStore(*load(toy_repository, "levi", 1, "cpu", threads=1).tables)
    asked = [138, 4711, 9, 138, -5], [1001, 357, 4711, 50, 357]
    for sides in (store.at_hand(*asked), asyncio.run(store.fetch(*asked))):
        for number, (side, ids) in enumerate(zip(sides, asked, strict=True)):
            known = [i in toy.catalogues[number] for i in ids]
            rows = [toy.row(number, i if found else {}) for i, found in zip(ids, known, strict=True)]
            assert side.rows.dtype == np.float16
            np.testing.assert_array_equal(side.rows, np.stack(rows))
            assert side.state.tolist() == [State.FOUND if found else State.UNKNOWN for found in known]
            assert side.trained.tolist() == [found and i != 1001 for i, found in zip(ids, known, strict=True)]
            for place in np.flatnonzero(known):
                assert side.attributes(place) == toy.catalogues[number][ids[place]]
    assert asyncio.run(store.recall([b"x", b"y"])) == [None, None]


def test_no_id_at_all(version: Version, toy_repository: Path) -> None:
    """A side whose entities are all new asks for nothing and gets nothing, whatever the type of the ids."""
    for store in (TableStore(*version.tables), TableStore(*load(toy_repository, "levi", 1, "cpu", threads=1).tables)):
        for side in store.at_hand([], []):
            assert len(side.rows) == len(side.trained) == len(side.state) == 0


def test_text_ids_are_found_exactly(version: Version) -> None:
    """Ids that are text are told apart by case and found beyond ASCII."""
    toy = Toy("entity", id_type="string", users=USERS, movies=MOVIES)
    answers = ask(engine_over(version), GivenPair("zoë", "B00X"), GivenPair("zoë", "b00x"))
    assert [a["rating"] for a in answers] == pytest.approx([toy.rating("zoë", m) for m in MOVIES], abs=2e-6)


@pytest.mark.parametrize("unknown", ["an", "anna", "ann ", "ann\0", "", "zo", "z" * 1000])
def test_a_part_of_an_id_is_not_the_id(version: Version, unknown: str) -> None:
    """A prefix or an extension of a known id is unknown, however long."""
    users, items = TableStore(*version.tables).at_hand(["ann", unknown], ["B00X", unknown])
    assert users.state.tolist() == items.state.tolist() == [State.FOUND, State.UNKNOWN]
    with pytest.raises(UnknownIdError):
        ask(engine_over(version), GivenPair(unknown, "B00X"))
