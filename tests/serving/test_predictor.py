"""levi_serve.predictor with store, encoder and lanes, against the toy model computed in numpy."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from levi_serve.encoder import NewEntity
from levi_serve.engine import Engine
from levi_serve.errors import ModelOutputError, UnknownIdError
from levi_serve.predictor import DECIMALS, GivenPair
from levi_serve.versions import Version, load

from .running import ask, engine_over
from .toy import REFERENCE, Toy

NEW = {"title": "A new film", "genres": ("Drama", "War"), "year": 2026}
MIXED = [
    GivenPair(*pair)
    for pair in product([138, 7, 9, {"age": 30, "occupation": "doctor"}, {"age": 3}], [357, 50, 1001, NEW, {"year": 1}])
]


@pytest.fixture(scope="module")
def version(toy_repository: Path) -> Version:
    return load(toy_repository, "levi", 1, "cpu", threads=1)


@pytest.fixture(scope="module")
def engine(version: Version) -> Iterator[Engine]:
    engine = engine_over(version)
    yield engine
    asyncio.run(engine.close())


def echoed(given: Any) -> Any:
    """What JSON makes of an entity as it was given."""
    return json.loads(json.dumps(given))


@pytest.mark.parametrize("pair", MIXED, ids=str)
def test_every_field_is_as_computed_by_hand(engine: Engine, toy: Toy, pair: GivenPair) -> None:
    """Known and new entities in every combination get the numbers that numpy gets from the definition."""
    (answer,) = ask(engine, pair)
    heads = toy.heads(*pair)
    assert (answer["user"], answer["movie"]) == (echoed(pair.user), echoed(pair.item))
    np.testing.assert_allclose(answer["heads"], heads, atol=2e-6)
    assert answer["rating"] == pytest.approx(toy.rating(*pair), abs=2e-6)
    assert answer["disagreement"] == pytest.approx(heads.std(), abs=2e-6)
    assert answer["ood_score"] == np.searchsorted(REFERENCE, heads.std()) / len(REFERENCE)
    assert "degraded" not in answer


def test_answers_show_no_more_digits_than_float32_has(engine: Engine) -> None:
    """Every number is rounded to the decimals that mean something."""
    for answer in ask(engine, *MIXED):
        numbers = [answer["rating"], *answer["heads"], answer["disagreement"], answer["ood_score"]]
        assert numbers == [round(number, DECIMALS) for number in numbers]


@pytest.mark.parametrize(
    ("pair", "cold"),
    [
        (GivenPair(138, 357), []),
        (GivenPair(138, 1001), ["movie"]),
        (GivenPair({"age": 30}, 357), ["user"]),
        (GivenPair({"age": 30}, NEW), ["user", "movie"]),
    ],
)
def test_cold_start_names_what_was_not_trained_on(engine: Engine, pair: GivenPair, cold: list[str]) -> None:
    """An entity given by attributes, or in the catalogue without training, is listed; trained ones are not."""
    assert ask(engine, pair)[0]["cold_start"] == cold


def test_a_batch_changes_no_rating(engine: Engine) -> None:
    """A pair gets the same answer alone as among 25 others, to 1e-5."""
    together = ask(engine, *MIXED)
    for pair, among in zip(MIXED, together, strict=True):
        (alone,) = ask(engine, pair)
        assert among["rating"] == pytest.approx(alone["rating"], abs=1e-5)
        assert [among[key] for key in ("user", "movie", "cold_start")] == [
            alone[key] for key in ("user", "movie", "cold_start")
        ]


def test_a_known_entity_by_its_attributes(engine: Engine, toy: Toy) -> None:
    """Attributes of a catalogue movie without its id give its text's rating but not its id's embedding."""
    by_id, by_attributes = ask(engine, GivenPair(138, 357), GivenPair(138, toy.movies[357]))
    assert by_attributes["cold_start"] == ["movie"]
    assert by_attributes["rating"] != by_id["rating"]
    assert by_attributes["rating"] == pytest.approx(toy.rating(138, toy.movies[357]), abs=2e-6)


def test_the_text_matters(engine: Engine) -> None:
    """Changing only a new movie's title changes its rating."""
    first, second = ask(engine, *(GivenPair(138, {"title": title}) for title in ("Aaa", "Zzz")))
    assert first["rating"] != second["rating"]


def test_one_bad_row_fails_alone(version: Version, toy: Toy) -> None:
    """A pair whose row is not a number fails; its neighbours in the batch get their ratings."""
    if toy.views != "entity":
        return
    engine, runs = engine_over(version), []
    run = engine._score._run
    engine._score._run = lambda pairs: (runs.append(len(pairs)), run(pairs))[1]

    async def together() -> list[Any]:
        pairs = (GivenPair(138, 357), GivenPair(13, 357), GivenPair(7, 50))
        return await asyncio.gather(*(engine.predict([pair]) for pair in pairs), return_exceptions=True)

    fine, broken, also_fine = asyncio.run(together())
    assert runs == [3]
    assert isinstance(broken, ModelOutputError)
    assert json.loads(fine[0])["rating"] == pytest.approx(toy.rating(138, 357), abs=2e-6)
    assert json.loads(also_fine[0])["rating"] == pytest.approx(toy.rating(7, 50), abs=2e-6)
    with pytest.raises(ModelOutputError):
        ask(engine, GivenPair(138, 357), GivenPair(13, 357))
    asyncio.run(engine.close())


@pytest.mark.parametrize("unknown", [0, -1, 2**63 - 1, -(2**63), 137, 139])
def test_unknown_id_is_named(engine: Engine, unknown: int) -> None:
    """The error holds the id and its side, whether it lies below, between or above the known ids."""
    with pytest.raises(UnknownIdError) as caught:
        ask(engine, GivenPair(138, 357), GivenPair({"age": 3}, unknown), GivenPair(4711, 4711))
    assert (caught.value.side, caught.value.id) == (1, unknown)


def test_equal_new_entities_are_encoded_once(entity_toy_repository: Path) -> None:
    """Many users for one new movie cost one pass through the backbone; the side and 1 against 1.0 make a difference."""
    version = load(entity_toy_repository, "levi", 1, "cpu", threads=1)
    encoded: list[NewEntity] = []

    class Counting:
        run = version.encoder.run

        @staticmethod
        def read(entities: Sequence[NewEntity]) -> Any:
            encoded.extend(entities)
            return version.encoder.read(entities)

    engine = engine_over(version, encoder=Counting)
    shuffled = dict(reversed(NEW.items()))
    pairs = [
        GivenPair(138, dict(NEW)),
        GivenPair(7, shuffled),
        GivenPair({"age": 1}, {"year": 1}),
        GivenPair({"age": 1.0}, 50),
        GivenPair({"age": 1}, 50),
    ]
    ask(engine, *pairs)
    assert encoded == [(1, NEW), (0, {"age": 1}), (1, {"year": 1}), (0, {"age": 1.0})]
    assert [type(attributes.get("age")) for _, attributes in encoded] == [type(None), int, type(None), float]
    asyncio.run(engine.close())
