"""The store: who an entity is and the row that the model reads of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from levi_serve.bundle import FloatArray, Int64Array
from levi_serve.bundle.rows import HalfArray, Id, Table
from levi_serve.bundle.schema import Attributes
from levi_serve.errors import UnknownIdError

Given: TypeAlias = Id | Attributes
"""How a caller names an entity: by its id, or, when it is new, by its attributes."""


@dataclass(frozen=True, slots=True)
class Found:
    """One entity of a request, looked up."""

    given: Given
    number: int
    """Its row in the table; the unknown entity's for a new one."""
    cold: bool
    """Not trained on: new, or in the catalogue without a fitted rating."""
    row: HalfArray | None = None
    """[width], what the encoder made of a new entity; it stands in for the table's row."""

    @property
    def new(self) -> bool:
        """Given by attributes."""
        return isinstance(self.given, Mapping)


class Store:
    """Both tables of one version; side 0 is the user, 1 the item."""

    def __init__(self, users: Table, items: Table) -> None:
        """Serve rows from these tables."""
        self._tables = (users, items)

    def find(self, side: int, given: Sequence[Given]) -> list[Found]:
        """Look up one side of a request.

        Raises:
            UnknownIdError: the first id that is not in the catalogue.

        """
        table = self._tables[side]
        known = [i for i, entity in enumerate(given) if not isinstance(entity, Mapping)]
        numbers = np.full(len(given), table.unknown, dtype=np.int64)
        cold = np.ones(len(given), dtype=np.bool_)
        if known:
            numbers[known] = table.find([entity for entity in given if not isinstance(entity, Mapping)])
            for i in known:
                if numbers[i] < 0:
                    raise UnknownIdError(side, given[i], i)  # type: ignore[arg-type] # `known` holds ids only
            cold[known] = ~table.trained[numbers[known]]
        return [Found(*found) for found in zip(given, numbers.tolist(), cold.tolist(), strict=True)]

    def rows(self, side: int, entities: Sequence[Found]) -> FloatArray:
        """Rows [B, width] as the graphs read them: one gather, then the fresh rows over it."""
        numbers = np.fromiter((entity.number for entity in entities), dtype=np.int64, count=len(entities))
        rows = self._tables[side].rows[numbers].astype(np.float32)
        for i, entity in enumerate(entities):
            if entity.row is not None:
                rows[i] = entity.row
        return rows

    def attributes(self, side: int, entity: Found) -> Attributes:
        """What is known of an entity."""
        return entity.given if isinstance(entity.given, Mapping) else self._tables[side].attributes(entity.number)


def pad_codes(codes: Int64Array, columns: int) -> Int64Array:
    """Codes [B, C] padded on the right with 0, which means unknown, to [B, columns]."""
    return np.pad(codes, ((0, 0), (0, columns - codes.shape[1])))
