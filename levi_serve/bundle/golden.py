"""Golden examples: predictions recorded at export that a server must reproduce before it is ready."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from levi_serve.bundle.manifest import BundleError
from levi_serve.bundle.rows import Id
from levi_serve.bundle.schema import Frozen, Value


class GoldenEntity(Frozen):
    """One side: with an id it comes from the table, without one it is a cold start that only its attributes tell."""

    id: Id | None
    attributes: dict[str, Value]


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


def read_golden(path: Path) -> list[Golden]:
    """All examples of a golden.jsonl.

    Raises:
        BundleError: a line is not a golden example, or there is none.

    """
    examples = []
    content = path.read_bytes()  # not text: its `splitlines` also breaks at U+2028, which JSON leaves inside a string
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n") if content else (), start=1):
        try:
            examples.append(Golden.model_validate_json(line))
        except ValidationError as error:
            raise BundleError(f"{path}: line {number}: {error.errors()[0]['msg']}") from None
    if not examples:
        raise BundleError(f"{path}: holds no golden example")
    return examples


def write_golden(path: Path, examples: list[Golden]) -> None:
    """Write a golden.jsonl."""
    path.write_text("".join(example.model_dump_json() + "\n" for example in examples), encoding="utf-8")
