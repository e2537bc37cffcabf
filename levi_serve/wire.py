"""The HTTP shapes of one schema: what is parsed, what is answered and what OpenAPI says are one and the same types."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired
from urllib.parse import parse_qsl

import numpy as np
import orjson
from pydantic import (
    AfterValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    Strict,
    Tag,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
)
from pydantic_core import ErrorDetails, PydanticCustomError
from typing_extensions import TypedDict

from levi_serve.bundle.manifest import Manifest
from levi_serve.bundle.rows import Id
from levi_serve.bundle.schema import Attribute, Attributes, Entity
from levi_serve.errors import Complaint, InvalidRequestError, UnknownIdError
from levi_serve.predictor import Encoded, GivenPair, Pair, Scores
from levi_serve.problems import ProblemError
from levi_serve.store import BoolArray, Int8Array, State

TIMEOUT = "x-request-timeout-ms"
"""The header that says how long a caller waits, in milliseconds."""

_LEAST, _MOST = -(2**63), 2**63 - 1
_MAX_CHARACTERS = 1000
_MAX_VALUES = 100
_MAX_COMPLAINTS = 10
_SHOWN = 100
_CONTROL = r"\x00-\x1f\x7f-\x9f"
_INTEGER = re.compile(r"-?[0-9]{1,19}")


class MalformedJsonError(Exception):
    """A body is not JSON at all."""


class Wire:
    """Parses requests and shapes answers for one model version."""

    def __init__(self, manifest: Manifest, example: GivenPair, max_pairs: int) -> None:
        """`example` is a pair that the model knows, shown in the documentation."""
        self._manifest = manifest
        self._entities = manifest.schema_.entities
        self._example = example
        self._ids = {entity.name: TypeAdapter[Id](_id_type(entity)) for entity in self._entities}
        givens = {entity.name: _given_type(entity) for entity in self._entities}
        pair = _record("Pair", givens)
        pairs = Annotated[list[pair], Field(min_length=1, max_length=max_pairs)]  # type: ignore[valid-type]
        self._body = TypeAdapter[dict[str, Any]](_record("Pairs", {"pairs": pairs}))
        self._answer = TypeAdapter[dict[str, Any]](_record("Prediction", {**givens, **_answer_fields(manifest)}))
        self._read_ids = [int if entity.id_type == "integer" else bytes.decode for entity in self._entities]
        self._express = re.compile(_express_request(self._entities), re.IGNORECASE)

    def query(self, query: bytes) -> GivenPair:
        """The pair in a query string.

        Raises:
            InvalidRequestError: a parameter is missing, repeated, unknown or not an id.

        """
        given = _parameters(query)
        ids: list[Id] = []
        complaints = [Complaint(name[:_SHOWN], self._unknown(self._ids)) for name in given if name not in self._ids]
        for entity in self._entities:
            texts = given.get(entity.name, [])
            if len(texts) != 1:
                complaints.append(Complaint(entity.name, "is given more than once" if texts else "is missing"))
                continue
            try:
                ids.append(self._ids[entity.name].validate_python(_id_in_text(entity, texts[0])))
            except ValidationError as error:
                complaints.append(Complaint(entity.name, _reason(error.errors()[0])))
        if complaints:
            raise InvalidRequestError(complaints[:_MAX_COMPLAINTS])
        user, item = ids
        return GivenPair(user, item)

    def body(self, body: bytes) -> list[GivenPair]:
        """The pairs in a JSON body.

        Raises:
            MalformedJsonError: it is not JSON.
            InvalidRequestError: it is not a list of pairs as the schema has them.

        """
        try:
            pairs = self._body.validate_json(body)["pairs"]
        except ValidationError as error:
            details = error.errors(include_url=False, include_input=False)
            if details[0]["type"] == "json_invalid":
                raise MalformedJsonError(details[0]["msg"]) from None
            raise InvalidRequestError([self._complaint(detail) for detail in details[:_MAX_COMPLAINTS]]) from None
        user, item = self._ids
        return [GivenPair(pair[user], pair[item]) for pair in pairs]

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

    def answers(
        self,
        pairs: Sequence[Pair],
        scores: Scores,
        trained: tuple[BoolArray, BoolArray],
        state: tuple[Int8Array, Int8Array] | None,
    ) -> list[bytes]:
        """B predictions as they are sent. `trained` and `state` [B] are the user's and the item's; None: all FOUND."""
        user, item = self._ids
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
        entity = self._entities[error.side]
        shown = json.dumps(error.id, ensure_ascii=False)[:_SHOWN]
        detail = (
            f"There is no {entity.name} {shown} in the catalogue of {self._manifest.name}/{self._manifest.version}."
        )
        if entity.attributes:
            pair = {**dict(zip(self._ids, self._example, strict=True)), entity.name: _example_attributes(entity)}
            hint = json.dumps({"pairs": [pair]}, ensure_ascii=False)
            detail += f" A new {entity.name} is sent by its attributes instead of an id: POST /predict {hint}"
        where = Complaint(f"{prefix}{entity.name}", f"{shown} is not in the catalogue")
        return ProblemError(404, "unknown-id", detail, [where])

    def describe(self, document: dict[str, Any]) -> None:
        """Complete an OpenAPI document's /predict with this schema's parameters, bodies and answers."""
        (body, answer, *ids), components = self._json_schemas()
        get, post = document["paths"]["/predict"]["get"], document["paths"]["/predict"]["post"]
        get["parameters"] = [
            {"name": name, "in": "query", "required": True, "schema": schema, **_example_of(given)}
            for name, schema, given in zip(self._ids, ids, self._example, strict=True)
        ]
        get["responses"]["200"]["content"] = _json_content(answer)
        post["requestBody"] = {"required": True, "content": _json_content(body, self._example_body())}
        post["responses"]["200"]["content"] = _json_content({"type": "array", "items": answer})
        document["components"]["schemas"].update(components)

    def _json_schemas(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        adapters: list[TypeAdapter[Any]] = [self._body, self._answer, *self._ids.values()]
        schemas, shared = TypeAdapter.json_schemas(
            [(i, "validation", adapter) for i, adapter in enumerate(adapters)],
            ref_template="#/components/schemas/{model}",
        )
        return list(schemas.values()), shared.get("$defs", {})

    def _example_body(self) -> dict[str, Any]:
        new = {entity.name: _example_attributes(entity) for entity in self._entities if entity.attributes}
        known = dict(zip(self._ids, self._example, strict=True))
        return {"pairs": [known, {**known, **dict(list(new.items())[-1:])}]}

    def _complaint(self, detail: ErrorDetails) -> Complaint:
        # loc is e.g. ("pairs", 3, "movie", "attributes", "title"): its fourth part names the branch of the union.
        loc = detail["loc"]
        where = "".join(f"[{p}]" if isinstance(p, int) else f".{p[:_SHOWN]}" for p in (*loc[:3], *loc[4:]))
        if detail["type"] != "extra_forbidden":
            return Complaint(where.lstrip(".") or "body", _reason(detail))
        known: Mapping[str, object] = {"pairs": None} if len(loc) == 1 else self._ids
        if len(loc) > 3:
            known = {a.name: None for entity in self._entities if entity.name == loc[2] for a in entity.attributes}
        return Complaint(where.lstrip("."), self._unknown(known))

    @staticmethod
    def _unknown(known: Mapping[str, object]) -> str:
        return f"is unknown; known here: {', '.join(known)}"


def _record(name: str, fields: Mapping[str, Any]) -> Any:
    """A TypedDict: it validates to plain dicts, and no attribute's name can collide with a method's."""
    record = TypedDict(name, dict(fields))  # type: ignore[misc]  # noqa: UP013 - the fields are data
    record.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]
    return record


def _given_type(entity: Entity) -> Any:
    """An id, or a new entity's attributes."""
    if not entity.attributes:
        return _id_type(entity)
    name = "".join(word.title() for word in entity.name.split("_"))
    record = _record(f"{name}Attributes", {a.name: NotRequired[_attribute_type(a)] for a in entity.attributes})
    attributes = Annotated[
        record,  # type: ignore[valid-type]
        Field(json_schema_extra={"minProperties": 1}),
        AfterValidator(_not_empty),
    ]
    return Annotated[
        Annotated[_id_type(entity), Tag("id")] | Annotated[attributes, Tag("attributes")], Discriminator(_branch)
    ]


