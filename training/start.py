"""A warm start: what a fit takes over from an earlier run, as a file in the new run's folder.

The file holds the new model's parameters before its first step, rows of its id tables in the new data's order, and the
categories that the earlier run knows. Afterwards the earlier run is not needed any more.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from training.atomic import atomic_file
from training.datasets.dataset import Dataset
from training.errors import RunError, UsageError
from training.features import Basis

if TYPE_CHECKING:
    from training.run import Run

FILE = "start.safetensors"
_SAME = ("backbone", "views", "item_text", "size", "variant", "weights", "adapt")


class Start(NamedTuple):
    """Where a fit begins."""

    state: dict[str, Tensor]
    """Of the whole model."""
    basis: Basis


def known_rows(earlier: Run, dataset: Dataset) -> tuple[Tensor, Tensor]:
    """Id-embedding row in the `earlier` run's model of each user and item of a dataset, 0 where it knows none."""
    found = []
    pairs = zip((earlier.dataset.users, earlier.dataset.items), (dataset.users, dataset.items), strict=True)
    for (before, now), ids in zip(pairs, earlier.ids, strict=True):
        rows = dict(zip(before["id"].to_pylist(), ids.tolist(), strict=True))
        found.append(torch.tensor([rows.get(ident, 0) for ident in now["id"].to_pylist()], device=ids.device))
    return found[0], found[1]


def begin(folder: Path, earlier: Run, dataset: Dataset, options: dict[str, object]) -> Start:
    """Take over from the `earlier` run, and keep it in the new run's `folder`.

    Raises:
        UsageError: the two runs' `options` or schemas are not alike.

    """
    before = earlier.record.options.model_dump()
    if different := [name for name in _SAME if before[name] != options[name]]:
        raise UsageError(f"--start {earlier.folder}: has another {different[0].replace('_', '-')}; fit from nothing")
    if earlier.dataset.schema != dataset.schema:
        raise UsageError(f"--start {earlier.folder}: its data has another schema; fit from nothing")
    if before["size"] == "best" or before["adapt"] != "none":
        raise UsageError("--start: sampled heads and adapted backbones are fitted from nothing")
    state = {name: tensor.cpu().contiguous() for name, tensor in earlier.model.state_dict().items()}
    for side, rows in zip(("user", "item"), known_rows(earlier, dataset), strict=True):
        table = state[f"{side}.ids.weight"]
        state[f"{side}.ids.weight"] = torch.cat([table[:1], table[rows.cpu()]])
    vocabulary = [{name: list(levels) for name, levels in words.items()} for words in earlier.prepared.vocabulary]
    with atomic_file(folder / FILE) as temporary:
        save_file(
            {name: tensor.clone() for name, tensor in state.items()}, temporary, {"words": json.dumps(vocabulary)}
        )
    return read(folder)


def read(folder: Path) -> Start:
    """What `begin` kept. Raises RunError if it is not there whole."""
    path = folder / FILE
    try:
        with safe_open(path, framework="pt") as file:
            words = json.loads(file.metadata()["words"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: not readable ({str(error).splitlines()[0]}); fit again in another folder") from None
    projections: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        owner, projection, field = name.partition("projection.")
        if projection:
            projections.setdefault(owner, {})[field] = tensor
    return Start(
        state, Basis((words[0], words[1]), [projections[owner] for owner in sorted(projections, reverse=True)])
    )
