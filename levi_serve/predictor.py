"""The predictor: pairs of entities to ratings, a batch at a time. Entity and pair views differ in the graph's inputs.

A request goes through `find`, `encode` (new entities of entity views) and `score`; `predict` is the three in a row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from levi_serve.backends.onnx import Graph, Tensor
from levi_serve.bundle import AnyArray, FloatArray
from levi_serve.bundle.manifest import Manifest
from levi_serve.bundle.prompt import entity_sentence, pair_sentence
from levi_serve.bundle.rows import HalfArray
from levi_serve.bundle.schema import Attributes, Schema, encode
from levi_serve.bundle.scores import quantile, spread
from levi_serve.bundle.tensors import JOIN, PAIR, RATINGS
from levi_serve.bundle.tokens import Tokenizer
from levi_serve.encoder import Encoder, NewEntity
from levi_serve.errors import ModelOutputError
from levi_serve.store import Found, Given, Store, pad_codes

_DECIMALS = 6
"""Answers show what float32 carries and no digits beyond."""


class GivenPair(NamedTuple):
    """A pair as the caller wrote it."""

    user: Given
    item: Given


class Pair(NamedTuple):
    """A pair, looked up."""

    user: Found
    item: Found


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer for one pair."""

    user: Given
    item: Given
    rating: float
    """Weighted mean of the heads, clipped to the schema's range."""
    heads: list[float]
    """Every head's own rating, early layers first, unclipped."""
    disagreement: float
    """Population standard deviation of `heads`."""
    ood_score: float
    """Share of in-distribution pairs that score below this one, 0 to 1."""
    cold_start: list[str]
    """Names of the entities that were not trained on."""


class Views(Protocol):
    """What one kind of views adds: the sentences it reads, and the feeds of the `levi` graph."""

    def sentences(self, pair: Pair) -> list[str]:
        """The sentences of one pair, in the order of the golden examples."""

    def feeds(self, pairs: Sequence[Pair]) -> dict[str, AnyArray]:
        """The graph's inputs for a batch of pairs."""


class EntityViews:
    """Each entity's row already holds what the backbone says of it: a pair is two rows."""

    def __init__(self, schema: Schema, store: Store) -> None:
        """Rows come from `store`."""
        self._schema = schema
        self._store = store

    @staticmethod
    def tensors(manifest: Manifest) -> list[Tensor]:
        """Inputs of the graph."""
        return [Tensor(name, "float32", manifest.layout.width) for name in JOIN]

    def sentences(self, pair: Pair) -> list[str]:
        """The user's and the item's."""
        return [
            entity_sentence(self._schema, side, self._store.attributes(side, found)) for side, found in enumerate(pair)
        ]

    def feeds(self, pairs: Sequence[Pair]) -> dict[str, AnyArray]:
        """One gather per side."""
        return {name: self._store.rows(side, [pair[side] for pair in pairs]) for side, name in enumerate(JOIN)}


class PairViews:
    """The backbone reads one sentence per pair; rows hold only the id embeddings."""

    def __init__(self, manifest: Manifest, store: Store, tokenizer: Tokenizer) -> None:
        """Rows and attributes come from `store`."""
        self._schema = manifest.schema_
        self._vocabulary = manifest.vocabulary
        self._store = store
        self._tokenizer = tokenizer

    @staticmethod
    def tensors(manifest: Manifest) -> list[Tensor]:
        """Inputs of the graph."""
        ids, mask, *sides = PAIR
        inputs = [Tensor(ids, "int64", "T"), Tensor(mask, "int64", "T")]
        for row, codes, entity in zip(sides[::2], sides[1::2], manifest.schema_.entities, strict=True):
            inputs.append(Tensor(row, "float32", manifest.layout.width))
            inputs.append(Tensor(codes, "int64", max(1, entity.code_columns)))
        return inputs

    def sentences(self, pair: Pair) -> list[str]:
        """The paper's one sentence, in which a known id is told as well."""
        user, item = (self._store.attributes(side, found) for side, found in enumerate(pair))
        return [pair_sentence(self._schema, _with_id(pair.user, user), _with_id(pair.item, item))]

    def feeds(self, pairs: Sequence[Pair]) -> dict[str, AnyArray]:
        """Tokens, and both entities' id embeddings and codes."""
        tokens = self._tokenizer.encode([sentence for pair in pairs for sentence in self.sentences(pair)])
        feeds: list[AnyArray] = [*self._tokenizer.pad(tokens)]
        for side, entity in enumerate(self._schema.entities):
            found = [pair[side] for pair in pairs]
            attributes = [self._store.attributes(side, one) for one in found]
            codes = encode(entity, self._vocabulary[side], attributes)
            feeds += [self._store.rows(side, found), pad_codes(codes, max(1, entity.code_columns))]
        return dict(zip(PAIR, feeds, strict=True))


