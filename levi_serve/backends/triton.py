"""One graph on an NVIDIA Triton server, over gRPC.

Every call names the version and has a deadline. After three failures in a row, whatever /v2/health says meanwhile, no
call is made until a thread of its own has been answered a real inference: that is what a broken backend fails at.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from levi_serve.backends.onnx import Tensor
from levi_serve.backends.runner import Runner
from levi_serve.bundle import AnyArray
from levi_serve.bundle.tensors import SENTENCE
from levi_serve.errors import BackendError

log = logging.getLogger("levi")

_ROWS = 1024
"""In one call: `max_batch_size` of the exported config.pbtxt."""
_BYTES = 3 << 20
"""In one call: gRPC's usual limit is 4 MiB a message."""
_STEP = 16
"""Sentences are padded to multiples of this: Triton batches only requests of equal shapes."""
_FAILURES = 3
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0
_DTYPES = {"FP32": "float32", "FP16": "float16", "INT64": "int64"}
_CHANNEL = (
    ("grpc.max_send_message_length", 2 * _BYTES),
    ("grpc.max_receive_message_length", 2 * _BYTES),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
)


class TritonGraph:
    """A graph that Triton serves as `name`, version `version`."""

    waits = True

    def __init__(
        self,
        name: str,
        version: int,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        fallback: Runner | None,
        url: str,
        timeout_s: float,
        count: Callable[[int, int], None] = lambda _failures, _open: None,
    ) -> None:
        """Check that it is there and has these tensors. A call may take `timeout_s`; instead of one that fails the
        `fallback` runs, if there is one. `count` hears of each failure, and of breakers that open (1) and close (-1).

        Raises:
            BackendError: Triton cannot be reached, does not have the version, or has other tensors under this name.

        """
        self.where = f"Triton at {url}, {name}/{version}"
        self._name, self._version = name, str(version)
        self._outputs = outputs
        self._fallback = fallback
        self._timeout_s = timeout_s
        self._count = count
        self._in_a_row = 0
        self._sample: dict[str, AnyArray] | None = None
        """One row that was answered once, to probe with."""
        self._lock = threading.Lock()
        self._prober: threading.Thread | None = None
        self._closed = threading.Event()
        self._client = InferenceServerClient(url, channel_args=list(_CHANNEL))
        try:
            self._check(inputs)
        except BaseException:
            self.close()
            raise

    @property
    def available(self) -> bool:
        """Whether calls are made."""
        return self._prober is None

    def run(self, feeds: Mapping[str, AnyArray]) -> list[AnyArray]:
        """The outputs for one batch of any size; a feed of one row stands for as many as the others have.

        Raises:
            BackendError: Triton does not answer, or not usably, and there is no fallback.

        """
        error = f"{self.where}: has failed and is left alone until it answers again"
        if self.available:
            try:
                answer = self._ask(feeds)
            except (InferenceServerException, BackendError, ValueError) as failure:
                error = f"{self.where}: {' '.join(str(failure).split())}"
                self._failed(feeds, error)
            else:
                self._in_a_row = 0
                self._sample = self._sample or _first(feeds)
                return answer
        if self._fallback is None:
            raise BackendError(error)
        return self._fallback.run(feeds)

    def close(self) -> None:
        """End the connection and the probing."""
        self._closed.set()
        if self._prober is not None:
            self._prober.join()
        self._client.close()
        if self._fallback is not None:
            self._fallback.close()

    def _check(self, inputs: Sequence[Tensor]) -> None:
        try:
            told = self._client.get_model_metadata(
                self._name, self._version, as_json=True, client_timeout=self._timeout_s
            )
        except InferenceServerException as error:
            raise BackendError(f"{self.where}: {' '.join(str(error).split())}") from None
        for what, expected in (("inputs", inputs), ("outputs", self._outputs)):
            found = {tensor["name"]: tensor for tensor in told.get(what, ())}
            for tensor in expected:
                there = found.pop(tensor.name, None)
                if there is None or not _accepts(tensor, there):
                    raise BackendError(f"{self.where}: another model: {what[:-1]} '{tensor.name}' is no {tensor} there")
            if found and what == "inputs":
                raise BackendError(f"{self.where}: another model: it has the input '{min(found)}'")

    def _ask(self, feeds: Mapping[str, AnyArray]) -> list[AnyArray]:
        """In as many calls as messages have room for."""
        rows = max(map(len, feeds.values()))
        padded = {name: _padded(feed) if name in SENTENCE else feed for name, feed in feeds.items()}
        size = sum(feed[:1].nbytes for feed in padded.values())
        chunk = min(_ROWS, max(1, _BYTES // size))
        parts = []
        for start in range(0, rows, chunk):
            count = min(chunk, rows - start)
            part = {n: f[start : start + count] if len(f) == rows else f.repeat(count, 0) for n, f in padded.items()}
            parts.append(self._call(part, count))
        return [np.concatenate(columns) if len(parts) > 1 else columns[0] for columns in zip(*parts, strict=True)]

    def _call(self, feeds: Mapping[str, AnyArray], rows: int) -> list[AnyArray]:
        inputs = []
        for name, feed in feeds.items():
            array = np.ascontiguousarray(feed if feed.ndim > 1 else feed[:, None])
            tensor = InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
            tensor.set_data_from_numpy(array)
            inputs.append(tensor)
        wanted = [InferRequestedOutput(tensor.name) for tensor in self._outputs]
        result = self._client.infer(self._name, inputs, self._version, wanted, client_timeout=self._timeout_s)
        arrays = []
        for tensor in self._outputs:
            found: Any = result.as_numpy(tensor.name)
            columns = () if tensor.columns is None else (tensor.columns,)
            if found is None or found.size != rows * math.prod(map(int, columns)):
                shape = None if found is None else list(found.shape)
                raise BackendError(f"output '{tensor.name}' is {shape} for {rows} rows, expected {tensor}")
            arrays.append(found.reshape(rows, *columns))
        return arrays

    def _failed(self, feeds: Mapping[str, AnyArray], error: str) -> None:
        with self._lock:
            self._in_a_row += 1
            self._count(1, 0)
            if self._in_a_row < _FAILURES or self._prober is not None or self._closed.is_set():
                return
            log.error("%s; it is left alone until it answers", error)
            self._count(0, 1)
            probe = self._sample or _first(feeds)
            self._prober = threading.Thread(target=self._probe, args=(probe,), name="probe", daemon=True)
            self._prober.start()

    def _probe(self, feeds: Mapping[str, AnyArray]) -> None:
        """Infer until it is answered."""
        pause = _FIRST_PAUSE_S
        while not self._closed.wait(pause):
            pause = min(2 * pause, _LONGEST_PAUSE_S)
            try:
                self._ask(feeds)
            except (InferenceServerException, BackendError, ValueError):
                continue
            log.warning("%s: answers again", self.where)
            break
        self._count(0, -1)
        with self._lock:
            self._in_a_row = 0
            self._prober = None


def _accepts(tensor: Tensor, there: Mapping[str, Any]) -> bool:
    """Whether Triton's tensor is this one; it has a last dimension of 1 where ours has none."""
    shape = [int(size) for size in there["shape"]]
    if tensor.columns is None and shape[1:] == [1]:
        shape.pop()
    dims = [size if size >= 0 else None for size in shape]
    return tensor.accepts(_DTYPES.get(there["datatype"], there["datatype"]), dims)


def _padded(sentences: AnyArray) -> AnyArray:
    """Token ids or mask [B, T] with zeros, which the mask hides, up to the next step."""
    return np.pad(sentences, ((0, 0), (0, -sentences.shape[1] % _STEP)))


def _first(feeds: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
    return {name: feed[:1].copy() for name, feed in feeds.items()}
