"""What a server computes, from entities to head ratings, over the exported graphs or over the same graphs in torch.

Export uses it twice: with ONNX Runtime to prove that the graphs agree with the fitted model, and with torch to record
the golden examples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch

from levi_serve.bundle import AnyArray, FloatArray, Int64Array, tensors
from levi_serve.bundle.golden import GoldenEntity
from levi_serve.bundle.prompt import entity_sentence, pair_sentence
from levi_serve.bundle.rows import STORED, Id
from levi_serve.bundle.runtime import ort
from levi_serve.bundle.schema import Attributes, encode
from training.datasets.dataset import attributes
from training.graphs import Graph
from training.run import Run
from training.views import batches_by_length

Runner: TypeAlias = Callable[[Mapping[str, AnyArray]], AnyArray]
"""Feeds by tensor name to the graph's first output."""

BATCH = 1024


def onnx_runner(path: Path) -> Runner:
    """A graph file in ONNX Runtime, on the CPU in fp32."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda feeds: np.asarray(session.run(None, dict(feeds))[0])


def torch_runner(graph: Graph) -> Runner:
    """The same graph in torch."""

    @torch.inference_mode()
    def run(feeds: Mapping[str, AnyArray]) -> AnyArray:
        result = graph(*(torch.from_numpy(feeds[name]) for name in graph.inputs))
        first: torch.Tensor = result[0] if isinstance(result, tuple) else result
        return first.numpy()

    return run


@dataclass(frozen=True)
class Chain:
    """The computation of one run's model; `encode` is None with pair views."""

    run: Run
    model: Runner
    encode: Runner | None
    between: type[np.floating] = STORED
    """The type of rows between encoder and model (entity views). Exported graphs read no other."""

    def heads(self, users: Sequence[GoldenEntity], items: Sequence[GoldenEntity]) -> FloatArray:
        """Head ratings [len(users), n] of pairs, unclipped; between two exported graphs rows are rounded."""
        if self.encode is None:
            return self._pair_heads(users, items)
        rows = self.rows(0, users), self.rows(1, items)
        return self.join(rows[0].astype(self.between), rows[1].astype(self.between))

    def join(self, users: AnyArray, items: AnyArray) -> FloatArray:
        """Head ratings [B, n] of rows [B, W]; an exported graph reads them as they are stored."""
        parts = [slice(at, at + BATCH) for at in range(0, len(users), BATCH)]
        feeds = [dict(zip(tensors.JOIN, (users[p], items[p]), strict=True)) for p in parts]
        return np.concatenate([self.model(f) for f in feeds])

    def sentences(self, user: GoldenEntity, item: GoldenEntity) -> list[str]:
        """What the backbone reads of a pair: two sentences with entity views, one with pair views."""
        schema = self.run.dataset.schema
        if self.encode is None:
            return [pair_sentence(schema, _described(user), _described(item))]
        return [entity_sentence(schema, 0, user.attributes), entity_sentence(schema, 1, item.attributes)]

    def rows(self, side: int, entities: Sequence[GoldenEntity]) -> FloatArray:
        """Entity rows [len(entities), W]; an entity that occurs often is encoded once."""
        assert self.encode is not None
        keys = [entity.model_dump_json() for entity in entities]
        distinct = dict(zip(keys, entities, strict=True))
        place = {key: i for i, key in enumerate(distinct)}
        columns = max(1, *(e.code_columns for e in self.run.dataset.schema.entities))
        embedding, codes = id_inputs(self.run, side, list(distinct.values()), columns)
        schema = self.run.dataset.schema
        tokens = self.run.tokenizer.encode([entity_sentence(schema, side, e.attributes) for e in distinct.values()])
        out = np.empty((len(distinct), self.run.model.shape.layout.width), dtype=np.float32)
        for batch in batches_by_length([len(t) for t in tokens]):
            feeds = (*self._pad(tokens, batch), embedding[batch], codes[batch], np.full(len(batch), side))
            out[batch] = self.encode(dict(zip(tensors.ENCODER, feeds, strict=True)))
        return out[[place[key] for key in keys]]

    def _pair_heads(self, users: Sequence[GoldenEntity], items: Sequence[GoldenEntity]) -> FloatArray:
        user, item = self.run.dataset.schema.entities
        user_row, user_codes = id_inputs(self.run, 0, users, max(1, user.code_columns))
        item_row, item_codes = id_inputs(self.run, 1, items, max(1, item.code_columns))
        tokens = self.run.tokenizer.encode([self.sentences(*pair)[0] for pair in zip(users, items, strict=True)])
        out = np.empty((len(users), self.run.model.shape.layers), dtype=np.float32)
        for b in batches_by_length([len(t) for t in tokens]):
            feeds = (*self._pad(tokens, b), user_row[b], user_codes[b], item_row[b], item_codes[b])
            out[b] = self.model(dict(zip(tensors.PAIR, feeds, strict=True)))
        return out

    def _pad(self, tokens: Sequence[Sequence[int]], batch: Sequence[int]) -> tuple[Int64Array, Int64Array]:
        return self.run.tokenizer.pad([tokens[i] for i in batch])


def id_inputs(run: Run, side: int, entities: Sequence[GoldenEntity], columns: int) -> tuple[FloatArray, Int64Array]:
    """Id embedding and bias [B, E + 1], and codes [B, columns], of entities of one side."""
    rows = row_numbers(run, side)
    known = [0 if e.id is None else int(run.ids[side][rows[e.id]]) for e in entities]
    with torch.inference_mode():
        embedding = run.model.halves[side].ids(torch.tensor(known)).numpy()
    entity = run.dataset.schema.entities[side]
    codes = encode(entity, run.prepared.vocabulary[side], [e.attributes for e in entities])
    return embedding, np.pad(codes, ((0, 0), (0, columns - codes.shape[1])))


def row_numbers(run: Run, side: int) -> dict[Id, int]:
    """Table row of each id."""
    table = (run.dataset.users, run.dataset.items)[side]
    return {ident: row for row, ident in enumerate(table["id"].to_pylist())}


def catalogue(run: Run, side: int) -> list[GoldenEntity]:
    """Every entity of one side, as a request by id would mean it."""
    table, entity = (run.dataset.users, run.dataset.items)[side], run.dataset.schema.entities[side]
    described = attributes(table, entity)
    return [GoldenEntity(id=i, attributes=dict(row)) for i, row in zip(table["id"].to_pylist(), described, strict=True)]


def _described(entity: GoldenEntity) -> Attributes:
    return dict(entity.attributes) if entity.id is None else {"id": entity.id, **entity.attributes}
