"""What a dataset's entities look like: names, attributes, rating range, sentence templates.

The schema is written by a loader, stored in the bundle's manifest and read by the server: it is the
single source for parameter names, for what a cold-start entity may carry, and for both sentences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from levi_serve.bundle import Int64Array

Value: TypeAlias = str | int | float | tuple[str, ...]
"""One attribute's value; a tuple where the attribute may have several values."""

Attributes: TypeAlias = Mapping[str, Value]
"""An entity's attributes by name. A missing key is a missing value: it has no clause and code 0."""

ANSWER_FIELDS = frozenset(
    {"rating", "heads", "disagreement", "ood_score", "cold_start", "degraded", "model", "version"}
)
"""What a prediction tells beside its two entities, which stand in it under their own names."""

LIST_FIELDS = frozenset({"exclude_rated", "items", "k"})
"""What a request for recommendations, or its answer, has beside the user; each item then has `attributes` as well."""

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]


class Frozen(BaseModel):
    """Base of everything stored in a bundle: immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Attribute(Frozen):
    """One attribute of an entity, and how the scratch tower reads it."""

    name: Name
    kind: Literal["category", "number", "text"]
    many: bool = False
    """A category with several values at once, such as genres."""
    slots: Annotated[int, Field(ge=1, le=64)] = 1
    """How many of a `many` category's values the tower sees (the first ones)."""
    embed: bool = False
    """Whether the scratch tower learns an embedding of it. Text never is embedded: the backbone reads it."""
    prefix: Annotated[int, Field(ge=1)] | None = None
    """Category: embed only the first characters (3 digits of a zip code)."""
    edges: tuple[float, ...] = ()
    """Number: ascending bucket edges; bucket k holds edges[k-1] <= x < edges[k]."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.embed and self.kind == "text":
            raise ValueError(f"attribute {self.name}: text cannot be embedded by the tower; use kind 'category'")
        if self.embed and self.kind == "number" and not self.edges:
            raise ValueError(f"attribute {self.name}: an embedded number needs bucket 'edges'")
        if list(self.edges) != sorted(set(self.edges)):
            raise ValueError(f"attribute {self.name}: 'edges' must ascend")
        if (self.many or self.prefix) and self.kind != "category":
            raise ValueError(f"attribute {self.name}: 'many' and 'prefix' belong to categories")
        if self.slots > 1 and not self.many:
            raise ValueError(f"attribute {self.name}: 'slots' belongs to a category with many values")
        return self

    def levels(self, value: Value) -> list[str]:
        """The category levels that the tower may embed: one per value, at most `slots`."""
        if self.kind == "number":
            assert isinstance(value, int | float)
            return [str(int(np.searchsorted(self.edges, value, side="right")))]
        values = value if isinstance(value, tuple) else (value,)
        return [str(v)[: self.prefix] for v in values[: self.slots]]


class Entity(Frozen):
    """One side of a rating: the user or the item."""

    name: Name
    id_type: Literal["integer", "string"] = "integer"
    attributes: tuple[Attribute, ...] = ()

    @model_validator(mode="after")
    def _unique(self) -> Self:
        names = [a.name for a in self.attributes]
        if len(set(names)) != len(names) or "id" in names:
            raise ValueError(f"entity {self.name}: attribute names must differ from each other and from 'id'")
        return self

    @property
    def embedded(self) -> tuple[Attribute, ...]:
        """The attributes that own columns of `codes`, in column order."""
        return tuple(a for a in self.attributes if a.embed)

    @property
    def code_columns(self) -> int:
        """Width of `codes`."""
        return sum(a.slots for a in self.embedded)


class Template(Frozen):
    """A sentence over attributes (LIFT, Dinh et al. 2022; paper App. D.1), rendered by `bundle.prompt`."""

    clauses: tuple[str, ...]
    """`entity.attribute` in reading order; `entity.id` is the id."""
    opening: str = ""
    closing: str = ""


class Schema(Frozen):
    """Everything that the fitting and the serving side must agree on about a dataset."""

    user: Entity
    item: Entity
    rating_min: float
    rating_max: float
    user_template: Template
    item_template: Template
    pair_template: Template

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.user.name == self.item.name:
            raise ValueError("the two entities need different names")
        taken = (ANSWER_FIELDS | {"attributes"}) & {self.user.name, self.item.name} | LIST_FIELDS & {self.user.name}
        if taken:
            raise ValueError(
                f"an entity cannot be named '{min(taken)}': the server's answers have a field of that name"
            )
        if self.user.name == f"{self.item.name}s":
            raise ValueError(f"the user cannot be named '{self.user.name}': lists of items have that name")
        if not self.rating_min < self.rating_max:
            raise ValueError("rating_min must be below rating_max")
        known = {f"{e.name}.{a}" for e in self.entities for a in ("id", *(x.name for x in e.attributes))}
        for template in (self.user_template, self.item_template, self.pair_template):
            for clause in template.clauses:
                if clause not in known:
                    raise ValueError(f"template clause '{clause}' names no attribute of the schema")
        return self

    @property
    def entities(self) -> tuple[Entity, Entity]:
        """Both sides, user first: wherever sides are numbered, user is 0 and item is 1."""
        return self.user, self.item


Vocabulary: TypeAlias = Mapping[str, Sequence[str]]
"""The levels of each embedded attribute in code order; code 0 is 'unknown or missing'."""


def build_vocabulary(entity: Entity, fitted: Sequence[Attributes]) -> dict[str, list[str]]:
    """The levels that occur among the fitted entities, sorted, per embedded attribute."""
    return {
        a.name: sorted({level for row in fitted if a.name in row for level in a.levels(row[a.name])})
        for a in entity.embedded
    }


def encode(entity: Entity, vocabulary: Vocabulary, rows: Sequence[Attributes]) -> Int64Array:
    """Codes [len(rows), entity.code_columns] for the tower's category embeddings; 0 = unknown or missing."""
    codes = np.zeros((len(rows), entity.code_columns), dtype=np.int64)
    column = 0
    for attribute in entity.embedded:
        index = {level: code for code, level in enumerate(vocabulary[attribute.name], start=1)}
        for i, row in enumerate(rows):
            if attribute.name in row:
                for slot, level in enumerate(attribute.levels(row[attribute.name])):
                    codes[i, column + slot] = index.get(level, 0)
        column += attribute.slots
    return codes