def rating_tensors(manifest: Manifest) -> list[Tensor]:
    """Outputs of the `levi` graph, the same for both views."""
    heads, rating = RATINGS
    return [Tensor(heads, "float32", manifest.layers), Tensor(rating, "float32")]


class Predictor:
    """One version's way from pairs to answers. Nothing in it waits: callers decide on threads and batches."""

    def __init__(
        self,
        schema: Schema,
        store: Store,
        views: Views,
        graph: Graph,
        encoder: Encoder | None,
        reference: FloatArray,
    ) -> None:
        """`encoder` belongs to entity views; `reference` is the sorted in-distribution spread of the heads."""
        self._names = [entity.name for entity in schema.entities]
        self._store = store
        self._views = views
        self._graph = graph
        self._encoder = encoder
        self._reference = reference

    @property
    def encodes(self) -> bool:
        """Whether new entities pass through `encode` before `score`."""
        return self._encoder is not None

    def find(self, pairs: Sequence[GivenPair]) -> list[Pair]:
        """Look up both sides of a request.

        Raises:
            UnknownIdError: the first id that is not in the catalogue.

        """
        users, items = (self._store.find(side, [pair[side] for pair in pairs]) for side in (0, 1))
        return [Pair(*pair) for pair in zip(users, items, strict=True)]

    def sentences(self, pair: Pair) -> list[str]:
        """What a language model reads of a pair."""
        return self._views.sentences(pair)

    def encode(self, entities: Sequence[NewEntity]) -> list[HalfArray]:
        """A row [width] for each new entity (entity views)."""
        assert self._encoder is not None
        return self._encoder.rows(entities)

    def score(self, pairs: Sequence[Pair]) -> list[Prediction | ModelOutputError]:
        """One graph run; a pair whose numbers are not finite fails alone."""
        heads, ratings = self._graph.run(self._views.feeds(pairs))
        usable = np.isfinite(heads).all(axis=1) & np.isfinite(ratings)
        spreads = spread(heads)
        rating, head, disagreement = _shown(ratings), _shown(heads), _shown(spreads)
        ood_score = _shown(quantile(self._reference, spreads))
        return [
            Prediction(
                pair.user.given, pair.item.given, rating[i], head[i], disagreement[i], ood_score[i], self._cold(pair)
            )
            if usable[i]
            else ModelOutputError("the model gave a rating that is not a finite number")
            for i, pair in enumerate(pairs)
        ]

    def predict(self, pairs: Sequence[GivenPair]) -> list[Prediction | ModelOutputError]:
        """`find`, `encode` and `score` at once, in the caller's thread."""
        found = self.find(pairs)
        new = new_entities(found) if self.encodes else {}
        rows = self.encode(list(new.values())) if new else []
        return self.score(with_rows(found, dict(zip(new, rows, strict=True))))

    def _cold(self, pair: Pair) -> list[str]:
        return [name for name, found in zip(self._names, pair, strict=True) if found.cold]


def new_entities(pairs: Sequence[Pair]) -> dict[str, NewEntity]:
    """The different entities that pairs give by attributes, by a key that equal ones share: each is encoded once."""
    return {
        _key(side, found): NewEntity(side, found.given)
        for pair in pairs
        for side, found in enumerate(pair)
        if isinstance(found.given, Mapping)
    }


def with_rows(pairs: Sequence[Pair], rows: dict[str, HalfArray]) -> list[Pair]:
    """The pairs with the rows of `new_entities`, by the same keys, put in."""
    if not rows:
        return list(pairs)
    return [
        Pair(*(replace(found, row=rows[_key(side, found)]) if found.new else found for side, found in enumerate(pair)))
        for pair in pairs
    ]


def _with_id(found: Found, attributes: Attributes) -> Attributes:
    return attributes if isinstance(found.given, Mapping) else {"id": found.given, **attributes}


def _key(side: int, found: Found) -> str:
    return f"{side}{json.dumps(found.given, sort_keys=True)}"


def _shown(values: AnyArray) -> list[Any]:
    return values.astype(np.float64).round(_DECIMALS).tolist()  # type: ignore[no-any-return]
