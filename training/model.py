"""LEVI (Roh et al., ICML 2024, Sec. 4): a scratch tower, and one adapting head per layer of a frozen backbone.

    backbone views   h_1 … h_n     given (see views.py)
    scratch tower    z             trained from scratch on ids and categories
    heads            ŷ_j = MLP_j([h_j ; z])
    prediction       ŷ = Σ_j w_j ŷ_j

A first layer over a concatenation is a sum of one part per input. So each entity has a `half`: all first layers applied
to what belongs to it alone (ids, categories and, with entity views, its own views). Its result is the entity row that
the server stores; `Levi.join` adds two rows and finishes. Fitting, export and serving run this one computation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from levi_serve.bundle.rows import Layout
from levi_serve.bundle.schema import Frozen
from training.factors import Sampling
from training.heads import share
from training.options import Variant

UNIT_FLOOR = 1e-2
"""Mean square below which components count as noise around the mean sentence; it is 1 on average."""


class Size(Frozen):
    """Widths of tower and heads, and what the tower is given beside ids and categories."""

    tower: tuple[int, int]
    """Units of the scratch tower's two layers; the second is the width of z."""
    hidden: int
    """Units of a head's hidden layer."""
    embedding: int
    """Width of an id embedding."""
    category: int
    """Width of a category embedding."""
    components: int | None
    """Principal components kept of each view; None keeps all."""
    product: bool
    """Whether the tower also sees the elementwise product of the two id embeddings."""
    bias: bool
    """Whether every head adds the user's and the item's rating bias."""
    dropout: float
    """Share of hidden units dropped while fitting."""
    id_dropout: float
    """Share of an id embedding dropped while fitting."""
    unit_views: bool
    """Whether a head reads the direction of a view's components only: far-off sentences then stay in known range."""
    view_dropout: float
    """Share of a view's components dropped while fitting, so that a head can't take a title for an id."""


class FactorSize(Frozen):
    """Heads by sampling instead of descent (see bilinear.py)."""

    components: int
    """Principal components kept of each view."""
    sampling: Sampling
    """How each head's posterior is sampled."""


SIZES: dict[str, Size | FactorSize] = {
    "ref": Size(
        tower=(128, 64),
        hidden=64,
        embedding=32,
        category=8,
        components=64,
        product=True,
        bias=True,
        dropout=0.3,
        id_dropout=0.1,
        unit_views=True,
        view_dropout=0.25,
    ),
    # Paper App. D.2: 512-256 tower, heads of 256, nothing but embeddings and views.
    "paper": Size(
        tower=(512, 256),
        hidden=256,
        embedding=32,
        category=8,
        components=None,
        product=False,
        bias=False,
        dropout=0.0,
        id_dropout=0.0,
        unit_views=False,
        view_dropout=0.0,
    ),
    "best": FactorSize(components=32, sampling=Sampling()),
}


class Shape(Frozen):
    """Everything that the parameters' shapes follow from."""

    size: Size | FactorSize
    views: Literal["entity", "pair", "none"]
    layers: int
    """Heads n: one per backbone layer; 1 for a scratch tower without views."""
    width: int
    """Width d of a view; 0 without views."""
    counts: tuple[int, int]
    """Users and items in the tables."""
    categories: tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]
    """(levels, slots) of each embedded attribute, per side."""
    variant: Variant = "levi"
    """heads-only has no tower, and batch-ensemble rank-one heads (App. F)."""
    binary: bool = False
    """Whether the heads say probabilities of class 1."""

    @property
    def scratch(self) -> bool:
        """Whether there is a scratch tower."""
        return self.variant != "heads-only"

    @property
    def components(self) -> int:
        """Components k of a view that a head reads."""
        return min(self.size.components or self.width, self.width)

    @property
    def mlp(self) -> Size:
        """The size of an MLP tower and MLP heads."""
        assert isinstance(self.size, Size)
        return self.size

    @property
    def content(self) -> int:
        """Columns F of an item's content: an indicator per level of its categories, then the components."""
        return sum(levels for levels, _ in self.categories[1]) + self.components

    @property
    def embedding(self) -> int:
        """Width of an id embedding, bias apart."""
        if isinstance(self.size, Size):
            return self.size.embedding
        return self.layers * (1 + self.content + self.size.sampling.kept)

    @property
    def own(self) -> tuple[int, int]:
        """Inputs of the tower from each side: id and category embeddings."""
        user, item = (self.mlp.embedding + self.mlp.category * len(c) for c in self.categories)
        return user, item

    @property
    def tower_inputs(self) -> int:
        """Inputs of the tower's first layer."""
        return sum(self.own) + (self.mlp.embedding if self.mlp.product else 0)

    @property
    def head_inputs(self) -> int:
        """Inputs of a head: its views and z."""
        return {"entity": 2, "pair": 1, "none": 0}[self.views] * self.components + self.mlp.tower[1] * self.scratch

    @property
    def layout(self) -> Layout:
        """Columns of what `EntityHalf` returns."""
        size, entity = self.size, self.views == "entity"
        if isinstance(size, FactorSize):
            return Layout(tower=0, heads=self.embedding, factors=0, embedding=0, support=1)
        return Layout(
            tower=size.tower[0] * self.scratch,
            heads=self.layers * size.hidden if entity else 0,
            factors=size.embedding if size.product and self.scratch else 0,
            embedding=0,
            support=int(entity),
        )


