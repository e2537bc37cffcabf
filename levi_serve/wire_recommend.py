"""The HTTP shapes of /recommend and /rank for one schema, made of the same types as those of /predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Annotated, Any, NamedTuple, NotRequired, Self

import orjson
from pydantic import Field, TypeAdapter

from levi_serve.bundle.manifest import Manifest
from levi_serve.errors import Complaint, InvalidRequestError, UnknownIdError
from levi_serve.predictor import GivenPair
from levi_serve.problems import ProblemError
from levi_serve.shapes import (
    Names,
    Reader,
    answer_fields,
    count_type,
    example_attributes,
    example_of,
    given_type,
    id_from,
    id_type,
    integer_from,
    json_content,
    json_schemas,
    names_of,
    record,
    stored_type,
    truth_from,
    truth_type,
)
from levi_serve.store import Given
from levi_serve.wire import unknown_id_problem

_DEFAULT_K = 10
_UNIQUE = Field(json_schema_extra={"uniqueItems": True})


class Wish(NamedTuple):
    """What /recommend is asked for."""

    user: Given
    k: int
    exclude_rated: bool


class Candidates(NamedTuple):
    """What /rank is asked for."""

    user: Given
    items: list[Given]


class RecommendWire:
    """Parses these requests and shapes their answers for one model version."""

    def __init__(self, manifest: Manifest, example: GivenPair, max_k: int, max_pairs: int) -> None:
        """`example` is a pair that the model knows, shown in the documentation."""
        self._manifest = manifest
        self._example = example
        user, item = self._entities = manifest.schema_.entities
        self._plural = f"{item.name}s"
        self._default_k = min(_DEFAULT_K, max_k)
        self._choices: dict[str, Any] = {
            "k": count_type(max_k, self._default_k, f"how many {self._plural}"),
            "exclude_rated": truth_type(f"leave out what the {user.name} rated in training"),
        }
        choices = {name: NotRequired[kind] for name, kind in self._choices.items()}
        names: Names = {user.name: names_of(user), **{name: {} for name in choices}}
        self._query = Reader(record("RecommendQuery", {user.name: id_type(user), **choices}), names)
        self._wish = Reader(record("RecommendRequest", {user.name: given_type(user), **choices}), names)
        one = given_type(item)
        items = Annotated[list[one], Field(min_length=1, max_length=max_pairs), _UNIQUE]  # type: ignore[valid-type]
        self._candidates = Reader(
            record("RankRequest", {user.name: given_type(user), self._plural: items}),
            {user.name: names_of(user), self._plural: names_of(item)},
        )
        prediction = {user.name: given_type(user), item.name: given_type(item), **answer_fields(manifest)}
        recommendation = record("Recommendation", {**prediction, "attributes": stored_type(item)})
        self._recommended = self._answer_type("Recommendations", recommendation)
        self._ranked = self._answer_type("Ranking", record("Prediction", prediction))

    def again(self, manifest: Manifest, example: GivenPair) -> Self | None:
        """The same for another version; None if its types are not the same. Making them takes 20 ms of everybody's."""
        if (manifest.schema_, manifest.layers) != (self._manifest.schema_, self._manifest.layers):
            return None
        other = copy(self)
        other._manifest, other._example = manifest, example
        return other

    def query(self, query: bytes) -> Wish:
        """The wish in a query string.

        Raises:
            InvalidRequestError: a parameter is missing, repeated, unknown or wrong.

        """
        user = self._entities[0]
        read = {user.name: id_from(user), "k": integer_from, "exclude_rated": truth_from}
        return self._as_wish(self._query.query(query, read))

    def body(self, body: bytes) -> Wish:
        """The wish in a JSON body.

        Raises:
            MalformedJsonError: it is not JSON.
            InvalidRequestError: it is no wish as the schema has them.

        """
        return self._as_wish(self._wish.json(body))

    def candidates(self, body: bytes) -> Candidates:
        """The user and the items in a JSON body.

        Raises:
            MalformedJsonError: it is not JSON.
            InvalidRequestError: it is not what the schema has, or an item is there twice.

        """
        found = self._candidates.json(body)
        items = found[self._plural]
        first: dict[Any, int] = {}
        for place, item in enumerate(items):
            before = first.setdefault(frozenset(item.items()) if isinstance(item, Mapping) else item, place)
            if before != place:
                where = f"{self._plural}[{place}]"
                raise InvalidRequestError([Complaint(where, f"is the same as {self._plural}[{before}]")])
        return Candidates(found[self._entities[0].name], items)

    def answer(self, user: Given, predictions: Sequence[bytes]) -> bytes:
        """Predictions, each a JSON object, best first, as they are sent."""
        head = {self._entities[0].name: user, "model": self._manifest.name, "version": self._manifest.version}
        return orjson.dumps(head)[:-1] + b',"items":[' + b",".join(predictions) + b"]}"

    def unknown_user(self, error: UnknownIdError) -> ProblemError:
        """A 404 of /recommend."""
        user = self._entities[0]
        return unknown_id_problem(self._manifest, error, user.name, "/recommend", {user.name: example_attributes(user)})

    def unknown_candidate(self, error: UnknownIdError, candidates: Candidates) -> ProblemError:
        """A 404 of /rank, for the user or an item."""
        known: list[Any] = [self._example.user, self._example.item]
        known[error.side] = example_attributes(self._entities[error.side])
        example = {self._entities[0].name: known[0], self._plural: [known[1]]}
        where = f"{self._plural}[{candidates.items.index(error.id)}]" if error.side else self._entities[0].name
        return unknown_id_problem(self._manifest, error, where, "/rank", example)

    def describe(self, document: dict[str, Any]) -> None:
        """Complete an OpenAPI document's /recommend and /rank with this schema's parameters, bodies and answers."""
        user = self._entities[0]
        kinds = {user.name: id_type(user), **self._choices}
        bodies = [self._wish.adapter, self._candidates.adapter, self._recommended, self._ranked]
        (wish, candidates, recommended, ranked, *parameters), components = json_schemas(
            [*bodies, *(TypeAdapter[Any](kind) for kind in kinds.values())]
        )
        get, post = document["paths"]["/recommend"]["get"], document["paths"]["/recommend"]["post"]
        rank = document["paths"]["/rank"]["post"]
        examples = {user.name: example_of(self._example.user)}
        get["parameters"] = [
            {"name": name, "in": "query", "required": name == user.name, "schema": schema, **examples.get(name, {})}
            for name, schema in zip(kinds, parameters, strict=True)
        ]
        new = example_attributes(user) or self._example.user
        known = {user.name: self._example.user, self._plural: [self._example.item]}
        for request, body, example in ((post, wish, {user.name: new}), (rank, candidates, known)):
            request["requestBody"] = {"required": True, "content": json_content(body, example)}
        for request, answer in ((get, recommended), (post, recommended), (rank, ranked)):
            request["responses"]["200"]["content"] = json_content(answer)
        document["components"]["schemas"].update(components)

    def _as_wish(self, found: Mapping[str, Any]) -> Wish:
        user = found[self._entities[0].name]
        return Wish(user, found.get("k", self._default_k), found.get("exclude_rated", False))

    def _answer_type(self, name: str, items: Any) -> TypeAdapter[dict[str, Any]]:
        user = self._entities[0]
        head = {user.name: given_type(user), "model": str, "version": int}
        return TypeAdapter(record(name, {**head, "items": Annotated[list[items], Field(description="best first")]}))
