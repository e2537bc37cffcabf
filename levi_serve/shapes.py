"""The types of one schema's requests and answers: they read requests, and OpenAPI documents are made of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired, TypeAlias
from urllib.parse import parse_qsl

from pydantic import (
    AfterValidator,
    ConfigDict,
    Discriminator,
    FailFast,
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
from levi_serve.bundle.schema import Attribute, Entity
from levi_serve.errors import Complaint, InvalidRequestError, MalformedJsonError

Names: TypeAlias = Mapping[str, "Names"]
"""The fields of a record, each with those of the records in it."""

SHOWN = 100
"""Characters of what a client sent that are sent back, at most."""

_LEAST, _MOST = -(2**63), 2**63 - 1
_MAX_CHARACTERS = 1000
_MAX_VALUES = 100
_MAX_COMPLAINTS = 10
_MAX_MISTAKES = 5000
"""Of a body with more, none is told: to list them all, of which ten are shown, would keep everybody else waiting."""
_CONTROL = r"\x00-\x1f\x7f-\x9f"
_INTEGER = re.compile(r"-?[0-9]{1,19}")
_ID, _ATTRIBUTES = "<id>", "<attributes>"
"""How pydantic calls the two ways to give an entity; no schema has such names."""


class Reader:
    """Reads records of one type, and says what is wrong with one in the words of the request."""

    def __init__(self, made: Any, names: Names) -> None:
        """`made` is what `record` returned, `names` are its fields."""
        self.adapter = TypeAdapter[dict[str, Any]](made)
        self._names = names

    def json(self, body: bytes) -> dict[str, Any]:
        """The record in a JSON body.

        Raises:
            MalformedJsonError: it is not JSON.
            InvalidRequestError: it is not such a record.

        """
        try:
            return self.adapter.validate_json(body)
        except ValidationError as error:
            if error.error_count() > _MAX_MISTAKES:
                complaint = Complaint("body", f"has more than {_MAX_MISTAKES} mistakes; /docs shows what is expected")
                raise InvalidRequestError([complaint]) from None
            details = error.errors(include_url=False, include_input=False)
            if details[0]["type"] == "json_invalid":
                raise MalformedJsonError(details[0]["msg"]) from None
            raise InvalidRequestError([self._complaint(detail) for detail in details[:_MAX_COMPLAINTS]]) from None

    def query(self, query: bytes, read: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
        """The record in a query string, whose values are text: `read` turns those of some fields into other things.

        Raises:
            InvalidRequestError: a parameter is missing, repeated, unknown or wrong.

        """
        given = _parameters(query)
        repeated = [name for name, texts in given.items() if len(texts) > 1 and name in self._names]
        complaints = [Complaint(name, "is given more than once") for name in repeated]
        values = {name: read.get(name, str)(texts[0]) for name, texts in given.items()}
        return self.values(values, complaints)

    def values(self, values: Mapping[str, Any], complaints: Sequence[Complaint] = ()) -> dict[str, Any]:
        """The record in these values, about which there may be `complaints` already.

        Raises:
            InvalidRequestError: it is not such a record.

        """
        told = list(complaints)
        try:
            found = self.adapter.validate_python(values)
        except ValidationError as error:
            told += [self._complaint(detail) for detail in error.errors(include_url=False)[:_MAX_COMPLAINTS]]
        if told:
            raise InvalidRequestError(told[:_MAX_COMPLAINTS])
        return found

    def _complaint(self, detail: ErrorDetails) -> Complaint:
        unknown = detail["type"] == "extra_forbidden"
        *path, last = detail["loc"] or ("",)
        steps = [step for step in path if step not in (_ID, _ATTRIBUTES)]
        if unknown or last not in (_ID, _ATTRIBUTES):
            steps.append(last)
        where = "".join(f"[{step}]" if isinstance(step, int) else f".{step[:SHOWN]}" for step in steps).lstrip(".")
        if not unknown:
            return Complaint(where or "body", _reason(detail))
        names = self._names
        for step in steps[:-1]:
            names = names if isinstance(step, int) else names[step]
        return Complaint(where, f"is unknown; known here: {', '.join(names)}")


def names_of(entity: Entity) -> Names:
    """The fields of an entity that is given by its attributes."""
    return {attribute.name: {} for attribute in entity.attributes}


def id_from(entity: Entity) -> Callable[[str], Any]:
    """Reads an entity's id in a query string."""
    return integer_from if entity.id_type == "integer" else str


def integer_from(text: str) -> Any:
    """What is written as an integer, as one."""
    return int(text) if _INTEGER.fullmatch(text) else text


def truth_from(text: str) -> Any:
    """What is written as JSON writes truth and falsehood, as one of them."""
    return {"true": True, "false": False}.get(text, text)


