"""What a method costs: parameters fitted and used, floating-point operations, and measured time (tables 3, 15, 16)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from training.backbones import Backbone, pooled
from training.features import sentences
from training.run import Run

REPEATS = 5
SCRATCH = frozenset({"ids", "categories", "tower", "tower_bias", "product", "heads_z"})
"""Parts of the parameters' names that belong to the scratch tower: without one they are there and not used."""


@dataclass(frozen=True)
class Cost:
    """Costs add up where outputs of several models are averaged."""

    trained: int
    """Parameters that were fitted."""
    used: int
    """Parameters that a prediction needs."""
    sentence_flops: int
    """Operations of the backbone for the sentences of one pair; with entity views a cached entity costs none of it."""
    pair_flops: int
    """Operations of all else, for one pair."""
    fit_seconds: float
    """Measured, chosen candidates and others together."""
    pair_ms: float
    """Measured, for one pair alone, its sentences encoded."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


def of_regressor(
    backbone: Backbone, head: nn.Module, tokens: Sequence[list[list[int]]], trained: int, seconds: float
) -> Cost:
    """An encoder with a linear layer on its last view."""
    flops, ms = _encoding(backbone, tokens)
    size = sum(p.numel() for p in head.parameters())
    return Cost(trained, _size(backbone.encoder) + size, flops, 2 * size, seconds, ms)


def of_levi(run: Run, adapted: int) -> Cost:
    """A LEVI run; `adapted` parameters of its backbone were fitted before. Id embeddings count as used: any may be."""
    tokens = []
    flops, ms, used = 0, 0.0, 0
    if run.backbone is not None:
        tokens = [run.backbone.tokenizer.encode(side) for side in sentences(run.dataset, run.record.options.views)]
        flops, ms = _encoding(run.backbone, tokens)
        used = _size(run.backbone.encoder)
    device = run.model.center.device
    batch = run.prepared.features.batch(torch.zeros(1, dtype=torch.int64, device=device), run.ids)
    size = sum(
        p.numel()
        for name, p in run.model.named_parameters()
        if run.model.shape.scratch or not SCRATCH & {*name.split(".")}
    )
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        run.model(batch)
    with torch.inference_mode():
        ms += _ms(lambda: run.model(batch))
    return Cost(size + adapted, used + size, flops, counted.get_total_flops(), run.record.seconds, ms)


def _size(encoder: nn.Module) -> int:
    return sum(p.numel() for name, p in encoder.named_parameters() if "pooler" not in name)


@torch.no_grad()
def _encoding(backbone: Backbone, tokens: Sequence[list[list[int]]]) -> tuple[int, float]:
    """Operations and milliseconds of one sentence of mean length per side."""
    flops, ms = 0, 0.0
    device = next(backbone.encoder.parameters()).device
    for side in tokens:
        length = int(np.round(np.mean([len(t) for t in side])))
        ids, mask = torch.ones(2, 1, length, dtype=torch.int64, device=device)
        with FlopCounterMode(display=False) as counted:
            pooled(backbone.encoder, ids, mask)
        flops += counted.get_total_flops()
        ms += _ms(lambda ids=ids, mask=mask: pooled(backbone.encoder, ids, mask))
    return flops, ms


def _ms(call: object) -> float:
    """The median of some calls after a first one."""
    assert callable(call)
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times[1:]))
