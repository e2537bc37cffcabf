"""levi_serve.bundle.schema: codes by hand, and schemas that make no sense."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from levi_serve.bundle.schema import Attribute, Attributes, Entity, Schema, build_vocabulary, encode

USERS: list[Attributes] = [
    {"occupation": "doctor", "zipcode": "53211", "age": 17},
    {"occupation": "artist", "zipcode": "53299", "age": 18.0},
    {"zipcode": "1", "age": 35},
]


def test_vocabulary(schema: Schema) -> None:
    """Levels are the fitted entities' own, sorted: prefixes of categories, buckets of numbers, each of many values."""
    assert build_vocabulary(schema.user, USERS) == {
        "occupation": ["artist", "doctor"],
        "zipcode": ["1", "532"],
        "age": ["0", "1", "2"],
    }
    films: list[Attributes] = [{"title": "A", "genres": ("War", "Action", "Drama")}, {"genres": ("Action",)}]
    assert build_vocabulary(schema.item, films) == {"genres": ["Action", "War"]}  # Drama is beyond the two slots


def test_codes(schema: Schema) -> None:
    """Each level's code is its place in the vocabulary from 1; unknown and missing ones are 0."""
    vocabulary = build_vocabulary(schema.user, USERS)
    rows: list[Attributes] = [*USERS, {"occupation": "pilot", "zipcode": "999", "age": 34.9}, {}]
    assert encode(schema.user, vocabulary, rows).tolist() == [[2, 2, 1], [1, 2, 2], [0, 1, 3], [0, 0, 2], [0, 0, 0]]


def test_slots(schema: Schema) -> None:
    """A many-valued category fills its slots in order, leaves the others 0 and drops what exceeds them."""
    vocabulary = {"genres": ["Action", "Drama", "War"]}
    rows: list[Attributes] = [
        {"genres": ("War",)},
        {"genres": ("Drama", "Action", "War")},
        {"genres": ("Opera", "War")},
        {"genres": "War"},
    ]
    assert encode(schema.item, vocabulary, rows).tolist() == [[3, 0], [2, 1], [0, 3], [3, 0]]


@pytest.mark.parametrize(("age", "bucket"), [(17.99, "0"), (18, "1"), (34.99, "1"), (35, "2"), (-1e9, "0"), (1e9, "2")])
def test_edges(schema: Schema, age: float, bucket: str) -> None:
    """An edge belongs to the bucket above it, and the outer buckets have no end."""
    assert schema.user.attributes[2].levels(age) == [bucket]


@given(st.lists(st.floats(-100, 100), unique=True).map(sorted), st.floats(-200, 200))
def test_any_edges(edges: list[float], value: float) -> None:
    """A value's bucket is the number of edges that do not exceed it."""
    attribute = Attribute(name="x", kind="number", edges=tuple(edges))
    assert attribute.levels(value) == [str(sum(edge <= value for edge in edges))]


@given(st.lists(st.dictionaries(st.sampled_from(["occupation", "zipcode"]), st.text(max_size=5)), max_size=8))
def test_fitted_values_are_known(schema: Schema, rows: list[Attributes]) -> None:
    """Whatever was fitted has a code above 0 exactly where it has a value."""
    codes = encode(schema.user, build_vocabulary(schema.user, rows), rows)
    expected = [[("occupation" in row), ("zipcode" in row), False] for row in rows]
    assert (codes > 0).tolist() == np.reshape(expected, (len(rows), 3)).tolist()


@pytest.mark.parametrize(
    ("attribute", "says"),
    [
        ({"kind": "text", "embed": True}, "text cannot be embedded"),
        ({"kind": "number", "embed": True}, "needs bucket 'edges'"),
        ({"kind": "number", "edges": (2.0, 1.0)}, "'edges' must ascend"),
        ({"kind": "number", "edges": (1.0, 1.0)}, "'edges' must ascend"),
        ({"kind": "number", "edges": (float("nan"),)}, "finite number"),
        ({"kind": "number", "many": True}, "belong to categories"),
        ({"kind": "text", "prefix": 3}, "belong to categories"),
        ({"kind": "category", "slots": 2}, "'slots' belongs to a category with many values"),
        ({"kind": "category", "many": True, "slots": 65}, "less than or equal to 64"),
        ({"kind": "category", "prefix": 0}, "greater than or equal to 1"),
        ({"kind": "colour"}, "'category', 'number' or 'text'"),
        ({"kind": "text", "color": "red"}, "Extra inputs"),
        ({"kind": "text", "name": "Title"}, "String should match pattern"),
    ],
)
def test_attributes_that_make_no_sense(attribute: dict[str, Any], says: str) -> None:
    """An attribute whose settings contradict each other is refused with the reason."""
    with pytest.raises(ValidationError, match=says):
        Attribute(**{"name": "x", **attribute})


@pytest.mark.parametrize("names", [("a", "a"), ("id",)])
def test_attribute_names_differ(names: tuple[str, ...]) -> None:
    """Two attributes of one name, or one called id, are refused."""
    with pytest.raises(ValidationError, match="must differ from each other and from 'id'"):
        Entity(name="user", attributes=tuple(Attribute(name=name, kind="text") for name in names))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"item": Entity(name="user")}, "need different names"),
        ({"rating_min": 5}, "rating_min must be below rating_max"),
        ({"item": Entity(name="attributes")}, "an entity cannot be named 'attributes'"),
        ({"user": Entity(name="attributes")}, "an entity cannot be named 'attributes'"),
        ({"user": Entity(name="items")}, "an entity cannot be named 'items'"),
        ({"user": Entity(name="k")}, "an entity cannot be named 'k'"),
        ({"user": Entity(name="exclude_rated")}, "an entity cannot be named 'exclude_rated'"),
        ({"user": Entity(name="movies")}, "the user cannot be named 'movies': lists of items have that name"),
        ({"user_template": {"clauses": ["user.shoe_size"]}}, "'user.shoe_size' names no attribute"),
        ({"pair_template": {"clauses": ["title"]}}, "'title' names no attribute"),
    ],
)
def test_schemas_that_make_no_sense(schema: Schema, changes: dict[str, Any], says: str) -> None:
    """A schema whose parts contradict each other is refused with the reason."""
    with pytest.raises(ValidationError, match=says):
        Schema(**{**schema.model_dump(), **changes})


def test_schema_survives_json(schema: Schema) -> None:
    """A schema read back from the manifest is the one that was written."""
    assert Schema.model_validate_json(schema.model_dump_json()) == schema