def json_schemas(adapters: list[TypeAdapter[Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The JSON schema of each, and the components that they refer to."""
    schemas, shared = TypeAdapter.json_schemas(
        [(i, "validation", adapter) for i, adapter in enumerate(adapters)],
        ref_template="#/components/schemas/{model}",
    )
    return list(schemas.values()), shared.get("$defs", {})


def json_content(schema: Mapping[str, Any], example: Any = None) -> dict[str, Any]:
    """The content of an OpenAPI request or response."""
    return {"application/json": {"schema": schema} | ({} if example is None else {"example": example})}


def example_of(given: Any) -> dict[str, Any]:
    """The example of an OpenAPI parameter, which cannot be an object."""
    return {} if isinstance(given, Mapping) else {"example": given}


def example_attributes(entity: Entity) -> dict[str, Any]:
    """Placeholders for the first two attributes, enough to show the form."""
    return {a.name: _example_value(a) for a in entity.attributes[:2]}


def _example_value(attribute: Attribute) -> Any:
    if attribute.kind == "number":
        return 1
    return ["…"] if attribute.many else "…"


def record(name: str, fields: Mapping[str, Any]) -> Any:
    """A TypedDict: it validates to plain dicts, and no attribute's name can collide with a method's."""
    made = TypedDict(name, dict(fields))  # type: ignore[misc]  # noqa: UP013 - the fields are data
    made.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]
    return made


def given_type(entity: Entity) -> Any:
    """An id, or a new entity's attributes."""
    if not entity.attributes:
        return id_type(entity)
    attributes: Any = Annotated[described_type(entity), Tag(_ATTRIBUTES)]
    return Annotated[Annotated[id_type(entity), Tag(_ID)] | attributes, Discriminator(_branch)]


def described_type(entity: Entity) -> Any:
    """The attributes of an entity as a client writes them, one at least."""
    fields = {a.name: NotRequired[_attribute_type(a)] for a in entity.attributes}
    made = record(f"{title(entity)}Attributes", fields)
    return Annotated[
        made,
        Field(json_schema_extra={"minProperties": 1}),
        AfterValidator(_not_empty),
    ]


def title(entity: Entity) -> str:
    """An entity's name as a part of the names of types."""
    return "".join(word.title() for word in entity.name.split("_"))


def _branch(value: Any) -> str:
    return _ATTRIBUTES if isinstance(value, dict) else _ID


def id_type(entity: Entity) -> Any:
    """An integer or a text."""
    return _IntegerId if entity.id_type == "integer" else _Text


def plain_id_type(entity: Entity) -> Any:
    """An integer that JSON writes as one, or a text: `id_type` reads it as the same, but more slowly."""
    return _PlainIntegerId if entity.id_type == "integer" else _Text


def stored_type(entity: Entity) -> Any:
    """The attributes of an entity of the catalogue, as they were exported."""
    kinds = {a.name: float if a.kind == "number" else list[str] if a.many else str for a in entity.attributes}
    return record(f"{title(entity)}Stored", {name: NotRequired[kind] for name, kind in kinds.items()})


def count_type(most: int, default: int, description: str) -> Any:
    """How many, from 1 to `most`."""

    def count(value: Any) -> int:
        value = _as_integer(value)
        if type(value) is int and 1 <= value <= most:
            return value
        raise PydanticCustomError("count", f"should be an integer from 1 to {most}")

    documented = {"type": "integer", "minimum": 1, "maximum": most, "default": default, "description": description}
    return Annotated[Any, PlainValidator(count), WithJsonSchema(documented)]


def truth_type(description: str) -> Any:
    """True or false, false by default."""

    def truth(value: Any) -> bool:
        if type(value) is bool:
            return value
        raise PydanticCustomError("truth", "should be true or false")

    documented = {"type": "boolean", "default": False, "description": description}
    return Annotated[Any, PlainValidator(truth), WithJsonSchema(documented)]


def _attribute_type(attribute: Attribute) -> Any:
    if attribute.kind == "number":
        return _Number
    values = Annotated[tuple[_Text, ...], FailFast(), Field(min_length=1, max_length=_MAX_VALUES)]
    return values if attribute.many else _Text


def answer_fields(manifest: Manifest) -> dict[str, Any]:
    """What is told of a pair, beside the pair."""
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
            float, Field(ge=0, le=1, description="share of in-distribution pairs that score below this one")
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


def _as_integer(value: Any) -> Any:
    """JSON does not tell 138.0 from 138, though true is neither."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _integer(value: Any) -> int:
    value = _as_integer(value)
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
_PlainIntegerId = Annotated[int, Strict(), Field(ge=_LEAST, le=_MOST)]
_Number = Annotated[Any, PlainValidator(_number), WithJsonSchema({"type": "number", **_RANGE})]
_Text = Annotated[
    str,
    Strict(),
    Field(min_length=1, max_length=_MAX_CHARACTERS, json_schema_extra={"pattern": f"^[^{_CONTROL}]*$"}),
    AfterValidator(_without_control),
]


def _parameters(query: bytes) -> dict[str, list[str]]:
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict")
    except UnicodeDecodeError:
        raise InvalidRequestError([Complaint("query", "is not percent-encoded UTF-8")]) from None
    given: dict[str, list[str]] = {}
    for name, value in pairs:
        given.setdefault(name, []).append(value)
    return given


def _reason(detail: ErrorDetails) -> str:
    if detail["type"] == "missing":
        return "is missing"
    return detail["msg"].removeprefix("Input ")
