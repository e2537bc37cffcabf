"""The exported graphs as torch modules: the model's own parts, wired to the tensors that the server feeds."""

from __future__ import annotations

import logging
import shutil
import warnings
from pathlib import Path
from typing import TypeAlias

import onnx
import torch
from torch import Tensor, nn

from levi_serve.bundle import tensors
from training.backbones import MAX_TOKENS, pooled
from training.model import Levi, Network, Projection

BACKBONE = "backbone/"
"""What names of the backbone's nodes begin with."""
WEIGHTS = "weights.bin"
"""Beside a graph, its large tensors."""
LARGE = 1 << 20
"""Bytes of a tensor that is large."""


class JoinGraph(nn.Module):
    """Entity views, the `levi` graph: user rows [B, W], or one [1, W] for all items, and item rows [B, W], as they are
    stored, to head ratings [B, n] and the rating [B].
    """

    inputs, outputs = tensors.JOIN, tensors.RATINGS
    stored = tensors.JOIN

    def __init__(self, model: Network, bounds: tuple[float, float]) -> None:
        super().__init__()
        self.model, self.bounds = model, bounds

    def forward(self, user_row: Tensor, item_row: Tensor) -> tuple[Tensor, Tensor]:
        heads = self.model.join(user_row.float(), item_row.float())
        return heads, self.model.rating(heads).clamp(*self.bounds)


class EncoderGraph(nn.Module):
    """Entity views, the `levi_encoder` graph: sentences and id embeddings to entity rows [B, W]."""

    inputs, outputs = tensors.ENCODER, tensors.ROW
    stored: tuple[str, ...] = ()

    def __init__(self, model: Network, encoder: nn.Module) -> None:
        super().__init__()
        self.model, self.encoder = model, encoder

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, embedding: Tensor, codes: Tensor, side: Tensor
    ) -> Tensor:
        views = pooled(self.encoder, input_ids, attention_mask)
        is_item = side.unsqueeze(1) == 1
        # Both halves of every row are computed, since the backbone costs a thousand times more. Codes of the other
        # side are blanked: they may exceed this side's vocabulary.
        user = self._row(0, embedding, codes.masked_fill(is_item, 0), views)
        item = self._row(1, embedding, codes.masked_fill(~is_item, 0), views)
        return torch.where(is_item, item, user)

    def _row(self, side: int, embedding: Tensor, codes: Tensor, views: Tensor) -> Tensor:
        half = self.model.halves[side]
        assert half.projection is not None
        row: Tensor = half(embedding, codes[:, : sum(half.slots)], half.projection(views))
        return row


class PairGraph(nn.Module):
    """Pair views, the `levi` graph: sentences and both sides' embeddings and codes to ratings."""

    inputs, outputs = tensors.PAIR, tensors.RATINGS
    stored: tuple[str, ...] = ()

    def __init__(self, model: Levi, encoder: nn.Module, bounds: tuple[float, float]) -> None:
        super().__init__()
        self.model, self.encoder, self.bounds = model, encoder, bounds

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        user_row: Tensor,
        user_codes: Tensor,
        item_row: Tensor,
        item_codes: Tensor,
    ) -> tuple[Tensor, Tensor]:
        projection = self.model.pair_projection
        assert isinstance(projection, Projection)
        components = projection(pooled(self.encoder, input_ids, attention_mask))
        user = self.model.user(user_row, user_codes[:, : sum(self.model.user.slots)], None)
        item = self.model.item(item_row, item_codes[:, : sum(self.model.item.slots)], None)
        heads = self.model.join(user, item, components)
        return heads, self.model.rating(heads).clamp(*self.bounds)


Graph: TypeAlias = JoinGraph | EncoderGraph | PairGraph


def write_onnx(graph: Graph, examples: tuple[Tensor, ...], path: Path) -> None:
    """Export a graph with dynamic batch and sentence length into one file. `examples` are a batch of two, or of
    one for a stored user row.
    """
    one = graph.stored[:1]
    batch = torch.export.Dim("batch", min=1, max=1 << 20)
    length = torch.export.Dim("length", min=1, max=MAX_TOKENS)
    # The exporter names operators of a package that is not installed; nobody here needs them.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="# The axis name", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        torch.onnx.export(
            graph.eval(),
            examples,
            path,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_shapes=tuple(
                {0: batch, 1: length} if name in tensors.SENTENCE else {} if name in one else {0: batch}
                for name in graph.inputs
            ),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    _finish(path, one)


def _finish(path: Path, one: tuple[str, ...]) -> None:
    """Open the batch axis of the inputs that were traced as `one`: torch cannot trace an axis that is 1 or B, but ONNX
    broadcasts as torch does. Nodes of the backbone get its name. The exporter's notes, such as paths of sources, go.
    """
    model = onnx.load(path)
    for tensor in model.graph.input:
        if tensor.name in one:
            tensor.type.tensor_type.shape.dim[0].dim_param = "one_or_batch"
            del model.graph.value_info[:]  # shapes that followed from the one
    for node in model.graph.node:
        scopes = [p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"]
        if scopes and scopes[0].startswith("['', 'encoder"):
            node.name = f"{BACKBONE}{node.name}"
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output, model.graph):
        part.ClearField("metadata_props")
    onnx.save(model, path)


def set_aside(path: Path) -> None:
    """Move a graph's large tensors into a file beside it. ONNX Runtime maps that file: workers share it, loading copies
    nothing, and letting go of it does not stop a server for as long as freeing so much memory takes.
    """
    model = onnx.load(path)
    if any(len(tensor.raw_data) >= LARGE for tensor in model.graph.initializer):
        onnx.save(model, path, save_as_external_data=True, location=WEIGHTS, size_threshold=LARGE)
        shutil.copymode(path, path.with_name(WEIGHTS))  # the library lets nobody else read it


def graph_bytes(path: Path) -> int:
    """Of a graph's files."""
    return sum(file.stat().st_size for file in (path, path.with_name(WEIGHTS)) if file.exists())
