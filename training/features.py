"""What LEVI reads of a dataset, as tensors: codes and projected views of entities or pairs, and the ratings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from levi_serve.bundle import Int64Array
from levi_serve.bundle.prompt import entity_sentence, pair_sentence
from levi_serve.bundle.schema import Attributes, Vocabulary, build_vocabulary, encode
from training.backbones import Backbone
from training.datasets.dataset import Dataset, attributes
from training.errors import UsageError
from training.model import Batch, FactorSize, Projection, Shape, Size
from training.options import Variant, ViewKind
from training.stream import Stream
from training.views import Views, compute_views

SAMPLE = 20_000
"""Most sentences that a projection is fitted on."""
MULTI_HEADS = 7
"""Heads of a tower without views (ablation A5): as many as MiniLM has views."""


@dataclass(frozen=True)
class Features:
    """A dataset's ratings and all model inputs, on one device; entities and ratings keep the dataset's row numbers."""

    user: Tensor  # [m] row of the users' table
    item: Tensor  # [m]
    value: Tensor  # [m] rating
    codes: tuple[Tensor, Tensor]  # [U, C] and [M, C]
    components: tuple[Tensor | None, Tensor | None]  # [U, n, k] and [M, n, k] with entity views
    pair_components: Tensor | None  # [m, n, k] with pair views

    def batch(self, rows: Tensor, ids: tuple[Tensor, Tensor]) -> Batch:
        """Model inputs of some ratings; `ids` maps table rows to id embeddings, 0 where the id is to stay unknown."""
        user, item = self.user[rows], self.item[rows]
        of_user, of_item = self.components
        return Batch(
            ids=(ids[0][user], ids[1][item]),
            codes=(self.codes[0][user], self.codes[1][item]),
            components=(
                None if of_user is None else of_user[user],
                None if of_item is None else of_item[item],
            ),
            pair_components=None if self.pair_components is None else self.pair_components[rows],
        )

    def known_ids(self, fitted: Tensor | Stream) -> tuple[Tensor, Tensor]:
        """Id-embedding row of each user and item that occurs in the `fitted` ratings, 0 for all others."""
        if isinstance(fitted, Stream):
            seen = [torch.from_numpy(rows).to(self.user.device) for rows in fitted.known]
        else:
            seen = [torch.unique(column[fitted]) for column in (self.user, self.item)]
        out = []
        for rows, codes in zip(seen, self.codes, strict=True):
            ids = torch.zeros(len(codes), dtype=torch.int64, device=rows.device)
            ids[rows] = rows + 1
            out.append(ids)
        return out[0], out[1]

    def rated(self, fitted: Tensor | Stream) -> Tensor:
        """The `fitted` ratings, or, of a stream, a single one: their mean."""
        if isinstance(fitted, Stream):
            return torch.tensor([fitted.mean], dtype=torch.float64)
        return self.value[fitted]

    def of(self, ratings: Tensor) -> Features:
        """The same inputs for ratings [B, 3] of a stream: user row, item row, rating."""
        user, item, value = ratings.unbind(1)
        return replace(self, user=user.long(), item=item.long(), value=value.float())


class Basis(NamedTuple):
    """What has to be fitted to make features: the server needs it to make more of the same kind."""

    vocabulary: tuple[Vocabulary, Vocabulary]
    projections: list[dict[str, Tensor]]
    """State of each `Projection`: user's and item's with entity views, the pair's with pair views."""


@dataclass(frozen=True)
class Prepared:
    """Features, and the basis that they are told in."""

    features: Features
    shape: Shape
    vocabulary: tuple[Vocabulary, Vocabulary]
    projections: list[dict[str, Tensor]]
    start: Mapping[str, Tensor] | None = None
    """Parameters of the model before its first step; None draws them."""


def prepare(
    dataset: Dataset,
    train: Int64Array | Stream,
    backbone: Backbone | None,
    views: ViewKind,
    size: Size | FactorSize,
    cache: Path,
    device: torch.device,
    variant: Variant = "levi",
    basis: Basis | None = None,
) -> Prepared:
    """Compute the views (or read them from the cache) and turn the dataset into tensors.

    Vocabulary and projections are those of the `basis`, or else fitted on what occurs in `train` only.

    Raises:
        UsageError: the variant does not go with the views.
    """
    if (variant == "multi-head") != (views == "none") and variant != "levi":
        raise UsageError(f"--variant {variant}: does not go with --views {views}; multi-head goes with none alone")
    described = [attributes(dataset.users, dataset.schema.user), attributes(dataset.items, dataset.schema.item)]
    columns = [dataset.ratings.user, dataset.ratings.item]
    if isinstance(train, Stream):
        fitted, rows = list(train.known), train.own
    else:
        fitted, rows = [np.unique(column[train]).astype(np.int64) for column in columns], train
    entities = dataset.schema.entities
    vocabulary: Sequence[Vocabulary] = [
        build_vocabulary(entity, [rows[i] for i in seen])
        for entity, rows, seen in zip(entities, described, fitted, strict=True)
    ]
    if basis is not None:
        vocabulary = basis.vocabulary
    shape = Shape(
        size=size,
        views=views,
        layers=backbone.layers if backbone else MULTI_HEADS if variant == "multi-head" else 1,
        width=backbone.width if backbone else 0,
        counts=(len(described[0]), len(described[1])),
        variant=variant,
        binary=dataset.binary,
        categories=(
            tuple((len(vocabulary[0][a.name]), a.slots) for a in entities[0].embedded),
            tuple((len(vocabulary[1][a.name]), a.slots) for a in entities[1].embedded),
        ),
    )
    codes = [
        torch.from_numpy(encode(entity, words, rows)).to(device)
        for entity, words, rows in zip(entities, vocabulary, described, strict=True)
    ]
    known = None if basis is None else basis.projections
    projections, components, pair_components = _view_inputs(
        dataset, fitted, rows, backbone, shape, cache, device, known
    )
    features = Features(
        user=torch.tensor(dataset.ratings.user, dtype=torch.int64, device=device),
        item=torch.tensor(dataset.ratings.item, dtype=torch.int64, device=device),
        value=torch.tensor(dataset.ratings.value, device=device),
        codes=(codes[0], codes[1]),
        components=components,
        pair_components=pair_components,
    )
    return Prepared(features, shape, (vocabulary[0], vocabulary[1]), projections)


