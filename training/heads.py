"""BatchEnsemble heads (paper App. F): one shared matrix, and for each head a factor per input and per output."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

if TYPE_CHECKING:
    from training.model import Shape


class RankOne(nn.Module):
    """From the shared matrix [inputs, h] to all heads' weights: [n, inputs, h], or side by side [inputs, n × h]."""

    def __init__(self, layers: int, inputs: int, hidden: int, flat: bool) -> None:
        super().__init__()
        self.flat = flat
        # Random signs, as Wen et al. begin with: heads differ from the first step on.
        self.of_input = nn.Parameter(torch.randint(2, (layers, inputs, 1)) * 2.0 - 1)
        self.of_output = nn.Parameter(torch.randint(2, (layers, 1, hidden)) * 2.0 - 1)

    def forward(self, shared: Tensor) -> Tensor:
        weight = shared * self.of_input * self.of_output
        return weight.transpose(0, 1).flatten(1) if self.flat else weight


def share(module: nn.Module, name: str, shape: Shape) -> None:
    """Make the heads' weights `name` of a module share one matrix; the module reads them under the same name."""
    weight: Tensor = getattr(module, name)
    flat = weight.dim() == 2
    inputs, hidden = (weight.shape[0], shape.mlp.hidden) if flat else (weight.shape[1], weight.shape[2])
    setattr(module, name, nn.Parameter((weight[:, :hidden] if flat else weight[0]).detach().clone()))
    parametrize.register_parametrization(module, name, RankOne(shape.layers, inputs, hidden, flat), unsafe=True)
