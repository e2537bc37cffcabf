"""config.pbtxt of the exported graphs, so that NVIDIA Triton serves the same repository."""

from __future__ import annotations

from training.graphs import Graph

MAX_BATCH = 1024
_INTEGERS = frozenset({"input_ids", "attention_mask", "codes", "user_codes", "item_codes", "side"})
_PER_PAIR = frozenset({"rating", "side"})


def config(name: str, graph: Graph) -> str:
    """The config.pbtxt of one graph: dynamic batching without delay, the two newest versions served."""
    return f'''name: "{name}"
backend: "onnxruntime"
max_batch_size: {MAX_BATCH}
version_policy: {{ latest {{ num_versions: 2 }} }}
dynamic_batching {{ max_queue_delay_microseconds: 0 }}
input [
{_list(graph.inputs, graph.stored)}
]
output [
{_list(graph.outputs, ())}
]
'''


def _list(names: tuple[str, ...], stored: tuple[str, ...]) -> str:
    return ",\n".join(f'  {{ name: "{name}", data_type: {_type(name, stored)}, {_dims(name)} }}' for name in names)


def _type(name: str, stored: tuple[str, ...]) -> str:
    """The type of a tensor; `stored` are rows as tables hold them."""
    if name in _INTEGERS:
        return "TYPE_INT64"
    return "TYPE_FP16" if name in stored else "TYPE_FP32"


def _dims(name: str) -> str:
    """Dimensions after the batch; what has none, one number per pair, Triton wants reshaped."""
    return "dims: [ 1 ], reshape: { shape: [ ] }" if name in _PER_PAIR else "dims: [ -1 ]"