def _view_inputs(
    dataset: Dataset,
    fitted: Sequence[Int64Array],
    train: Int64Array,
    backbone: Backbone | None,
    shape: Shape,
    cache: Path,
    device: torch.device,
    known: Sequence[dict[str, Tensor]] | None,
) -> tuple[list[dict[str, Tensor]], tuple[Tensor | None, Tensor | None], Tensor | None]:
    """What the heads read: projections, both sides' components (entity views), and the ratings' (pair views)."""
    if backbone is None:
        return [], (None, None), None
    spoken = sentences(dataset, shape.views)
    if shape.views == "pair":
        computed = compute_views(backbone, spoken[0], cache, device, "pair views")
        projection = known[0] if known else fit_projection(computed, train, shape)
        return [projection], (None, None), project(computed, projection, shape, device)
    projections, components = [], []
    for side, entity in enumerate(dataset.schema.entities):
        computed = compute_views(backbone, spoken[side], cache, device, f"{entity.name} views")
        projections.append(known[side] if known else fit_projection(computed, fitted[side], shape))
        components.append(project(computed, projections[side], shape, device))
    return projections, (components[0], components[1]), None


def with_id(table_ids: Sequence[int | str], rows: Sequence[Attributes]) -> list[Attributes]:
    """Attributes that also carry the id, as the pair sentence wants it."""
    return [{"id": ident, **row} for ident, row in zip(table_ids, rows, strict=True)]


def sentences(dataset: Dataset, views: ViewKind) -> list[list[str]]:
    """What the backbone reads: one list with a sentence per rating, or one per side with a sentence per entity."""
    described = [attributes(dataset.users, dataset.schema.user), attributes(dataset.items, dataset.schema.item)]
    if views == "entity":
        return [[entity_sentence(dataset.schema, side, row) for row in described[side]] for side in (0, 1)]
    users = with_id(dataset.users["id"].to_pylist(), described[0])
    items = with_id(dataset.items["id"].to_pylist(), described[1])
    ratings = dataset.ratings
    pairs = zip(ratings.user, ratings.item, strict=True)
    return [[pair_sentence(dataset.schema, users[u], items[i]) for u, i in pairs]]


def fit_projection(views: Views, fitted: Int64Array, shape: Shape) -> dict[str, Tensor]:
    """State of a `Projection`: mean, principal axes and deviations of each layer's views of the fitted sentences.

    Components are divided by the layer's root mean square, so that heads of all layers get inputs of one size while
    the leading components stay the largest.
    """
    sample = fitted if len(fitted) <= SAMPLE else np.random.default_rng(0).choice(fitted, SAMPLE, replace=False)
    x = torch.from_numpy(views.take(np.sort(sample))).transpose(0, 1).double()  # [n, s, d]
    mean = x.mean(1, keepdim=True)
    x = x - mean
    k = shape.components
    if shape.size.components is None:
        axes = torch.eye(shape.width, dtype=x.dtype).expand(shape.layers, -1, -1)
        deviation = x.square().mean(1).sqrt()
    else:
        variance, axes = torch.linalg.eigh(x.mT @ x / x.shape[1])  # ascending
        axes = axes.flip(2)[..., :k]
        axes = torch.where(axes.sum(1, keepdim=True) < 0, -axes, axes)  # an axis has no sign of its own: fix it
        deviation = variance.flip(1)[:, :k].clamp(min=0).sqrt()
    scale = deviation.square().mean(1, keepdim=True).sqrt().clamp(min=1e-6)  # [n, 1]
    floor = deviation.amax(1, keepdim=True).clamp(min=1e-6) * 1e-3  # a constant component counts as none
    return {
        "mean": mean.squeeze(1).float(),
        "rotation": (axes / scale.unsqueeze(2)).float(),
        "deviation": (deviation.clamp(min=floor) / scale).float(),
    }


@torch.inference_mode()
def project(views: Views, projection: dict[str, Tensor], shape: Shape, device: torch.device) -> Tensor:
    """Components [len(views), n, k] of all views, a chunk at a time."""
    module = Projection(shape).to(device)
    module.load_state_dict(projection)
    out = torch.empty(len(views), shape.layers, shape.components, device=device)
    at = 0
    for chunk in views.chunks:
        out[at : at + len(chunk)] = module(torch.from_numpy(np.array(chunk)).to(device))
        at += len(chunk)
    return out
