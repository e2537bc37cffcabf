"""The proof of a version: it predicts its golden examples through the very lanes that serve requests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from levi_serve.bundle.golden import Golden
from levi_serve.bundle.manifest import BundleError
from levi_serve.bundle.prompt import entity_sentence, pair_sentence
from levi_serve.bundle.schema import Attributes
from levi_serve.engine import Engine
from levi_serve.errors import ServeError
from levi_serve.predictor import GivenPair, with_id
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
            (answer,) = await engine.predict([pair])
        except ServeError as error:
            raise BundleError(f"{where}: {error}") from None
        except BundleError:
            raise
        except Exception as error:  # whatever a broken version does to the code is a reason not to serve it
            raise BundleError(f"{where}: {' '.join(str(error).split())}") from error
        worst = max(worst, _difference(where, example, json.loads(answer), version.manifest.golden_tolerance))
    return worst


def _same_text(where: str, version: Version, example: Golden, pair: GivenPair) -> None:
    user, item = (_attributes(where, version, side, given) for side, given in enumerate(pair))
    schema = version.manifest.schema_
    if version.manifest.views == "entity":
        sentences = [entity_sentence(schema, 0, user), entity_sentence(schema, 1, item)]
    else:
        sentences = [pair_sentence(schema, with_id(pair.user, user), with_id(pair.item, item))]
    if sentences != example.sentences:
        raise BundleError(f"{where}: the sentences read {sentences}, recorded were {example.sentences}")
    if version.tokenizer.encode(sentences) != example.tokens:
        raise BundleError(f"{where}: the token ids of {sentences} differ from those recorded")


def _attributes(where: str, version: Version, side: int, given: Given) -> Attributes:
    if isinstance(given, Mapping):
        return given
    table = version.tables[side]
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