def _branch(value: Any) -> str:
    return "attributes" if isinstance(value, dict) else "id"


def _id_type(entity: Entity) -> Any:
    return _IntegerId if entity.id_type == "integer" else _Text


def _attribute_type(attribute: Attribute) -> Any:
    if attribute.kind == "number":
        return _Number
    return Annotated[tuple[_Text, ...], Field(min_length=1, max_length=_MAX_VALUES)] if attribute.many else _Text


def _answer_fields(manifest: Manifest) -> dict[str, Any]:
    schema = manifest.schema_
    return {
        "rating": Annotated[float, Field(ge=schema.rating_min, le=schema.rating_max, description="weighted mean")],
        "heads": Annotated[
            list[float],
            Field(
                min_length=manifest.layers,
                max_length=manifest.layers,
                description="each head's own rating, early layers first; not clipped",
            ),
        ],
        "disagreement": Annotated[float, Field(ge=0, description="population standard deviation of the heads")],
        "ood_score": Annotated[
            float, Field(ge=0, le=1, description="share of in-distribution pairs whose heads disagree less")
        ],
        "cold_start": Annotated[
            list[Literal[tuple(entity.name for entity in schema.entities)]],  # type: ignore[misc]
            Field(description="entities that were not trained on"),
        ],
        "model": str,
        "version": int,
        "degraded": NotRequired[
            Annotated[
                list[Literal[tuple(entity.name for entity in schema.entities)]],  # type: ignore[misc]
                Field(description="entities rated as unknown ones, since their rows could not be had at the moment"),
            ]
        ],
    }


