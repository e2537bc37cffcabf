"""The predictor: rows of both sides to ratings, a batch at a time. The kinds of views differ in the graph's inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

from levi_serve.backends.onnx import Tensor
from levi_serve.backends.runner import Runner
from levi_serve.bundle import AnyArray, BoolArray, DoubleArray, FloatArray, Int64Array
from levi_serve.bundle.manifest import Manifest
from levi_serve.bundle.prompt import pair_sentence
from levi_serve.bundle.reference import Reference
from levi_serve.bundle.rows import STORED, HalfArray, Id
from levi_serve.bundle.schema import Attributes, encode
from levi_serve.bundle.scores import SUPPORT, quantile
from levi_serve.bundle.tensors import JOIN, PAIR, RATINGS
from levi_serve.bundle.tokens import Tokenizer
from levi_serve.encoder import pad_codes
from levi_serve.store import Given, Side, State

DECIMALS = 6
"""Answers show what float32 carries and no digits beyond."""


class GivenPair(NamedTuple):
    """A pair as the caller wrote it."""

    user: Given
    item: Given


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A new entity whose row is known: the encoder made it, or it needs none (pair views). It is who has that row."""

    given: Attributes
    row: HalfArray
    """[W]"""

    def __eq__(self, other: object) -> bool:
        """Whether both have one row."""
        return isinstance(other, Encoded) and self.row.tobytes() == other.row.tobytes()

    def __hash__(self) -> int:
        """Of the row."""
        return hash(self.row.tobytes())


Known: TypeAlias = Id | Encoded
"""One side of a pair that can be looked up and scored."""


class Pair(NamedTuple):
    """A pair whose new entities have rows."""

    user: Known
    item: Known


class Probe(Pair):
    """A pair that no client asked for: the monitor is not shown it."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What the model says of B pairs, rounded as answers show it."""

    rating: DoubleArray
    """[B], weighted mean of the heads, clipped to the schema's range."""
    heads: DoubleArray
    """[B, n], every head's own rating, early layers first, unclipped."""
    disagreement: DoubleArray
    """[B], population standard deviation of `heads`."""
    ood_score: DoubleArray
    """[B], share of in-distribution pairs that score below this one, 0 to 1."""
    usable: BoolArray
    """[B], whether all of it is finite."""
    watched: FloatArray
    """[B, S], the monitor's scores, not rounded."""


class Predictor:
    """The `levi` graph and the scores of its ratings. Nothing in it waits: callers decide on threads and batches."""

    def __init__(self, graph: Runner, reference: Reference, score: str) -> None:
        """`score` is the one of the reference's scores that `ood_score` is the quantile of."""
        self._graph = graph
        self.waits = graph.waits
        self._scorer = reference.scorer
        self._column = reference.names.index(score)
        self._table = reference.tables[score]
        self._support = SUPPORT[0] in reference.names

    def score(self, feeds: dict[str, AnyArray]) -> Scores:
        """One graph run, and what follows from it."""
        return self.scores(feeds, *self.rate(feeds))

    def rate(self, feeds: dict[str, AnyArray]) -> tuple[FloatArray, FloatArray]:
        """One graph run: head ratings [B, n] and ratings [B], finite or not."""
        heads, ratings = self._graph.run(feeds)
        return heads, ratings

    def scores(self, feeds: dict[str, AnyArray], heads: FloatArray, ratings: AnyArray) -> Scores:
        """All there is to say of the pairs that `feeds` were rated from."""
        # Where rows tell the support of an entity, it is their last column.
        user, item = JOIN
        support = (feeds[user][:, -1], feeds[item][:, -1]) if self._support else None
        watched = self._scorer(heads, support)
        n = heads.shape[1]
        shown = np.empty(
            (len(heads), n + 3)
        )  # one array: rounding four would cost more than the small batch's model run
        shown[:, :n], shown[:, n], shown[:, n + 1] = heads, ratings, watched[:, 0]
        shown[:, n + 2] = quantile(self._table, watched[:, self._column])
        usable: BoolArray = np.asarray(np.isfinite(shown).all(axis=1))
        shown.round(DECIMALS, out=shown)
        return Scores(shown[:, n], shown[:, :n], shown[:, n + 1], shown[:, n + 2], usable, watched)

    def close(self) -> None:
        """Let go of the graph."""
        self._graph.close()


def entity_tensors(manifest: Manifest) -> list[Tensor]:
    """Inputs of the `levi` graph of entity views: each entity's row already holds what the backbone says of it."""
    return [Tensor(name, "float16", manifest.layout.width) for name in JOIN]


