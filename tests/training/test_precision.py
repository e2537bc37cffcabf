"""training.precision: what graphs in half and with an int8 backbone hold, and what the manifest says of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from levi_serve.bundle.golden import read_golden
from levi_serve.bundle.manifest import Manifest, read_manifest
from tests.serving.conftest import settings
from tests.serving.running import RunningApp
from training import export as module
from training.chain import Chain, catalogue, onnx_runner
from training.errors import RunError
from training.export import GOLDEN_TOLERANCE, export
from training.fit import predict
from training.graphs import BACKBONE, graph_bytes
from training.run import Run

CASES = [(views, precision) for views in ("entity", "pair") for precision in ("fp16", "int8")]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path, str]:
    """A run, its repository, and the precision of its graphs."""
    views, precision = request.param
    run = request.getfixturevalue(f"{views}_run")
    repository = tmp_path_factory.mktemp("precision")
    export(run, repository, "levi", 20, precision)
    return run, repository, precision


def manifest(repository: Path) -> Manifest:
    return read_manifest(repository, "levi", 1)


def graphs(repository: Path) -> dict[str, onnx.ModelProto]:
    return {path.parents[1].name: onnx.load(path) for path in repository.rglob("model.onnx")}


def test_weights_are_stored_smaller(case: tuple[Run, Path, str]) -> None:
    """Half: every matrix; int8: the backbone's products and embeddings, and nothing of tower and heads."""
    _, repository, precision = case
    for name, model in graphs(repository).items():
        matrices = [t for t in model.graph.initializer if len(t.dims) > 1]
        backbone = any(node.name.startswith(BACKBONE) for node in model.graph.node)
        if precision == "fp16":
            assert {t.data_type for t in matrices} <= {TensorProto.FLOAT16, TensorProto.INT64}, name
        elif backbone:
            kept = {t.name for t in matrices if t.data_type == TensorProto.FLOAT}
            assert not [n for n in model.graph.node if n.name.startswith(BACKBONE) and kept & set(n.input)]
            assert any("heads" in name for name in kept)
            assert {n.op_type for n in model.graph.node} >= {"MatMulInteger", "DynamicQuantizeLinear"}
        else:
            assert {t.data_type for t in matrices} <= {TensorProto.FLOAT, TensorProto.INT64}


def test_arithmetic_outside_the_backbone_is_fp32(case: tuple[Run, Path, str]) -> None:
    """What is in half is widened before pooling, tower and heads use it; ratings and rows leave in fp32."""
    _, repository, _ = case
    for model in graphs(repository).values():
        assert {out.type.tensor_type.elem_type for out in model.graph.output} == {TensorProto.FLOAT}
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=False).graph
        half = {v.name for v in inferred.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT16}
        half |= {t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT16}
        half |= {i.name for i in model.graph.input if i.type.tensor_type.elem_type == TensorProto.FLOAT16}
        users = {
            node.op_type for node in model.graph.node for i in node.input if i in half and BACKBONE not in node.name
        }
        assert users <= {"Cast"}


def test_manifest_says_what_it_costs(case: tuple[Run, Path, str]) -> None:
    """The differences, measured again here through the exported graphs on the selection part, and the bytes."""
    run, repository, precision = case
    told = manifest(repository)
    encoder = repository / "levi_encoder/1/model.onnx"
    chain = Chain(
        run, onnx_runner(repository / "levi/1/model.onnx"), onnx_runner(encoder) if encoder.exists() else None
    )
    chosen = run.split.selection
    ratings = run.dataset.ratings
    users, items = catalogue(run, 0), catalogue(run, 1)
    heads = chain.heads([users[u] for u in ratings.user[chosen]], [items[i] for i in ratings.item[chosen]])
    expected = predict(run.model, run.prepared.features, torch.from_numpy(chosen), run.ids).numpy()
    weights = run.model.weights.numpy()
    off = (heads @ weights).clip(1, 5) - (expected @ weights).clip(1, 5)
    errors = [np.sqrt(np.square((h @ weights).clip(1, 5) - ratings.value[chosen]).mean()) for h in (heads, expected)]
    metrics = told.metrics
    assert metrics["rating_difference"] == pytest.approx(np.abs(off).max(), abs=1e-5)
    assert metrics["rmse_difference"] == pytest.approx(errors[0] - errors[1], abs=1e-5)
    assert metrics["head_difference"] >= np.abs(heads - expected).max() - 1e-5
    assert 0 < metrics["rating_difference"] <= metrics["head_difference"] < module.MOST
    assert metrics["graph_bytes"] == sum(map(graph_bytes, repository.rglob("model.onnx")))
    assert told.run["precision"] == precision
    assert told.golden_tolerance == GOLDEN_TOLERANCE + 2 * metrics["head_difference"]


def test_it_is_smaller_than_fp32(case: tuple[Run, Path, str], entity_repository: Path, pair_repository: Path) -> None:
    """The graphs take less room than in fp32."""
    run, repository, _ = case
    exact = entity_repository if run.model.shape.views == "entity" else pair_repository
    assert manifest(repository).metrics["graph_bytes"] < manifest(exact).metrics["graph_bytes"]


def test_it_is_served(case: tuple[Run, Path, str]) -> None:
    """The server reproduces the golden examples within the tolerance; what it is off is less than the manifest says."""
    _, repository, _ = case
    told = manifest(repository)
    examples = read_golden(repository / "levi/1/golden.jsonl", told.layout.width)
    assert len(examples) == 2 * module.GOLDEN
    with RunningApp(settings(repository)) as app:
        assert app.get("/readyz").status_code == 200, app.live.reason
        model = app.get("/info").json()["model"]
    assert model["golden_difference"] <= told.metrics["head_difference"] + GOLDEN_TOLERANCE
    assert model["run"]["precision"] == told.run["precision"]


def test_fp32_is_held_to_its_own_tolerance(entity_repository: Path, pair_repository: Path) -> None:
    """Without another wish graphs are exact: parity is recorded, and the tolerance is that of rounded rows."""
    for repository in (entity_repository, pair_repository):
        told = manifest(repository)
        assert told.run["precision"] == "fp32"
        assert told.golden_tolerance == GOLDEN_TOLERANCE
        assert told.metrics["parity"] <= module.PARITY
        assert told.metrics["rating_difference"] <= 2e-3


@pytest.mark.parametrize("value", [float("nan"), 10.0])
def test_a_backbone_that_does_not_bear_it(
    entity_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    """Ratings that become no numbers, or others altogether, are refused, and nothing is published."""

    def spoil(path: Path, _: str) -> None:
        model = onnx.load(path)
        for tensor in model.graph.initializer:
            if tensor.name == "model.out_bias":
                bias = onnx.numpy_helper.to_array(tensor) + np.float32(value)
                tensor.CopyFrom(onnx.numpy_helper.from_array(bias, tensor.name))
        onnx.save(model, path)

    monkeypatch.setattr(module, "lower", spoil)
    with pytest.raises(RunError, match=r"in this precision the graphs differ from the model by (nan|10) \(> 0\.5\)"):
        export(entity_run, tmp_path, "levi", 5, "int8")
    assert not list(tmp_path.rglob("model.onnx"))