class Batch(NamedTuple):
    """What the model reads of B pairs; in each couple the users' part comes first."""

    ids: tuple[Tensor, Tensor]
    """[B] rows of the id embeddings; 0 is the unknown id."""
    codes: tuple[Tensor, Tensor]
    """[B, C] levels of the embedded attributes."""
    components: tuple[Tensor | None, Tensor | None]
    """Entity views, projected: [B, n, k]."""
    pair_components: Tensor | None
    """Pair views, projected: [B, n, k]."""


class Projection(nn.Module):
    """Views to the components that a head reads: centred, rotated, scaled. Set before the fit and not trained."""

    mean: Tensor
    rotation: Tensor
    deviation: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape.layers, shape.width))
        self.register_buffer("rotation", torch.zeros(shape.layers, shape.width, shape.components))
        self.register_buffer("deviation", torch.ones(shape.layers, shape.components))

    def forward(self, views: Tensor) -> Tensor:
        """[B, n, d] views to [B, n, k] components of about unit size."""
        return torch.einsum("bnd,ndk->bnk", views - self.mean, self.rotation)

    def support(self, components: Tensor) -> Tensor:
        """[B, n, k] to [B, 1]: RMS of the whitened components; its own RMS over the fitted ones is 1."""
        return (components / self.deviation).square().mean((1, 2)).sqrt().unsqueeze(1)


