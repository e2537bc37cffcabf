"""levi_serve.bundle.prompt: the sentences, word for word."""

from __future__ import annotations

import pytest

from levi_serve.bundle.prompt import entity_sentence, pair_sentence
from levi_serve.bundle.schema import Attributes, Schema

USER_138 = {"id": 138, "occupation": "doctor", "zipcode": "53211"}
MOVIE_357 = {"id": 357, "title": "One Flew Over the Cuckoo's Nest (1975)"}


def test_the_papers_sentence(schema: Schema) -> None:
    """User 138 and movie 357 give the sentence that the paper prints, to the letter."""
    assert pair_sentence(schema, USER_138, MOVIE_357) == (
        "When the user id is 138, the user occupation is doctor, the user zipcode is 53211, the movie title is "
        "One Flew Over the Cuckoo's Nest (1975), and the movie id is 357, what can be the user rating on this movie?:"
    )


def test_a_pair_without_ids_or_values(schema: Schema) -> None:
    """What is missing has no clause, the last clause that is left gets the 'and', and a pair of nothing is named."""
    assert pair_sentence(schema, {"zipcode": "53211"}, {"title": "Alien"}) == (
        "When the user zipcode is 53211, and the movie title is Alien, what can be the user rating on this movie?:"
    )
    assert pair_sentence(schema, {}, {"id": 357}) == (
        "When the movie id is 357, what can be the user rating on this movie?:"
    )
    assert pair_sentence(schema, {}, {}) == "the user and the movie"


@pytest.mark.parametrize(
    ("side", "attributes", "sentence"),
    [
        (0, USER_138, "the user occupation is doctor, and the user zipcode is 53211"),
        (
            0,
            {"zipcode": "53211", "occupation": "doctor"},
            "the user occupation is doctor, and the user zipcode is 53211",
        ),
        (0, {"occupation": "doctor"}, "the user occupation is doctor"),
        (0, {"age": 30}, "the user"),
        (1, {}, "the movie"),
        (1, {"genres": ("Action", "Sci-Fi")}, "the movie genres is Action, Sci-Fi"),
        (1, {"year": 1975}, "the movie year is 1975"),
        (1, {"year": 1975.0}, "the movie year is 1975"),
        (1, {"year": 0.1}, "the movie year is 0.1"),
        (
            1,
            {"year": 1995, "title": "Café, {0} %s", "genres": ("Drama",)},
            "the movie title is Café, {0} %s, the movie genres is Drama, and the movie year is 1995",
        ),
    ],
)
def test_entity_sentences(schema: Schema, side: int, attributes: Attributes, sentence: str) -> None:
    """An entity's sentence follows the template's order, joins many values, and drops what it does not name."""
    assert entity_sentence(schema, side, attributes) == sentence
