"""Lower precision: an exported graph with its weights in half, or with an int8 backbone.

fp16: the backbone was traced in half (see `export`); what remains are the matrices of projection, tower and heads. They
are stored in half and widened before use, since sums and divisions would suffer. ONNX Runtime's converter is not used:
it rounds every value that passes from one fp32 operator to the next. int8: ONNX Runtime quantises the weights of the
backbone's matrix products, per channel, and its embeddings; at run time, what they are multiplied with.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Literal, TypeAlias

import onnx
from onnx import TensorProto, helper, numpy_helper

from training.graphs import BACKBONE

Precision: TypeAlias = Literal["fp32", "fp16", "int8"]


def lower(path: Path, precision: Precision) -> None:
    """Rewrite a graph file; its tensors keep their types."""
    if precision == "fp16":
        _store_half(path)
    elif precision == "int8":
        _quantise(path)


def _store_half(path: Path) -> None:
    model = onnx.load(path)
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1:
            name, stored = tensor.name, f"{tensor.name}.half"
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float16"), stored))
            casts.append(helper.make_node("Cast", [stored], [name], f"widen {name}", to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)


def _quantise(path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: PLC0415 - takes a second
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata  # noqa: PLC0415

    model = onnx.load(path)
    others = [node.name for node in model.graph.node if not node.name.startswith(BACKBONE)]
    if len(others) == len(model.graph.node):
        return  # the heads of entity views: too small to gain
    add_pre_process_metadata(model)  # the exporter has folded constants
    del model.graph.value_info[:]  # the tool infers shapes itself, and trips over those of weights that it transposes
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        quantised = Path(folder) / path.name
        quantize_dynamic(
            model,
            quantised,
            op_types_to_quantize=["MatMul", "Gather"],
            per_channel=True,
            reduce_range=True,  # products of 8 bits overflow where the processor has no VNNI
            weight_type=QuantType.QInt8,
            nodes_to_exclude=others,
        )
        quantised.replace(path)
