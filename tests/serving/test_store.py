"""levi_serve.store with text ids; integer ids are covered through the predictor."""

from __future__ import annotations

import pytest

from levi_serve.errors import UnknownIdError
from levi_serve.predictor import GivenPair
from levi_serve.versions import Version, load

from .toy import Toy

USERS = {"ann": {"age": 30}, "bob": {"age": 40}, "zoë": {"age": 50}}
MOVIES = {"B00X": {"title": "One"}, "b00x": {"title": "Two"}}


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Version:
    folder = tmp_path_factory.mktemp("strings")
    Toy("entity", id_type="string", users=USERS, movies=MOVIES).write(folder)
    return load(folder, "levi", 1, "cpu", threads=1)


def test_text_ids_are_found_exactly(version: Version) -> None:
    """Ids that are text are told apart by case and found beyond ASCII."""
    toy = Toy("entity", id_type="string", users=USERS, movies=MOVIES)
    answers = version.predictor.predict([GivenPair("zoë", "B00X"), GivenPair("zoë", "b00x")])
    assert [a.rating for a in answers] == pytest.approx([toy.rating("zoë", m) for m in MOVIES], abs=2e-6)


@pytest.mark.parametrize("unknown", ["an", "anna", "ann ", "", "zo", "z" * 1000])
def test_a_part_of_an_id_is_not_the_id(version: Version, unknown: str) -> None:
    """A prefix or an extension of a known id is unknown, however long."""
    with pytest.raises(UnknownIdError):
        version.predictor.find([GivenPair(unknown, "B00X")])
