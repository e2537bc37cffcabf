"""The encoder of entity views: a new entity's attributes to the row that the heads read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from levi_serve.backends.onnx import Tensor
from levi_serve.backends.runner import Runner
from levi_serve.bundle import AnyArray, FloatArray, Int64Array
from levi_serve.bundle.manifest import Manifest
from levi_serve.bundle.prompt import entity_sentence
from levi_serve.bundle.rows import STORED, HalfArray
from levi_serve.bundle.schema import Attributes, encode
from levi_serve.bundle.tensors import ENCODER, ROW
from levi_serve.bundle.tokens import Tokenizer


class NewEntity(NamedTuple):
    """An entity that no table holds; side 0 is a user, 1 an item."""

    side: int
    attributes: Attributes


def encoder_tensors(manifest: Manifest, embedding: int) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs and outputs of the `…_encoder` graph; `embedding` is the width of unknown.npy."""
    ids, mask, embeddings, codes, side = ENCODER
    (row,) = ROW
    inputs = [
        Tensor(ids, "int64", "T"),
        Tensor(mask, "int64", "T"),
        Tensor(embeddings, "float32", embedding),
        Tensor(codes, "int64", code_columns(manifest)),
        Tensor(side, "int64"),
    ]
    return inputs, [Tensor(row, "float32", manifest.layout.width)]


def code_columns(manifest: Manifest) -> int:
    """Width of `codes`, which users and items share."""
    return max(1, *(entity.code_columns for entity in manifest.schema_.entities))


class Encoder:
    """Sentence and codes of new entities through the backbone."""

    def __init__(self, manifest: Manifest, tokenizer: Tokenizer, graph: Runner, unknown: FloatArray) -> None:
        """`unknown` [2, E + 1] is what an untrained user and item have in place of a trained id embedding."""
        self._schema = manifest.schema_
        self._vocabulary = manifest.vocabulary
        self._columns = code_columns(manifest)
        self._tokenizer = tokenizer
        self._graph = graph
        self._unknown = unknown

    def rows(self, entities: Sequence[NewEntity]) -> list[HalfArray]:
        """A row [width] for each entity."""
        return self.run(self.read(entities))

    def read(self, entities: Sequence[NewEntity]) -> dict[str, AnyArray]:
        """The graph's inputs: sentences become tokens here."""
        sentences = [entity_sentence(self._schema, side, attributes) for side, attributes in entities]
        input_ids, mask = self._tokenizer.pad(self._tokenizer.encode(sentences))
        sides = np.array([side for side, _ in entities], dtype=np.int64)
        codes = np.concatenate([self._codes(*entity) for entity in entities])
        feeds: tuple[AnyArray, ...] = (input_ids, mask, self._unknown[sides], codes, sides)
        return dict(zip(ENCODER, feeds, strict=True))

    def run(self, feeds: dict[str, AnyArray]) -> list[HalfArray]:
        """Rows, rounded as stored ones are, so that both give the same rating."""
        (rows,) = self._graph.run(feeds)
        return list(rows.astype(STORED))

    def close(self) -> None:
        """Let go of the graph."""
        self._graph.close()

    def _codes(self, side: int, attributes: Attributes) -> Int64Array:
        return pad_codes(encode(self._schema.entities[side], self._vocabulary[side], [attributes]), self._columns)


def pad_codes(codes: Int64Array, columns: int) -> Int64Array:
    """Codes [B, C] padded on the right with 0, which means unknown, to [B, columns]."""
    return np.pad(codes, ((0, 0), (0, columns - codes.shape[1])))