class ViewLinear(nn.Module):
    """What all n heads' first layers make of one sentence's views, as one batched product: [B, n, k] to [B, n, h]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.unit, self.dropout = shape.mlp.unit_views, shape.mlp.view_dropout
        self.weight = nn.Parameter(
            uniform(torch.empty(shape.layers, shape.components, shape.mlp.hidden), shape.head_inputs)
        )
        if shape.variant == "batch-ensemble":
            share(self, "weight", shape)

    def forward(self, components: Tensor) -> Tensor:
        if self.unit:
            components = components * (components.square().mean(2, keepdim=True) + UNIT_FLOOR).rsqrt()
        return torch.einsum("bnk,nkh->bnh", F.dropout(components, self.dropout, self.training), self.weight)


class Half(nn.Module, ABC):
    """What belongs to one entity alone: called with id embeddings, codes and components, it makes entity rows."""

    ids: nn.Embedding
    """Embedding and rating bias of each id; 0 is the unknown id."""
    slots: list[int]
    """Columns of `codes` that each embedded attribute has."""
    projection: Projection | None

    @abstractmethod
    def forward(self, embedding: Tensor, codes: Tensor, components: Tensor | None) -> Tensor:
        """See `EntityHalf.forward`."""


class Network(nn.Module, ABC):
    """A LEVI network: two halves, one head per layer over two rows, and the heads' weighted mean."""

    user: Half
    item: Half
    center: Tensor
    weights: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("center", torch.zeros(()))  # mean training rating, or its logit
        self.register_buffer("weights", torch.full((shape.layers,), 1 / shape.layers))

    @property
    def halves(self) -> tuple[Half, Half]:
        """Both sides, user first."""
        return self.user, self.item

    def projections(self) -> list[Projection]:
        """The projections of the views: user's and item's with entity views, the pair's with pair views."""
        return [module for module in self.modules() if isinstance(module, Projection)]

    @abstractmethod
    def join(self, user: Tensor, item: Tensor, pair_components: Tensor | None = None) -> Tensor:
        """Head ratings [B, n], unclipped, of user rows and item rows [B, width] (and, with pair views, [B, n, k])."""

    def forward(self, batch: Batch) -> Tensor:
        """Head ratings [B, n] of a batch of pairs."""
        user, item = (
            half(half.ids(ids), codes, components)
            for half, ids, codes, components in zip(self.halves, batch.ids, batch.codes, batch.components, strict=True)
        )
        return self.join(user, item, batch.pair_components)

    def rating(self, head_ratings: Tensor) -> Tensor:
        """The prediction [B]: the weighted mean of the heads [B, n], not yet clipped to the rating range."""
        return head_ratings.mv(self.weights)

    def loss(self, head_ratings: Tensor, target: Tensor) -> Tensor:
        """Σ_j w_j of the heads' mean squared errors (Sec. 4; App. C with unequal weights): a scalar.

        Each head is fitted to the target by itself: the ensemble is formed after the fit, not by it. Where the task
        is binary, cross-entropy takes the place of the squared error.
        """
        if self.shape.binary:
            target = target.unsqueeze(1).expand_as(head_ratings)
            return F.binary_cross_entropy(head_ratings, target, reduction="none").mean(0).dot(self.weights)
        return (head_ratings - target.unsqueeze(1)).square().mean(0).dot(self.weights)


class EntityHalf(Half):
    """All first layers over one entity: its id, its categories and, with entity views, its views."""

    def __init__(self, shape: Shape, side: int) -> None:
        super().__init__()
        size = shape.mlp
        self.size, self.scratch = size, shape.scratch
        self.ids = nn.Embedding(shape.counts[side] + 1, size.embedding + 1)  # embedding | bias; 0 is the unknown id
        self.slots = [slots for _, slots in shape.categories[side]]
        self.categories = nn.ModuleList(nn.Embedding(1 + n, size.category) for n, _ in shape.categories[side])
        self.tower = nn.Parameter(uniform(torch.empty(shape.own[side], size.tower[0]), shape.tower_inputs))
        self.heads: ViewLinear | None = None
        self.projection = None
        if shape.views == "entity":
            self.heads = ViewLinear(shape)
            self.projection = Projection(shape)
        nn.init.normal_(self.ids.weight, std=0.02)  # small: an id says nothing before it was seen
        nn.init.zeros_(self.ids.weight[:, -1])
        for table in self.categories:
            nn.init.normal_(table.weight, std=0.02)  # type: ignore[arg-type]

    def forward(self, embedding: Tensor, codes: Tensor, components: Tensor | None) -> Tensor:
        """One row per entity, laid out as `Shape.layout` says.

        Args:
            embedding: [B, E + 1] from `ids`: the id embedding and the rating bias.
            codes: [B, C] levels of the embedded attributes, 0 where unknown; a value per slot.
            components: [B, n, k] projected views; None unless the views are entity views.
        """
        ident, bias = F.dropout(embedding[:, :-1], self.size.id_dropout, self.training), embedding[:, -1:]
        levels = torch.split(codes, self.slots, dim=1) if self.slots else ()
        inputs = torch.cat([ident, *(_mean_of_known(t(c), c) for t, c in zip(self.categories, levels, strict=True))], 1)
        parts = [inputs @ self.tower] if self.scratch else []
        if components is not None:
            assert self.heads is not None
            parts.append(self.heads(components).flatten(1))
        if self.size.product and self.scratch:
            parts.append(ident)
        parts.append(bias if self.size.bias and self.scratch else torch.zeros_like(bias))
        if components is not None:
            assert self.projection is not None
            parts.append(self.projection.support(components))
        return torch.cat(parts, dim=1)


