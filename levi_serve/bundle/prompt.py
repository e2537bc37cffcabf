"""Sentences: an entity's or a pair's attributes as one English sentence (LIFT, Dinh et al. 2022; paper App. D.1)."""

from __future__ import annotations

from collections.abc import Mapping

from levi_serve.bundle.schema import Attributes, Schema, Template, Value


def entity_sentence(schema: Schema, side: int, attributes: Attributes) -> str:
    """The sentence of one entity view: side 0 is the user, 1 the item. An entity without attributes is named only."""
    entity = schema.entities[side]
    template = (schema.user_template, schema.item_template)[side]
    return _render(template, _paths(entity.name, attributes)) or f"the {entity.name}"


def pair_sentence(schema: Schema, user: Attributes, item: Attributes) -> str:
    """The paper's sentence of one pair view. An id, where it is known, stands in the attributes as `id`."""
    values = _paths(schema.user.name, user) | _paths(schema.item.name, item)
    return _render(schema.pair_template, values) or f"the {schema.user.name} and the {schema.item.name}"


def _paths(entity: str, attributes: Attributes) -> dict[str, Value]:
    return {f"{entity}.{name}": value for name, value in attributes.items()}


def _render(template: Template, values: Mapping[str, Value]) -> str:
    clauses = [f"the {path.replace('.', ' ')} is {_text(values[path])}" for path in template.clauses if path in values]
    if not clauses:
        return ""
    if len(clauses) > 1:
        clauses[-1] = f"and {clauses[-1]}"
    return template.opening + ", ".join(clauses) + template.closing


def _text(value: Value) -> str:
    if isinstance(value, tuple):
        return ", ".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