def _without_control(text: str) -> str:
    found = re.search(f"[{_CONTROL}]", text)
    if found:
        raise PydanticCustomError("control", f"holds the control character U+{ord(found[0]):04X}")
    return text


def _integer(value: Any) -> int:
    """JSON does not tell 138.0 from 138, though true is neither."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is int and _LEAST <= value <= _MOST:
        return value
    raise PydanticCustomError("integer", "should be an integer of at most 64 bits")


def _number(value: Any) -> int | float:
    """An integer stays one, since a sentence shows it differently. NaN fails both comparisons."""
    if type(value) in (int, float) and _LEAST <= value <= _MOST:
        return value  # type: ignore[no-any-return]
    raise PydanticCustomError("number", "should be a finite number of at most 64 bits")


def _not_empty(attributes: dict[str, Any]) -> dict[str, Any]:
    if not attributes:
        raise PydanticCustomError("empty", "should have at least one attribute")
    return attributes


_RANGE = {"minimum": _LEAST, "maximum": _MOST}
_IntegerId = Annotated[Any, PlainValidator(_integer), WithJsonSchema({"type": "integer", "format": "int64", **_RANGE})]
_Number = Annotated[Any, PlainValidator(_number), WithJsonSchema({"type": "number", **_RANGE})]
_Text = Annotated[
    str,
    Strict(),
    Field(min_length=1, max_length=_MAX_CHARACTERS, json_schema_extra={"pattern": f"^[^{_CONTROL}]*$"}),
    AfterValidator(_without_control),
]


def _express_request(entities: Sequence[Entity]) -> bytes:
    """A pattern of whole requests (RFC 9112). Header names that change how a request is handled, or that the ordinary
    way answers to, do not match; nor does anything whose end could be disputed: bare line feeds, folded lines, bodies.
    """
    ids = {"integer": r"-?[0-9]{1,18}", "string": r"[A-Za-z0-9._~-]{1,200}"}
    query = "&".join(f"{re.escape(entity.name)}=({ids[entity.id_type]})" for entity in entities)
    handled = (
        "content-length|transfer-encoding|expect|upgrade|te|trailer|authorization|traceparent|x-request-[a-z-]+|"
        "connection(?!: ?keep-alive\r)"
    )
    headers = rf"(?:(?!(?:{handled}):)[!#$%&'*+.^_`|~0-9a-z-]+:[^\x00-\x08\x0a-\x1f\x7f]*\r\n)*"
    timeout = rf"(?:{TIMEOUT}: ?([0-9]{{1,9}})\r\n)?"
    return rf"(?-i:GET /predict\?{query} HTTP/1\.1)\r\n{headers}{timeout}{headers}\r\n".encode()


def _given(entity: Encoded) -> Attributes:
    """How a new entity stands in an answer."""
    return entity.given


def _parameters(query: bytes) -> dict[str, list[str]]:
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict")
    except UnicodeDecodeError:
        raise InvalidRequestError([Complaint("query", "is not percent-encoded UTF-8")]) from None
    given: dict[str, list[str]] = {}
    for name, value in pairs:
        given.setdefault(name, []).append(value)
    return given


def _id_in_text(entity: Entity, text: str) -> Id:
    """A query string holds text; what is written as an integer is one, where the schema's ids are integers."""
    return int(text) if entity.id_type == "integer" and _INTEGER.fullmatch(text) else text


def _reason(detail: ErrorDetails) -> str:
    if detail["type"] == "missing":
        return "is missing"
    return detail["msg"].removeprefix("Input ")


def _example_attributes(entity: Entity) -> dict[str, Any]:
    """Placeholders for the first two attributes, enough to show the form."""
    return {a.name: _example_value(a) for a in entity.attributes[:2]}


def _example_value(attribute: Attribute) -> Any:
    if attribute.kind == "number":
        return 1
    return ["…"] if attribute.many else "…"


def _example_of(given: Any) -> dict[str, Any]:
    return {} if isinstance(given, Mapping) else {"example": given}


def _json_content(schema: Mapping[str, Any], example: Any = None) -> dict[str, Any]:
    return {"application/json": {"schema": schema} | ({} if example is None else {"example": example})}
