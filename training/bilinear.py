"""LEVI of size `best`: every head is a Bayesian factor model (factors.py) that reads one layer's view of the item.

    ŷ_j = μ + a_u,j·[1 ; c_i ; h_j,i] + z_u,j·z_i,j

c_i are the item's categories, h_j,i its view from layer j, z the factors that only ratings tell: 0 for an item nobody
has rated, whose rows come from its text and attributes alone. Everything is linear in what is known of the item, so a
posterior mean is two vectors, and an entity row holds n of them side by side.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from levi_serve.bundle import Int64Array
from training.atomic import atomic_file
from training.factors import Posterior, sample
from training.features import Features
from training.model import FactorSize, Half, Network, Projection, Shape
from training.progress import track


class FactorHalf(Half):
    """A user's row is its id's; an item's is content in front of its id's factors."""

    def __init__(self, shape: Shape, side: int) -> None:
        super().__init__()
        self.shape, self.side = shape, side
        self.ids = nn.Embedding(shape.counts[side] + 1, shape.embedding + 1)
        nn.init.zeros_(self.ids.weight)
        self.ids.requires_grad_(requires_grad=False)
        self.slots = [slots for _, slots in shape.categories[side]]
        self.levels = [levels for levels, _ in shape.categories[side]]
        self.projection = Projection(shape)

    def forward(self, embedding: Tensor, codes: Tensor, components: Tensor | None) -> Tensor:
        """One row per entity; see `EntityHalf.forward`."""
        assert components is not None
        assert self.projection is not None
        own, bias = embedding[:, :-1], embedding[:, -1:]
        if self.side == 1:
            content = self.content(codes, components)  # [B, n, F]
            one = torch.ones_like(content[:, :, :1])
            layers = self.shape.layers
            factors = own.view(-1, layers, own.shape[1] // layers)[:, :, 1 + content.shape[2] :]
            own = torch.cat([one, content, factors], dim=2).flatten(1)
        return torch.cat([own, bias, self.projection.support(components)], dim=1)

    def content(self, codes: Tensor, components: Tensor) -> Tensor:
        """[B, n, F] of codes [B, C] and components [B, n, k]: an indicator per known level, then a layer's view."""
        known = []
        for levels, code in zip(self.levels, torch.split(codes, self.slots, dim=1) if self.slots else (), strict=True):
            every = torch.arange(1, levels + 1, device=codes.device)
            known.append((code.unsqueeze(2) == every).to(components.dtype).sum(1))  # [B, levels]
        repeated = [k.unsqueeze(1).expand(-1, components.shape[1], -1) for k in known]
        return torch.cat([*repeated, components], dim=2)


class BilinearLevi(Network):
    """One posterior mean per layer, averaged."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.user, self.item = FactorHalf(shape, 0), FactorHalf(shape, 1)

    def join(self, user: Tensor, item: Tensor, pair_components: Tensor | None = None) -> Tensor:
        """Head ratings [B, n], unclipped, of user rows and item rows."""
        width = self.shape.layout.heads
        products = (user[:, :width] * item[:, :width]).view(-1, self.shape.layers, width // self.shape.layers)
        return products.sum(2) + self.center + user[:, width : width + 1] + item[:, width : width + 1]


@torch.no_grad()
def sample_heads(network: BilinearLevi, features: Features, rows: Int64Array, seed: int, folder: Path) -> None:
    """Set every head to its posterior mean given the ratings in `rows`; the view is all that the heads differ in.

    What was sampled is kept in `folder`: a fit that is killed and run again goes on with the next head.
    """
    size, shape = network.shape.size, network.shape
    assert isinstance(size, FactorSize)
    half, components = network.item, features.components[1]
    assert isinstance(half, FactorHalf)
    assert components is not None
    content = half.content(features.codes[1], components).double().cpu().numpy()  # [M, n, F]
    user, item = (column.cpu().numpy()[rows] for column in (features.user, features.item))
    value = features.value.double().cpu().numpy()[rows] - float(network.center)
    of_user = np.zeros((shape.counts[0] + 1, shape.layers, shape.embedding // shape.layers))
    of_item = np.zeros((shape.counts[1] + 1, *of_user.shape[1:]))
    groups = (content.shape[2] - shape.components,)
    for layer in track(range(shape.layers), shape.layers, folder.name):
        path = folder / f"head-{layer}.npz"
        if not path.exists():
            draws = seed * shape.layers + layer
            posterior = sample(user, item, value, shape.counts[0], content[:, layer], groups, size.sampling, draws)
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as temporary, temporary.open("wb") as file:
                np.savez(file, user=posterior.user, item=posterior.item)
        posterior = Posterior(**np.load(path))
        of_user[:, layer] = np.roll(posterior.user, 1, axis=0)  # the unknown user comes first
        of_item[1:, layer, 1 + content.shape[2] :] = posterior.item
    for side, found in zip(network.halves, (of_user, of_item), strict=True):
        side.ids.weight[:, :-1] = torch.from_numpy(found.reshape(len(found), -1)).to(side.ids.weight)
