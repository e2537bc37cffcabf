"""levi_serve.predictor with store and encoder, against the toy model computed in numpy."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from levi_serve.errors import ModelOutputError, UnknownIdError
from levi_serve.predictor import GivenPair, Pair, Prediction, new_entities
from levi_serve.store import Found
from levi_serve.versions import Version, load

from .toy import REFERENCE, Toy

NEW = {"title": "A new film", "genres": ("Drama", "War"), "year": 2026}
MIXED = [
    GivenPair(*pair)
    for pair in product([138, 7, 9, {"age": 30, "occupation": "doctor"}, {"age": 3}], [357, 50, 1001, NEW, {"year": 1}])
]


@pytest.fixture(scope="module")
def version(toy_repository: Path) -> Version:
    return load(toy_repository, "levi", 1, "cpu", threads=1)


def predict(version: Version, *pairs: GivenPair) -> list[Any]:
    return version.predictor.predict(pairs)


@pytest.mark.parametrize("pair", MIXED, ids=str)
def test_every_field_is_as_computed_by_hand(version: Version, toy: Toy, pair: GivenPair) -> None:
    """Known and new entities in every combination get the numbers that numpy gets from the definition."""
    (answer,) = predict(version, pair)
    heads = toy.heads(*pair)
    assert (answer.user, answer.item) == pair
    np.testing.assert_allclose(answer.heads, heads, atol=2e-6)
    assert answer.rating == pytest.approx(toy.rating(*pair), abs=2e-6)
    assert answer.disagreement == pytest.approx(heads.std(), abs=2e-6)
    assert answer.ood_score == np.searchsorted(REFERENCE, heads.std()) / len(REFERENCE)


@pytest.mark.parametrize(
    ("pair", "cold"),
    [
        (GivenPair(138, 357), []),
        (GivenPair(138, 1001), ["movie"]),
        (GivenPair({"age": 30}, 357), ["user"]),
        (GivenPair({"age": 30}, NEW), ["user", "movie"]),
    ],
)
def test_cold_start_names_what_was_not_trained_on(version: Version, pair: GivenPair, cold: list[str]) -> None:
    """An entity given by attributes, or in the catalogue without training, is listed; trained ones are not."""
    assert predict(version, pair)[0].cold_start == cold


def test_a_batch_changes_no_rating(version: Version) -> None:
    """A pair gets the same answer alone as among 25 others, to 1e-5."""
    together = predict(version, *MIXED)
    for pair, among in zip(MIXED, together, strict=True):
        (alone,) = predict(version, pair)
        assert among.rating == pytest.approx(alone.rating, abs=1e-5)
        assert (among.user, among.item, among.cold_start) == (alone.user, alone.item, alone.cold_start)


def test_a_known_entity_by_its_attributes(version: Version, toy: Toy) -> None:
    """Attributes of a catalogue movie without its id give its text's rating but not its id's embedding."""
    by_id, by_attributes = predict(version, GivenPair(138, 357), GivenPair(138, toy.movies[357]))
    assert by_attributes.cold_start == ["movie"]
    assert by_attributes.rating != by_id.rating
    assert by_attributes.rating == pytest.approx(toy.rating(138, toy.movies[357]), abs=2e-6)


def test_the_text_matters(version: Version) -> None:
    """Changing only a new movie's title changes its rating."""
    first, second = predict(version, *(GivenPair(138, {"title": title}) for title in ("Aaa", "Zzz")))
    assert first.rating != second.rating


def test_one_bad_row_fails_alone(version: Version, toy: Toy) -> None:
    """A pair whose row is not a number fails; its neighbours in the batch get their ratings."""
    if toy.views == "entity":
        fine, broken, also_fine = predict(version, GivenPair(138, 357), GivenPair(13, 357), GivenPair(7, 50))
        assert isinstance(broken, ModelOutputError)
        assert isinstance(fine, Prediction)
        assert also_fine.rating == pytest.approx(toy.rating(7, 50), abs=2e-6)


@pytest.mark.parametrize("unknown", [0, -1, 2**63 - 1, -(2**63), 137, 139])
def test_unknown_id_is_named(version: Version, unknown: int) -> None:
    """The error holds the id, its side and its place, whether it lies below, between or above the known ids."""
    with pytest.raises(UnknownIdError) as caught:
        predict(version, GivenPair(138, 357), GivenPair({"age": 3}, unknown))
    assert (caught.value.side, caught.value.id, caught.value.index) == (1, unknown, 1)


def test_equal_new_entities_are_encoded_once(version: Version) -> None:
    """Many users for one new movie cost one pass through the backbone; the side and 1 against 1.0 make a difference."""
    alike = Found({"name": "x"}, number=0, cold=True)
    assert len(new_entities([Pair(alike, alike), Pair(alike, alike)])) == 2
    pairs = [
        GivenPair(138, dict(NEW)),
        GivenPair(7, dict(NEW)),
        GivenPair({"age": 1}, {"year": 1}),
        GivenPair({"age": 1.0}, 50),
    ]
    assert len(new_entities(version.predictor.find(pairs))) == 4