class Levi(Network):
    """Scratch tower and heads over two entity halves."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        size = shape.mlp
        self.user = EntityHalf(shape, 0)
        self.item = EntityHalf(shape, 1)
        self.pair_projection = Projection(shape) if shape.views == "pair" else None
        self.pair_heads = ViewLinear(shape) if shape.views == "pair" else None
        self.product = (
            nn.Parameter(uniform(torch.empty(size.embedding, size.tower[0]), shape.tower_inputs))
            if size.product
            else None
        )
        self.tower_bias = nn.Parameter(torch.zeros(size.tower[0]))
        self.tower = nn.Linear(*size.tower)
        self.heads_z = nn.Parameter(
            uniform(torch.empty(size.tower[1], shape.layers * size.hidden), shape.head_inputs)
        )  # W_z of every head side by side: one product for all
        if shape.variant == "batch-ensemble":
            share(self, "heads_z", shape)
        self.heads_bias = nn.Parameter(torch.zeros(shape.layers * size.hidden))
        self.heads_out = nn.Parameter(uniform(torch.empty(shape.layers, size.hidden), size.hidden))
        self.out_bias = nn.Parameter(torch.zeros(shape.layers))
        self.dropout = nn.Dropout(size.dropout)

    def join(self, user: Tensor, item: Tensor, pair_components: Tensor | None = None) -> Tensor:
        """Head ratings [B, n], unclipped (or probabilities), of user and item rows [B, width] (and pair views)."""
        size, layout = self.shape.mlp, self.shape.layout
        widths = [layout.tower, layout.heads, layout.factors, layout.bias, layout.support]
        tower_u, heads_u, factors_u, bias_u, _ = torch.split(user, widths, dim=1)
        tower_i, heads_i, factors_i, bias_i, _ = torch.split(item, widths, dim=1)
        hidden: Tensor = self.heads_bias  # [n × hidden]
        if self.shape.scratch:
            first = tower_u + tower_i + self.tower_bias
            if self.product is not None:
                first = first + (factors_u * factors_i) @ self.product
            z = self.dropout(F.relu(self.tower(self.dropout(F.relu(first)))))  # [B, tower[1]]
            hidden = hidden + z @ self.heads_z  # [B, n × hidden]
        if layout.heads:
            hidden = hidden + heads_u + heads_i
        if pair_components is not None:
            assert self.pair_heads is not None
            hidden = hidden + self.pair_heads(pair_components).flatten(1)
        hidden = self.dropout(F.relu(hidden)).unflatten(1, (self.shape.layers, size.hidden))
        ratings: Tensor = (hidden * self.heads_out).sum(2) + self.out_bias  # [B, n]
        ratings = ratings + self.center + bias_u + bias_i
        return ratings.sigmoid() if self.shape.binary else ratings


def layer_weights(kind: str, layers: int) -> list[float]:
    """Weights of the n heads, summing to 1: `equal`, `late` (rising linearly), or n numbers separated by commas.

    Raises:
        ValueError: not such a text, a negative weight, or not one weight per layer.
    """
    if kind in {"equal", "late"}:
        raw = [1.0 if kind == "equal" else j + 1.0 for j in range(layers)]
    else:
        try:
            raw = [float(part) for part in kind.split(",")]
        except ValueError:
            raise ValueError(f"'{kind}' is neither equal, late nor a list of numbers") from None
    if len(raw) != layers:
        raise ValueError(f"{len(raw)} weights for {layers} layers")
    if min(raw) < 0 or not 0 < sum(raw) < float("inf"):
        raise ValueError("weights must not be negative, and not all zero")
    return [w / sum(raw) for w in raw]


def uniform(parameter: Tensor, fan_in: int) -> Tensor:
    """Fill with the usual uniform initialisation of a layer with `fan_in` inputs."""
    return nn.init.uniform_(parameter, -(fan_in**-0.5), fan_in**-0.5)


def _mean_of_known(embedded: Tensor, codes: Tensor) -> Tensor:
    """[B, slots, c] to [B, c]: the mean over an attribute's values; code 0 counts only where there is no other."""
    known = (codes > 0).to(embedded.dtype).unsqueeze(2)
    count = known.sum(1)
    return torch.where(count > 0, (embedded * known).sum(1) / count.clamp(min=1), embedded[:, 0])
