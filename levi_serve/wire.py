"""The HTTP shapes of one schema: what is parsed, what is answered and what OpenAPI says are one and the same types."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Annotated, Any, NamedTuple, NotRequired, Self

import numpy as np
import orjson
from pydantic import FailFast, Field, TypeAdapter, ValidationError

from levi_serve.bundle import BoolArray, Int8Array
from levi_serve.bundle.manifest import Manifest
from levi_serve.bundle.rows import Id
from levi_serve.bundle.schema import Attributes, Entity
from levi_serve.errors import Complaint, InvalidRequestError, UnknownIdError
from levi_serve.predictor import Encoded, GivenPair, Pair, Scores
from levi_serve.problems import ProblemError
from levi_serve.shapes import (
    SHOWN,
    Names,
    Reader,
    answer_fields,
    described_type,
    example_attributes,
    example_of,
    given_type,
    id_from,
    id_type,
    json_content,
    json_schemas,
    names_of,
    plain_id_type,
    record,
)
from levi_serve.store import State

_LATEST = 2**33
"""The year 2242 [s since 1970]."""
TIMEOUT = "x-request-timeout-ms"
"""The header that says how long a caller waits, in milliseconds."""


# Patterns of header lines. Names that change how a request is handled, or that the ordinary way answers to, do not
# match; nor does anything whose end could be disputed: bare line feeds, folded lines. Possessive quantifiers never try
# twice: what does not match costs time in proportion to its length, however hostile.
_HANDLED = (
    "content-length|transfer-encoding|expect|upgrade|te|trailer|authorization|traceparent|x-request-[a-z-]+|"
    "(?:proxy-)?connection(?!: ?keep-alive\r)"
)
_HEADERS = rf"(?:(?!(?:{_HANDLED}):)[!#$%&'*+.^_`|~0-9a-z-]++:[^\x00-\x08\x0a-\x1f\x7f]*+\r\n)*+"
_KIND = re.compile(rb"\r\ncontent-type:[ \t]*([^\r]*)", re.IGNORECASE)
_TIMEOUT = rf"(?:{TIMEOUT}: ?([0-9]{{1,9}})\r\n{_HEADERS})?+"


class ListHead(NamedTuple):
    """What an ordinary POST says before its body."""

    route: bytes
    length: int
    """Of the body, in bytes."""
    timeout: float | None
    """How long the caller waits [s], if it says so."""
    is_json: bool
    """Whether it says that its body is JSON."""


class Wire:
    """Parses requests and shapes answers for one model version."""

    def __init__(self, manifest: Manifest, example: GivenPair, max_pairs: int) -> None:
        """`example` is a pair that the model knows, shown in the documentation."""
        self._manifest = manifest
        self._entities = manifest.schema_.entities
        self._example = example
        self._names = [entity.name for entity in self._entities]
        givens = {entity.name: given_type(entity) for entity in self._entities}
        pair = record("Pair", givens)
        many = Field(min_length=1, max_length=max_pairs)
        pairs = Annotated[list[pair], many]  # type: ignore[valid-type]
        names = {entity.name: names_of(entity) for entity in self._entities}
        self._query = Reader(record("Query", {e.name: id_type(e) for e in self._entities}), names)
        ids = record("Ids", {entity.name: plain_id_type(entity) for entity in self._entities})
        known = Annotated[list[ids], many, FailFast()]  # type: ignore[valid-type]
        self._known = TypeAdapter[dict[str, Any]](record("KnownPairs", {"pairs": known}))
        self._body = Reader(record("Pairs", {"pairs": pairs}), {"pairs": names})
        self._answer = TypeAdapter[dict[str, Any]](record("Prediction", {**givens, **answer_fields(manifest)}))
        self._feedback = Reader(*_feedback(manifest))
        self._ids = [Reader(record("EntityId", {"id": id_type(entity)}), {"id": {}}) for entity in self._entities]
        self._attributes = [Reader(described_type(entity), names_of(entity)) for entity in self._entities]
        self._read_ids = [int if entity.id_type == "integer" else bytes.decode for entity in self._entities]
        self._express = re.compile(_express_request(self._entities), re.IGNORECASE)
        self._list = re.compile(_list_head(), re.IGNORECASE)

    def again(self, manifest: Manifest, example: GivenPair) -> Self | None:
        """The same for another version; None if its types are not the same. Making them takes 20 ms of everybody's."""
        if (manifest.schema_, manifest.layers) != (self._manifest.schema_, self._manifest.layers):
            return None
        other = copy(self)
        other._manifest, other._example = manifest, example
        return other

    def query(self, query: bytes) -> GivenPair:
        """The pair in a query string.

        Raises:
            InvalidRequestError: a parameter is missing, repeated, unknown or not an id.

        """
        found = self._query.query(query, {entity.name: id_from(entity) for entity in self._entities})
        user, item = self._names
        return GivenPair(found[user], found[item])

    def body(self, body: bytes) -> list[GivenPair]:
        """The pairs in a JSON body.

        Raises:
            MalformedJsonError: it is not JSON.
            InvalidRequestError: it is not a list of pairs as the schema has them.

        """
        user, item = self._names
        return [GivenPair(pair[user], pair[item]) for pair in self._body.json(body)["pairs"]]

    def known_body(self, body: bytes) -> list[Pair] | None:
        """The pairs in a JSON body, if it is one that `body` reads and names ids only."""
        try:
            found = self._known.validate_json(body)
        except ValidationError:
            return None
        user, item = self._names
        return [Pair(pair[user], pair[item]) for pair in found["pairs"]]

    def feedback(self, body: bytes) -> dict[str, Any]:
        """The event in a JSON body.

        Raises:
            MalformedJsonError: it is not JSON.
            InvalidRequestError: it is no event of this schema.

        """
        return self._feedback.json(body)

    def entity(self, name: str, text: str) -> tuple[int, Id]:
        """Side and id of an entity that a path names.

        Raises:
            ProblemError: there are no such entities.
            InvalidRequestError: it is no id of theirs.

        """
        if name not in self._names:
            raise ProblemError(404, "unknown-entity", f"there are {' and '.join(self._names)}, no '{name[:SHOWN]}'")
        side = self._names.index(name)
        return side, self._ids[side].values({"id": id_from(self._entities[side])(text)})["id"]

    def attributes(self, side: int, body: bytes) -> Attributes:
        """The attributes in a JSON body of a user (side 0) or an item.

        Raises:
            MalformedJsonError: it is not JSON.
            InvalidRequestError: it is not what the schema has.

        """
        return self._attributes[side].json(body)

    def express(self, request: bytes) -> tuple[Id, Id, float | None] | None:
        """Both ids and the timeout [s] of a GET that asks for nothing out of the ordinary: `request` is one whole
        request, its ids are plain, no header changes how it is to be handled. None if it is anything else.
        """
        match = self._express.fullmatch(request)
        if match is None:
            return None
        user, item, milliseconds = match.groups()
        timeout = None if milliseconds is None else int(milliseconds) / 1000
        if timeout == 0:
            return None
        (read_user, read_item) = self._read_ids
        return read_user(user), read_item(item), timeout

    def list_head(self, head: bytes) -> ListHead | None:
        """What this says, if it is the whole head of a POST with a list and as ordinary as `express` wants it; None if
        it is anything else.
        """
        match = self._list.fullmatch(head)
        if match is None:
            return None
        route, before, length, after = match.groups()
        milliseconds = before or after
        if (before and after) or milliseconds == b"0":
            return None
        is_json = [kind.lower() for kind in _KIND.findall(head)] == [b"application/json"]
        return ListHead(route, int(length), None if milliseconds is None else int(milliseconds) / 1000, is_json)

    def answers(
        self,
        pairs: Sequence[Pair],
        scores: Scores,
        trained: tuple[BoolArray, BoolArray],
        state: tuple[Int8Array, Int8Array] | None,
    ) -> list[bytes]:
        """B predictions as they are sent. `trained` and `state` [B] are the user's and the item's; None: all FOUND."""
        user, item = self._names
        cold = self._names_where(~trained[0], ~trained[1])
        rest = {"model": self._manifest.name, "version": self._manifest.version}
        numbers = zip(
            scores.rating.tolist(),
            scores.heads.tolist(),
            scores.disagreement.tolist(),
            scores.ood_score.tolist(),
            strict=True,
        )
        records = [
            {
                user: pair[0],
                item: pair[1],
                "rating": rating,
                "heads": heads,
                "disagreement": disagreement,
                "ood_score": ood_score,
                "cold_start": cold_start,
                **rest,
            }
            for pair, cold_start, (rating, heads, disagreement, ood_score) in zip(pairs, cold, numbers, strict=True)
        ]
        if state is not None:
            missing = self._names_where(state[0] == State.DEGRADED, state[1] == State.DEGRADED)
            for record, degraded in zip(records, missing, strict=True):
                if degraded:
                    record["degraded"] = degraded
        return [orjson.dumps(record, _given, orjson.OPT_PASSTHROUGH_DATACLASS) for record in records]

    @staticmethod
    def with_attributes(prediction: bytes, attributes: Attributes) -> bytes:
        """A prediction as it is sent, with what the catalogue says of its item."""
        return prediction[:-1] + b',"attributes":' + orjson.dumps(attributes) + b"}"

    def _names_where(self, user: BoolArray, item: BoolArray) -> list[list[str]]:
        """The names of those sides of each pair for which it is true."""
        names = [entity.name for entity in self._entities]
        choices: tuple[list[str], ...] = ([], names[:1], names[1:], names)
        return [choices[which] for which in (user + 2 * item.astype(np.int8)).tolist()]

    @staticmethod
    def timeout(texts: Sequence[str]) -> float | None:
        """Seconds from the values of the header TIMEOUT; None if there is none.

        Raises:
            InvalidRequestError: it is given twice or is no whole number of milliseconds above 0.

        """
        if not texts:
            return None
        if len(texts) > 1:
            raise InvalidRequestError([Complaint(TIMEOUT, "is given more than once")])
        if not re.fullmatch("[0-9]{1,9}", texts[0]) or int(texts[0]) == 0:
            raise InvalidRequestError([Complaint(TIMEOUT, "should be a whole number of milliseconds, 1 to 999999999")])
        return int(texts[0]) / 1000

    def unknown_id(self, error: UnknownIdError, prefix: str) -> ProblemError:
        """A 404 that says what to do; `prefix` leads to the pair, as in `pairs[3].`."""
        name = self._names[error.side]
        new = example_attributes(self._entities[error.side])
        pair = {**dict(zip(self._names, self._example, strict=True)), name: new}
        return unknown_id_problem(self._manifest, error, f"{prefix}{name}", "/predict", {"pairs": [pair]})

    def describe(self, document: dict[str, Any]) -> None:
        """Complete an OpenAPI document's /predict with this schema's parameters, bodies and answers."""
        ids = [TypeAdapter[Any](id_type(entity)) for entity in self._entities]
        (body, answer, event, *parameters), components = json_schemas(
            [self._body.adapter, self._answer, self._feedback.adapter, *ids]
        )
        get, post = document["paths"]["/predict"]["get"], document["paths"]["/predict"]["post"]
        get["parameters"] = [
            {"name": name, "in": "query", "required": True, "schema": schema, **example_of(given)}
            for name, schema, given in zip(self._names, parameters, self._example, strict=True)
        ]
        get["responses"]["200"]["content"] = json_content(answer)
        post["requestBody"] = {"required": True, "content": json_content(body, self._example_body())}
        post["responses"]["200"]["content"] = json_content({"type": "array", "items": answer})
        rated = {**dict(zip(self._names, self._example, strict=True)), "rating": self._manifest.schema_.rating_max}
        feedback = document["paths"]["/feedback"]["post"]
        feedback["requestBody"] = {"required": True, "content": json_content(event, rated)}
        put = document["paths"]["/entities/{entity}/{id}"]["put"]
        kinds = [described_type(entity) for entity in self._entities if entity.attributes]
        schemas, more = json_schemas([TypeAdapter[Any](kind) for kind in kinds])
        example = example_attributes(self._entities[1]) or example_attributes(self._entities[0])
        put["requestBody"] = {"required": True, "content": json_content({"anyOf": schemas}, example)}
        document["components"]["schemas"].update(components | more)

    def _example_body(self) -> dict[str, Any]:
        new = {entity.name: example_attributes(entity) for entity in self._entities if entity.attributes}
        known = dict(zip(self._names, self._example, strict=True))
        return {"pairs": [known, {**known, **dict(list(new.items())[-1:])}]}