def entity_feeds(users: HalfArray, items: HalfArray) -> dict[str, AnyArray]:
    """Rows of both sides as they are stored: items' [B, W], users' [B, W] or one [1, W] for all items."""
    user_row, item_row = JOIN
    return {user_row: users, item_row: items}


class PairText(NamedTuple):
    """A pair of pair views, ready for the graph."""

    tokens: list[int]
    rows: tuple[HalfArray, HalfArray]
    """Both sides' id embedding and bias, [E + 1]."""
    codes: tuple[Int64Array, Int64Array]
    """[1, C]"""


class PairReader:
    """Pair views: the backbone reads one sentence per pair; rows hold only the id embeddings."""

    def __init__(self, manifest: Manifest, tokenizer: Tokenizer) -> None:
        """Sentences and codes as the manifest's schema has them."""
        self._schema = manifest.schema_
        self._vocabulary = manifest.vocabulary
        self._tokenizer = tokenizer

    @staticmethod
    def tensors(manifest: Manifest) -> list[Tensor]:
        """Inputs of the `levi` graph."""
        ids, mask, *sides = PAIR
        inputs = [Tensor(ids, "int64", "T"), Tensor(mask, "int64", "T")]
        for row, codes, entity in zip(sides[::2], sides[1::2], manifest.schema_.entities, strict=True):
            inputs.append(Tensor(row, "float32", manifest.layout.width))
            inputs.append(Tensor(codes, "int64", max(1, entity.code_columns)))
        return inputs

    def sentence(self, pair: GivenPair, users: Attributes, items: Attributes) -> str:
        """The paper's one sentence, in which a known id is told as well."""
        return pair_sentence(self._schema, with_id(pair.user, users), with_id(pair.item, items))

    def read(self, pairs: Sequence[GivenPair], sides: tuple[Side, Side], places: Sequence[int]) -> list[PairText]:
        """Sentences, tokens and codes of pairs that stand at these places of the looked-up sides."""
        known = [[side.attributes(i) if side.state[i] == State.FOUND else {} for i in places] for side in sides]
        sentences = [self.sentence(*told) for told in zip(pairs, *known, strict=True)]
        codes = [
            pad_codes(encode(entity, vocabulary, attributes), max(1, entity.code_columns))
            for entity, vocabulary, attributes in zip(self._schema.entities, self._vocabulary, known, strict=True)
        ]
        return [
            PairText(tokens, (sides[0].rows[at], sides[1].rows[at]), (codes[0][i : i + 1], codes[1][i : i + 1]))
            for i, (at, tokens) in enumerate(zip(places, self._tokenizer.encode(sentences), strict=True))
        ]

    def feeds(self, texts: Sequence[PairText]) -> dict[str, AnyArray]:
        """The graph's inputs."""
        feeds: list[AnyArray] = [*self._tokenizer.pad([text.tokens for text in texts])]
        for side in (0, 1):
            feeds.append(np.stack([text.rows[side] for text in texts]).astype(np.float32))
            feeds.append(np.concatenate([text.codes[side] for text in texts]))
        return dict(zip(PAIR, feeds, strict=True))


def rating_tensors(manifest: Manifest) -> list[Tensor]:
    """Outputs of the `levi` graph, the same for both views."""
    heads, rating = RATINGS
    return [Tensor(heads, "float32", manifest.layers), Tensor(rating, "float32")]


def merged(side: Side, entities: Sequence[Known]) -> Side:
    """The whole batch's side from that of its ids, in order, and the rows that new entities bring along."""
    ids = [i for i, entity in enumerate(entities) if not isinstance(entity, Encoded)]
    if len(ids) == len(entities):
        return side
    place = dict(zip(ids, range(len(ids)), strict=True))
    rows = np.empty((len(entities), side.rows.shape[1]), STORED)
    trained, state = np.zeros(len(entities), np.bool_), np.full(len(entities), State.FOUND, np.int8)
    rows[ids], trained[ids], state[ids] = side.rows, side.trained, side.state
    for i, entity in enumerate(entities):
        if isinstance(entity, Encoded):
            rows[i] = entity.row

    def attributes(i: int) -> Attributes:
        entity = entities[i]
        return entity.given if isinstance(entity, Encoded) else side.attributes(place[i])

    return Side(rows, trained, state, attributes)


def ids_of(entities: Sequence[Known]) -> list[Id]:
    """Those that must be looked up."""
    return [entity for entity in entities if not isinstance(entity, Encoded)]


def with_id(given: Given, attributes: Attributes) -> Attributes:
    """What a pair's sentence tells of an entity: a known one's id as well."""
    return attributes if isinstance(given, Mapping) else {"id": given, **attributes}
