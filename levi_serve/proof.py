"""The proof of a version: it predicts its golden examples through the very lanes that serve requests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from levi_serve.bundle.golden import Golden, GoldenEntity
from levi_serve.bundle.manifest import BundleError
from levi_serve.bundle.prompt import entity_sentence, pair_sentence
from levi_serve.bundle.rows import Table
from levi_serve.bundle.schema import Attributes
from levi_serve.engine import Engine
from levi_serve.errors import BackendError, ServeError
from levi_serve.predictor import Encoded, GivenPair, Pair, with_id
from levi_serve.store import Given
from levi_serve.versions import Version


async def prove(version: Version, engine: Engine) -> float:
    """Replay the golden examples, which also warms the graphs up; the largest difference of a rating.

    Raises:
        BundleError: a sentence, its tokens or a rating differs from what was recorded.

    """
    path = version.folder / "golden.jsonl"
    worst = 0.0
    for line, (example, pair) in enumerate(zip(version.golden, version.examples, strict=True), start=1):
        where = f"{path}: line {line}"
        try:
            _same_text(where, version, example, pair)
            (answer,) = await engine.predict([_served(version, example, pair)])
        except BackendError:  # no fault of the version
            raise
        except ServeError as error:
            raise BundleError(f"{where}: {error}") from None
        except BundleError:
            raise
        except Exception as error:  # whatever a broken version does to the code is a reason not to serve it
            raise BundleError(f"{where}: {' '.join(str(error).split())}") from error
        worst = max(worst, _difference(where, example, json.loads(answer), version.manifest.golden_tolerance))
    return worst


def _same_text(where: str, version: Version, example: Golden, pair: GivenPair) -> None:
    user, item = (
        _attributes(where, version, side, given, recorded)
        for side, (given, recorded) in enumerate(zip(pair, (example.user, example.item), strict=True))
    )
    schema = version.manifest.schema_
    if version.manifest.views == "entity":
        sentences = [entity_sentence(schema, 0, user), entity_sentence(schema, 1, item)]
    else:
        sentences = [pair_sentence(schema, with_id(pair.user, user), with_id(pair.item, item))]
    if sentences != example.sentences:
        raise BundleError(f"{where}: the sentences read {sentences}, recorded were {example.sentences}")
    if version.tokenizer.encode(sentences) != example.tokens:
        raise BundleError(f"{where}: the token ids of {sentences} differ from those recorded")


def _served(version: Version, example: Golden, pair: GivenPair) -> Pair | GivenPair:
    """The pair as requests have it; an entity whose table is kept elsewhere brings its recorded row along."""
    if None not in version.tables:
        return pair

    def known(given: Given, recorded: GoldenEntity, table: Table | None) -> Any:
        if table is not None or recorded.id is None:
            return given
        return Encoded({"id": recorded.id, **recorded.attributes}, recorded.stored)

    entities = (example.user, example.item)
    return Pair(*(known(*told) for told in zip(pair, entities, version.tables, strict=True)))


def _attributes(where: str, version: Version, side: int, given: Given, recorded: GoldenEntity) -> Attributes:
    """What the table knows of an id."""
    table = version.tables[side]
    if isinstance(given, Mapping) or table is None:
        return recorded.attributes
    (row,) = table.find([given])
    if row < 0:
        raise BundleError(f"{where}: id {given!r} is not in the table")
    return table.attributes(int(row))


def _difference(where: str, example: Golden, answer: dict[str, Any], tolerance: float) -> float:
    recorded = np.array([example.rating, *example.head_ratings])
    replayed = np.array([answer["rating"], *answer["heads"]])
    if recorded.shape != replayed.shape:
        raise BundleError(f"{where}: has {len(example.head_ratings)} head ratings, the model gives {len(replayed) - 1}")
    off = np.abs(replayed - recorded)
    if not off.max() <= tolerance:
        raise BundleError(
            f"{where}: the ratings are off by {off.max():.2g}, more than {tolerance:g}: "
            f"{answer['rating']:.4f} instead of {example.rating:.4f}, or a head's"
        )
    return float(off[0])
