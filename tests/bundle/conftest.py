"""A small schema that the bundle's tests share."""

from __future__ import annotations

import pytest

from levi_serve.bundle.schema import Attribute, Entity, Schema, Template


@pytest.fixture(scope="session")
def schema() -> Schema:
    """Users by job, zip code and age, films by title and genres: every kind of attribute, embedded or not."""
    return Schema(
        user=Entity(
            name="user",
            attributes=(
                Attribute(name="occupation", kind="category", embed=True),
                Attribute(name="zipcode", kind="category", embed=True, prefix=3),
                Attribute(name="age", kind="number", embed=True, edges=(18.0, 35.0)),
            ),
        ),
        item=Entity(
            name="movie",
            attributes=(
                Attribute(name="title", kind="text"),
                Attribute(name="year", kind="number"),
                Attribute(name="genres", kind="category", many=True, slots=2, embed=True),
            ),
        ),
        rating_min=1,
        rating_max=5,
        user_template=Template(clauses=("user.occupation", "user.zipcode")),
        item_template=Template(clauses=("movie.title", "movie.genres", "movie.year")),
        pair_template=Template(
            clauses=("user.id", "user.occupation", "user.zipcode", "movie.title", "movie.id"),
            opening="When ",
            closing=", what can be the user rating on this movie?:",
        ),
    )
