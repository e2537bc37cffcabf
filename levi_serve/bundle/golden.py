"""Golden examples: predictions recorded at export that a server must reproduce before it is ready."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import ValidationError

from levi_serve.bundle.manifest import BundleError
from levi_serve.bundle.rows import STORED, HalfArray, Id
from levi_serve.bundle.schema import Frozen, Value


class GoldenEntity(Frozen, ser_json_bytes="base64", val_json_bytes="base64"):
    """One side: with an id it is one of the catalogue, without one it is a cold start that only its attributes tell."""

    id: Id | None
    attributes: dict[str, Value]
    row: bytes | None = None
    """Of one with an id, its row as it is stored: a server that keeps no table of this side replays it all the same."""

    @property
    def stored(self) -> HalfArray:
        """The row [W]."""
        assert self.row is not None
        return np.frombuffer(self.row, STORED)


class Golden(Frozen):
    """One recorded prediction."""

    user: GoldenEntity
    item: GoldenEntity
    sentences: list[str]
    """Entity views: the user's and the item's; pair views: one."""
    tokens: list[list[int]]
    """Token ids of each sentence."""
    head_ratings: list[float]
    """Unclipped, [n], computed by torch in fp32."""
    rating: float


def read_golden(path: Path, width: int) -> list[Golden]:
    """All examples of a golden.jsonl; rows have `width` columns.

    Raises:
        BundleError: a line is not a golden example, an id has no such row, or there is no example.

    """
    examples = []
    content = path.read_bytes()  # not text: its `splitlines` also breaks at U+2028, which JSON leaves inside a string
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n") if content else (), start=1):
        try:
            examples.append(Golden.model_validate_json(line))
        except ValidationError as error:
            raise BundleError(f"{path}: line {number}: {error.errors()[0]['msg']}") from None
        for entity in (examples[-1].user, examples[-1].item):
            if entity.id is not None and len(entity.row or b"") != width * np.dtype(STORED).itemsize:
                raise BundleError(f"{path}: line {number}: id {entity.id!r} has no row of {width} columns")
    if not examples:
        raise BundleError(f"{path}: holds no golden example")
    return examples


def write_golden(path: Path, examples: list[Golden]) -> None:
    """Write a golden.jsonl."""
    path.write_text("".join(example.model_dump_json() + "\n" for example in examples), encoding="utf-8")
