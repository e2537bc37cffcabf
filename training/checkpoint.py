"""Checkpoints of a fit as safetensors: parameters, optimiser state, and a progress record in the file's header."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from levi_serve.bundle.schema import Frozen
from training.atomic import atomic_file
from training.errors import RunError


class Progress(Frozen):
    """How far a stage has come."""

    step: int = 0
    """Optimiser steps done."""
    curve: tuple[float, ...] = ()
    """Validation RMSE after each finished epoch."""
    seconds: float = 0.0
    """Time spent, over all attempts."""


def save_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Write parameters, optimiser state and progress, atomically."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items()}
    _save(path, tensors, {"progress": progress.model_dump_json()})


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Restore what `save_checkpoint` wrote; the progress that it had made.

    Raises:
        RunError: the file is damaged or belongs to another model.
    """
    try:
        with safe_open(path, framework="pt") as file:
            progress = Progress.model_validate_json(file.metadata()["progress"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        model.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise RunError(f"{path}: damaged checkpoint ({error}); delete it to start this stage again") from None
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part == "optimizer":
            index, _, key = rest.partition(".")
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return progress


def save_model(path: Path, model: nn.Module) -> None:
    """Write parameters and buffers, atomically."""
    _save(path, model.state_dict(), {})


def load_model(path: Path, model: nn.Module) -> None:
    """Read parameters and buffers.

    Raises:
        RunError: the file is missing, damaged or belongs to another model.
    """
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise RunError(f"{path}: not this run's parameters ({str(error).splitlines()[0]}); fit again") from None


def write_json(path: Path, value: object) -> None:
    """Write readable JSON, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kept: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        kept[name] = tensor.detach().cpu().contiguous()
        if kept[name].data_ptr() in places:  # a tied weight, which safetensors wants apart
            kept[name] = kept[name].clone()
        places.add(kept[name].data_ptr())
    with atomic_file(path) as temporary:
        try:
            save_file(kept, temporary, metadata)
        except SafetensorError as error:  # a full disk, for one
            raise OSError(error) from None
