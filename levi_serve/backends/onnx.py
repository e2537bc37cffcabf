"""One ONNX graph in ONNX Runtime, its tensors checked against what this server feeds and reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from levi_serve.bundle import AnyArray
from levi_serve.bundle.commands import RunError
from levi_serve.bundle.manifest import BundleError
from levi_serve.bundle.runtime import ort

Device: TypeAlias = Literal["cpu", "cuda"]
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# TF32 keeps 10 bits: ratings would not be the CPU's. Whoever wants speed exports in fp16.
_CHOICES: dict[str, list[Any]] = {
    "cpu": [_PROVIDERS["cpu"]],
    "cuda": [(_PROVIDERS["cuda"], {"use_tf32": "0"}), _PROVIDERS["cpu"]],
}
_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64"}
_ERRORS_ONLY = 3


class DeviceError(RunError):
    """The device that was asked for is not there."""


@dataclass(frozen=True)
class Tensor:
    """An input or output: a batch [B], of vectors [B, columns], or of sequences [B, T] where `columns` is "T"."""

    name: str
    dtype: Literal["float16", "float32", "int64"]
    columns: int | Literal["T"] | None = None

    def accepts(self, dtype: str, shape: Sequence[object]) -> bool:
        """Whether a graph's tensor is this one; a dimension that the graph leaves open fits any size."""
        dims = [] if self.columns is None else [self.columns]
        if self.dtype != dtype or len(shape) != 1 + len(dims) or isinstance(shape[0], int):
            return False
        return all(not isinstance(found, int) or found == wanted for found, wanted in zip(shape[1:], dims, strict=True))

    def __str__(self) -> str:
        """`float32 [B, 8]`."""
        return f"{self.dtype} [{'B' if self.columns is None else f'B, {self.columns}'}]"


class Graph:
    """A loaded graph. Runs are safe from several threads and give the same numbers for the same batch."""

    waits = False

    def __init__(
        self, path: Path, inputs: Sequence[Tensor], outputs: Sequence[Tensor], device: Device, threads: int
    ) -> None:
        """Load a graph on a device; `threads` work on one operator together.

        Raises:
            DeviceError: ONNX Runtime does not really run on the device.
            BundleError: the file is no graph, or its tensors are not the expected ones.

        """
        self.path = path
        self._session = _open(path, device, threads)
        self._outputs = [tensor.name for tensor in outputs]
        _check(path, "input", inputs, self._session.get_inputs(), exact=True)
        _check(path, "output", outputs, self._session.get_outputs(), exact=False)

    def run(self, feeds: Mapping[str, AnyArray]) -> list[AnyArray]:
        """The outputs for one batch, in the order that the constructor was given."""
        return list(self._session.run(self._outputs, feeds))

    def close(self) -> None:
        """Give the memory back now, and not when the garbage collector comes by; nothing can be run any more."""
        self._session = None


def _open(path: Path, device: Device, threads: int) -> Any:
    provider = _PROVIDERS[device]
    if provider not in ort.get_available_providers():
        raise DeviceError(f"device {device}: the installed ONNX Runtime has no {provider}; install the extra 'gpu'")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _ERRORS_ONLY
    # The runtime's own allocator keeps the memory of the largest batch for good: 200 MB of activations for a small
    # BERT. Measured, the system's allocator is as fast.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    # Threads that spin while they wait take the core from the event loop and make an idle server busy.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = ort.InferenceSession(str(path), options, providers=_CHOICES[device])
    except Exception as error:  # noqa: BLE001 - the runtime's exceptions have no common base of their own
        raise BundleError(f"{path}: ONNX Runtime cannot load it: {' '.join(str(error).split())}") from None
    if provider not in session.get_providers():
        raise DeviceError(f"device {device}: ONNX Runtime lists {provider} but it did not start on this machine")
    return session


def _check(path: Path, what: str, expected: Sequence[Tensor], found: Sequence[Any], exact: bool) -> None:
    tensors = {tensor.name: tensor for tensor in found}
    for wanted in expected:
        if wanted.name not in tensors:
            raise BundleError(f"{path}: has no {what} '{wanted.name}'; it has {', '.join(tensors) or 'none'}")
        tensor = tensors[wanted.name]
        dtype = _DTYPES.get(tensor.type, tensor.type)
        if not wanted.accepts(dtype, tensor.shape):
            shape = ", ".join(map(str, tensor.shape))
            raise BundleError(f"{path}: {what} '{wanted.name}' is {dtype} [{shape}], expected {wanted}")
    unexpected = tensors.keys() - {wanted.name for wanted in expected}
    if exact and unexpected:
        raise BundleError(f"{path}: has the unexpected {what} '{min(unexpected)}'")