def _feedback(manifest: Manifest) -> tuple[Any, Names]:
    """The type of a feedback event, and its fields."""
    schema = manifest.schema_
    text = Annotated[str, Field(min_length=1, max_length=128)]
    described = {entity.name: NotRequired[described_type(entity)] for entity in schema.entities if entity.attributes}
    fields = {
        **{entity.name: id_type(entity) for entity in schema.entities},
        "rating": Annotated[float, Field(ge=schema.rating_min, le=schema.rating_max, strict=True)],
        "time": NotRequired[Annotated[float, Field(ge=0, lt=_LATEST, strict=True, description="seconds since 1970")]],
        "id": NotRequired[Annotated[text, Field(description="the event's own; sent again, it counts once")]],
        "prediction_id": NotRequired[Annotated[text, Field(description="of the request that showed the prediction")]],
        "attributes": NotRequired[record("Described", described)],
    }
    names: Names = {name: {} for name in fields}
    return record("Feedback", fields), {**names, "attributes": {e.name: names_of(e) for e in schema.entities}}


def unknown_id_problem(
    manifest: Manifest, error: UnknownIdError, where: str, path: str, example: Mapping[str, Any]
) -> ProblemError:
    """A 404 for the id at this place of a request; `example` is a body for `path` with a new entity in its stead."""
    entity = manifest.schema_.entities[error.side]
    shown = json.dumps(error.id, ensure_ascii=False)[:SHOWN]
    detail = f"There is no {entity.name} {shown} in the catalogue of {manifest.name}/{manifest.version}."
    if entity.attributes:
        hint = json.dumps(example, ensure_ascii=False)
        detail += f" A new {entity.name} is sent by its attributes instead of an id: POST {path} {hint}"
    return ProblemError(404, "unknown-id", detail, [Complaint(where, f"{shown} is not in the catalogue")])


def _express_request(entities: Sequence[Entity]) -> bytes:
    """A pattern of whole requests (RFC 9112)."""
    ids = {"integer": r"-?[0-9]{1,18}", "string": r"[A-Za-z0-9._~-]{1,200}"}
    query = "&".join(f"{re.escape(entity.name)}=({ids[entity.id_type]})" for entity in entities)
    return rf"(?-i:GET /predict\?{query} HTTP/1\.1)\r\n{_HEADERS}{_TIMEOUT}\r\n".encode()


def _list_head() -> bytes:
    """A pattern of heads of requests whose bodies are lists."""
    length = rf"content-length: ?([0-9]{{1,7}})\r\n{_HEADERS}"
    return rf"(?-i:POST (/predict|/rank) HTTP/1\.1)\r\n{_HEADERS}{_TIMEOUT}{length}{_TIMEOUT}\r\n".encode()


def _given(entity: Encoded) -> Attributes:
    """How a new entity stands in an answer."""
    return entity.given
