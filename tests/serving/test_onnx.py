"""levi_serve.backends.onnx."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from levi_serve.backends.onnx import DeviceError, Graph, Tensor
from levi_serve.bundle.manifest import BundleError

from .toy import join_graph

ROWS = [Tensor("user_row", "float16", 4), Tensor("item_row", "float16", 4)]
ANSWERS = [Tensor("head_ratings", "float32", 3), Tensor("rating", "float32")]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("graph") / "model.onnx"
    onnx.save(join_graph(), file)
    return file


def test_outputs_come_in_the_asked_order(path: Path) -> None:
    """Outputs are matched by name, so a graph may declare them in any order."""
    graph = Graph(path, ROWS, ANSWERS[::-1], "cpu", threads=1)
    rating, heads = graph.run({"user_row": np.zeros((2, 4), np.float16), "item_row": np.zeros((2, 4), np.float16)})
    assert heads.tolist() == [[3, 3, 3]] * 2
    assert rating.tolist() == [3, 3]


@pytest.mark.parametrize(
    ("inputs", "outputs", "says"),
    [
        (ROWS[:1], ANSWERS, "unexpected input 'item_row'"),
        ([*ROWS, Tensor("codes", "int64", 1)], ANSWERS, "no input 'codes'; it has user_row, item_row"),
        ([Tensor("user_row", "float16", 5), ROWS[1]], ANSWERS, "'user_row' is float16 [U, 4], expected float16 [B, 5]"),
        ([Tensor("user_row", "int64", 4), ROWS[1]], ANSWERS, "is float16 [U, 4], expected int64 [B, 4]"),
        (ROWS, [Tensor("head_ratings", "float32", 4)], "'head_ratings' is float32 [B, 3], expected float32 [B, 4]"),
        (ROWS, [Tensor("rating", "float32", 1)], "'rating' is float32 [B], expected float32 [B, 1]"),
    ],
)
def test_other_tensors_are_named(path: Path, inputs: list[Tensor], outputs: list[Tensor], says: str) -> None:
    """A graph with missing, additional or other tensors is refused, naming file, tensor and both shapes."""
    with pytest.raises(BundleError) as caught:
        Graph(path, inputs, outputs, "cpu", threads=1)
    assert str(path) in str(caught.value)
    assert says in str(caught.value)


def test_fixed_batch_is_refused() -> None:
    """A graph exported for one batch size cannot serve others."""
    assert not Tensor("rating", "float32").accepts("float32", [1])
    assert Tensor("rating", "float32").accepts("float32", ["anything"])


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    """A file that ONNX Runtime cannot read is reported with its name, in one line."""
    file = tmp_path / "model.onnx"
    file.write_bytes(b"not a graph")
    with pytest.raises(BundleError, match=r"model\.onnx: ONNX Runtime cannot load it: [^\n]+$"):
        Graph(file, ROWS, ANSWERS, "cpu", threads=1)


def test_missing_gpu_runtime_is_an_error(path: Path) -> None:
    """Asking for CUDA with the CPU's runtime installed fails and says which extra to install."""
    with pytest.raises(DeviceError, match="extra 'gpu'"):
        Graph(path, ROWS, ANSWERS, "cuda", threads=1)


@pytest.mark.filterwarnings("ignore:Specified provider")  # the runtime says that it falls back
def test_gpu_that_is_only_listed_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU runtime lists CUDA on machines without a GPU too; what the session really uses decides."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(DeviceError, match="did not start"):
        Graph(path, ROWS, ANSWERS, "cuda", threads=1)
