"""levi_serve.wire for schemas unlike the toy's; the usual ones are covered through the endpoints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from levi_serve.bundle.manifest import Manifest
from levi_serve.bundle.schema import ANSWER_FIELDS, Attribute, Entity, Schema, Template
from levi_serve.errors import Complaint, InvalidRequestError, UnknownIdError
from levi_serve.predictor import GivenPair, Scores
from levi_serve.store import Int8Array, State
from levi_serve.versions import load
from levi_serve.wire import Wire

NOTHING = Template(clauses=())


def wire(user: Entity, item: Entity) -> Wire:
    """The wire of a model over these entities."""
    schema = Schema(
        user=user,
        item=item,
        rating_min=0,
        rating_max=1,
        user_template=NOTHING,
        item_template=NOTHING,
        pair_template=NOTHING,
    )
    manifest = Manifest.model_construct(name="m", version=7, schema_=schema, layers=2)
    return Wire(manifest, GivenPair("u", 1), max_pairs=2)


def answers(wire: Wire, *pairs: GivenPair, state: tuple[Int8Array, Int8Array] | None = None) -> list[dict[str, object]]:
    """Some answers; users are new."""
    n = len(pairs)
    heads, watched = np.full((n, 2), [0.4, 0.6]), np.zeros((n, 4), np.float32)
    scores = Scores(np.full(n, 0.5), heads, np.full(n, 0.1), np.full(n, 0.2), np.ones(n, np.bool_), watched)
    trained = np.zeros(n, np.bool_), np.ones(n, np.bool_)
    return [json.loads(answer) for answer in wire.answers(pairs, scores, trained, state)]


def test_names_that_clash_with_python() -> None:
    """Entities and attributes may be called like Python's keywords and like methods of the libraries underneath."""
    names = ["class", "json", "copy", "schema", "model_dump", "keys", "pairs", "self", "none"]
    attributes = tuple(Attribute(name=name, kind="text") for name in names)
    odd = wire(Entity(name="import", id_type="string", attributes=attributes), Entity(name="items"))
    given = {name: f"the {name}" for name in names}
    (pair,) = odd.body(json.dumps({"pairs": [{"import": given, "items": 3}]}).encode())
    assert pair == (given, 3)
    assert odd.query(b"items=4&import=x") == ("x", 4)
    (answer,) = answers(odd, pair)
    assert answer["import"] == given
    assert (answer["items"], answer["cold_start"], answer["model"], answer["version"]) == (3, ["import"], "m", 7)


def test_entity_without_attributes() -> None:
    """Where a schema has no attributes only ids are taken, and an unknown one gets no impossible advice."""
    bare = wire(Entity(name="user", id_type="string"), Entity(name="item"))
    with pytest.raises(InvalidRequestError, match=r"pairs\[0\].item: should be an integer"):
        bare.body(b'{"pairs": [{"user": "u", "item": {"title": "x"}}]}')
    assert bare.unknown_id(UnknownIdError(1, 5), "").problem.detail == "There is no item 5 in the catalogue of m/7."


@pytest.mark.parametrize("name", sorted(ANSWER_FIELDS))
def test_names_of_answer_fields_are_taken(name: str) -> None:
    """An entity called like a field of the answer is refused where the schema is made, long before serving."""
    with pytest.raises(ValidationError, match=f"an entity cannot be named '{name}'"):
        wire(Entity(name="user", id_type="string"), Entity(name=name))


def test_answer_fields_are_all_there() -> None:
    """The answer has the two entities and exactly the fields that schemas keep free; `degraded` only where it is so."""
    plain = wire(Entity(name="user", id_type="string"), Entity(name="item"))
    degraded = np.array([State.DEGRADED, State.FOUND], np.int8), np.zeros(2, np.int8)
    first, second = answers(plain, GivenPair("u", 1), GivenPair("v", 2), state=degraded)
    assert set(first) == {"user", "item"} | ANSWER_FIELDS
    assert set(second) == set(first) - {"degraded"}


@pytest.fixture(scope="module")
def toy_wire(entity_toy_repository: Path) -> Wire:
    """The toy's, with lists as long as a server allows unless told otherwise."""
    version = load(entity_toy_repository, "levi", 1, "cpu", threads=1)
    return Wire(version.manifest, version.examples[0], max_pairs=1000)


KEYS = ",".join(f'"k{i}":0' for i in range(80_000))


@pytest.mark.parametrize(
    "content",
    [
        f"{{{KEYS}}}",
        f'{{"pairs":[{{{KEYS}}}]}}',
        f'{{"pairs":[{{"user":138,"movie":{{{KEYS}}}}}]}}',
        '{"pairs":[' + ",".join('{"a":1,"b":2,"c":3,"d":4}' for _ in range(1000)) + "]}",
    ],
)
def test_too_many_mistakes_are_not_listed(toy_wire: Wire, content: str) -> None:
    """A body of nothing but unknown names is refused as a whole: to name each would keep all other requests waiting."""
    with pytest.raises(InvalidRequestError) as caught:
        toy_wire.body(content.encode())
    complaint = Complaint("body", "has more than 5000 mistakes; /docs shows what is expected")
    assert caught.value.complaints == (complaint,)


def test_values_stop_at_the_first_wrong_one(toy_wire: Wire) -> None:
    """Of a list of values the first wrong one is named, and the rest not looked at, however many there are."""
    movie = {"genres": ["Drama", *range(200_000)]}
    with pytest.raises(InvalidRequestError) as caught:
        toy_wire.body(json.dumps({"pairs": [{"user": 138, "movie": movie}]}).encode())
    assert [complaint.where for complaint in caught.value.complaints] == ["pairs[0].movie.genres[1]"]
