"""Graphs with I/O binding: tensors pass through buffers that are reused, page-locked where the device is a GPU.

The device copies from and to such buffers by itself, and nothing is allocated for a run once they are large enough.
"""

from __future__ import annotations

import ctypes
import logging
import math
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from levi_serve.backends.onnx import Device, Graph, Tensor
from levi_serve.bundle import AnyArray
from levi_serve.bundle.runtime import ort

log = logging.getLogger("levi")


class BoundGraph(Graph):
    """A graph whose threads each have buffers of their own."""

    def __init__(
        self, path: Path, inputs: Sequence[Tensor], outputs: Sequence[Tensor], device: Device, threads: int
    ) -> None:
        """As `Graph`."""
        super().__init__(path, inputs, outputs, device, threads)
        self._tensors = inputs, outputs
        self._memory = page_locked() if device == "cuda" else None
        self._own = threading.local()

    def run(self, feeds: Mapping[str, AnyArray]) -> list[AnyArray]:
        """As `Graph.run`; feeds have exactly the graph's types."""
        if not hasattr(self._own, "binding"):
            self._own.binding = _Binding(self._session, *self._tensors, self._memory)
        binding: _Binding = self._own.binding
        return binding.run(feeds)


class _Binding:
    """One thread's buffers."""

    def __init__(self, session: Any, inputs: Sequence[Tensor], outputs: Sequence[Tensor], memory: Any) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._inputs = {tensor.name: _Buffer(tensor.dtype, memory) for tensor in inputs}
        self._outputs = {tensor: _Buffer(tensor.dtype, memory) for tensor in outputs}

    def run(self, feeds: Mapping[str, AnyArray]) -> list[AnyArray]:
        """The outputs, in order; whatever is fed for one item only stands for all of the batch."""
        for name, fed in feeds.items():
            array = self._inputs[name].of(fed.shape)
            np.copyto(array, fed, casting="no")
            self._binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        rows = max(len(fed) for fed in feeds.values())
        found = []
        for tensor, buffer in self._outputs.items():
            array = buffer.of((rows,) if tensor.columns is None else (rows, int(tensor.columns)))
            self._binding.bind_output(tensor.name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
            found.append(array)
        self._binding.synchronize_inputs()
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()
        return [array.copy() for array in found]


class _Buffer:
    """Memory that grows and never shrinks."""

    def __init__(self, dtype: str, memory: Any) -> None:
        """`memory` is what `page_locked` returned, or None for ordinary memory."""
        self._dtype = np.dtype(dtype)
        self._memory = memory
        self._held: Any = None
        self._flat: AnyArray = np.empty(0, self._dtype)

    def of(self, shape: Sequence[int]) -> AnyArray:
        """Its beginning, as an array of this shape with whatever is in it."""
        size = math.prod(shape)
        if size > self._flat.size:
            self._grow(1 << (size - 1).bit_length())
        return self._flat[:size].reshape(shape)

    def _grow(self, size: int) -> None:
        if self._memory is None:
            self._flat = np.empty(size, self._dtype)
            return
        self._held = ort.OrtValue.ortvalue_from_shape_and_type([size], self._dtype.type, memory_info=self._memory)
        address = (ctypes.c_uint8 * (size * self._dtype.itemsize)).from_address(self._held.data_ptr())
        self._flat = np.frombuffer(memoryview(address), self._dtype)


@cache
def page_locked() -> Any:
    """Host memory that the GPU reads and writes by itself; None, with a warning, if ONNX Runtime lends none."""
    with suppress(Exception):  # its exceptions have no common base, and older releases lack parts of this
        devices = [device for device in ort.get_ep_devices() if "cuda" in device.ep_name.lower()]
        memory = devices[0].memory_info(ort.OrtDeviceMemoryType.HOST_ACCESSIBLE)
        ort.OrtValue.ortvalue_from_shape_and_type([1], np.float32, memory_info=memory)
        return memory
    log.warning("this ONNX Runtime lends no page-locked memory: what goes to the GPU is copied once more")
    return None
