"""levi_serve.backends.binding: bound runs give what plain ones give, from buffers that are reused; here on the CPU."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from levi_serve.backends import binding
from levi_serve.backends.binding import BoundGraph, _Buffer, page_locked
from levi_serve.backends.onnx import DeviceError, Graph
from levi_serve.encoder import encoder_tensors
from levi_serve.versions import load

from .test_onnx import ANSWERS, ROWS
from .toy import UNKNOWN, Toy, encoder_graph, join_graph


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("graph") / "model.onnx"
    onnx.save(join_graph(), file)
    return file


@pytest.fixture(scope="module")
def both(path: Path) -> tuple[Graph, BoundGraph]:
    """The same graph with and without binding."""
    return Graph(path, ROWS, ANSWERS, "cpu", 1), BoundGraph(path, ROWS, ANSWERS, "cpu", 1)


def rows(users: int, items: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "user_row": rng.standard_normal((users, 4)).astype(np.float16),
        "item_row": rng.standard_normal((items, 4)).astype(np.float16),
    }


def test_same_numbers_at_any_size(both: tuple[Graph, BoundGraph]) -> None:
    """Batches that grow and shrink, and one user for all items, leave nothing of one run in the next."""
    plain, bound = both
    for seed, (users, items) in enumerate([(1, 1), (5, 5), (1, 700), (2, 2), (33, 33), (1, 3)]):
        feeds = rows(users, items, seed)
        for found, expected in zip(bound.run(feeds), plain.run(feeds), strict=True):
            assert found.dtype == expected.dtype
            assert np.array_equal(found, expected)


def test_sequences_and_codes(tmp_path: Path) -> None:
    """Integers and sentences of any length pass through the same buffers (the encoder)."""
    onnx.save(encoder_graph(), tmp_path / "model.onnx")
    toy = Toy()
    toy.write(tmp_path / "repository")
    version = load(tmp_path / "repository", "levi", 1, "cpu", 1)
    inputs, outputs = encoder_tensors(version.manifest, UNKNOWN.shape[1])
    plain, bound = (kind(tmp_path / "model.onnx", inputs, outputs, "cpu", 1) for kind in (Graph, BoundGraph))
    rng = np.random.default_rng(0)
    for count, length in ((2, 9), (7, 3), (1, 30)):
        feeds: dict[str, Any] = {
            "input_ids": rng.integers(1, 99, (count, length)),
            "attention_mask": np.ones((count, length), np.int64),
            "embedding": rng.standard_normal((count, 2)).astype(np.float32),
            "codes": rng.integers(0, 3, (count, 2)),
            "side": rng.integers(0, 2, count),
        }
        assert np.array_equal(bound.run(feeds)[0], plain.run(feeds)[0])


def test_answers_outlive_the_next_run(both: tuple[Graph, BoundGraph]) -> None:
    """What a run returned does not change when the buffers are used again."""
    _, bound = both
    first = bound.run(rows(3, 3, 1))
    kept = [array.copy() for array in first]
    bound.run(rows(3, 3, 2))
    assert all(np.array_equal(now, then) for now, then in zip(first, kept, strict=True))


def test_buffers_are_reused(both: tuple[Graph, BoundGraph]) -> None:
    """A run that is no larger than an earlier one allocates no buffer; a larger one at least doubles it."""
    _, bound = both
    bound.run(rows(9, 9, 0))
    buffers = [*bound._own.binding._inputs.values(), *bound._own.binding._outputs.values()]
    before = [buffer._flat.ctypes.data for buffer in buffers]
    for size in (1, 8, 9):
        bound.run(rows(size, size, size))
    assert [buffer._flat.ctypes.data for buffer in buffers] == before
    buffer = _Buffer("int64", None)
    assert [buffer.of(shape).shape for shape in ((3, 5), (0, 5), (2,))] == [(3, 5), (0, 5), (2,)]
    assert buffer._flat.size == 16
    buffer.of((17,))
    assert buffer._flat.size == 32


def test_threads_do_not_share(both: tuple[Graph, BoundGraph]) -> None:
    """Threads that run at the same time each get the numbers of what they fed."""
    plain, bound = both
    wrong: list[int] = []

    def work(seed: int) -> None:
        for turn in range(200):
            feeds = rows(1 + turn % 7, 1 + turn % 7, seed)
            if not all(np.array_equal(*pair) for pair in zip(bound.run(feeds), plain.run(feeds), strict=True)):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_another_type_is_refused(both: tuple[Graph, BoundGraph]) -> None:
    """Feeding fp32 rows where the graph reads fp16 is an error, not a silent rounding."""
    with pytest.raises(TypeError, match="Cannot cast"):
        both[1].run({name: array.astype(np.float32) for name, array in rows(2, 2, 0).items()})


def test_page_locked_memory_of_the_runtime(both: tuple[Graph, BoundGraph], monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers in memory that ONNX Runtime lends are written and read like others; its CPU memory stands in here."""
    feeds = rows(5, 5, 3)
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_DEVICE_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    bound = BoundGraph(both[0].path, ROWS, ANSWERS, "cpu", 1)
    bound._memory = memory
    original = ort.OrtValue.ortvalue_from_shape_and_type
    asked: list[Any] = []

    def lend(shape: list[int], dtype: Any, memory_info: Any) -> Any:
        asked.append(memory_info)
        return original(shape, dtype)

    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_shape_and_type", lend)
    for found, expected in zip(bound.run(feeds), both[0].run(feeds), strict=True):
        assert np.array_equal(found, expected)
    assert asked == [memory] * 4


def test_without_a_gpu_no_memory_is_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the runtime lends none, ordinary memory serves, and the log says so."""
    said: list[str] = []
    monkeypatch.setattr(binding.log, "warning", said.append)
    page_locked.cache_clear()
    assert page_locked() is None
    (line,) = said
    assert "no page-locked memory" in line


def test_a_version_on_a_missing_gpu(entity_toy_repository: Path) -> None:
    """A whole version asked for on CUDA fails with the one line that says what is missing."""
    with pytest.raises(DeviceError, match=r"device cuda: .* install the extra 'gpu'"):
        load(entity_toy_repository, "levi", 1, "cuda", 1)
