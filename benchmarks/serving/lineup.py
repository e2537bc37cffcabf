"""Who is measured: our server, and what people would otherwise use, each with the settings that are tried."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from benchmarks.serving import environments
from benchmarks.serving.load import get, post
from benchmarks.serving.peers.scorer import Pair
from benchmarks.serving.server import Server, free_port

TOLERANCE = 1e-4
"""Of ratings; answers are rounded to six digits."""
_FRESH_ROWS = 2e-3
"""Of ratings whose rows were computed anew: rounding to fp16 may fall on either side."""

Route: TypeAlias = Literal["GET /predict", "POST /predict", "POST /predict pairs", "POST /inference", "POST /v2"]


@dataclass(frozen=True)
class Setting:
    """One way to run a program."""

    route: Route
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Contestant:
    """A program that answers a pair. `{bin}`, `{peers}`, `{port}` and `{repository}` in its command are filled in."""

    name: str
    environment: str | None
    """Its requirements in `peers/`; None is our own."""
    packages: tuple[str, ...]
    """Whose versions are worth knowing."""
    command: tuple[str, ...]
    settings: tuple[Setting, ...]
    variables: Mapping[str, str] = field(default_factory=dict)
    views: frozenset[str] = frozenset({"entity", "pair"})
    """The kinds of bundles that it can serve."""
    tolerance: float | None = TOLERANCE
    """Largest difference from raw ONNX Runtime; a scorer that does nothing has no answers to check."""

    def bin(self, cache: Path) -> Path:
        """Its environment's programs."""
        return environments.peer(cache, self.environment) if self.environment else environments.ours(cache)

    def start(self, cache: Path, version: Path, setting: Setting, core: int | None, folder: Path) -> Server:
        """Run it on one core; `version` is the folder of the model version, `folder` its own for files it writes."""
        port = free_port()
        known = {
            "bin": str(self.bin(cache)),
            "peers": str(environments.PEERS),
            "port": str(port),
            "repository": str(version.parents[1]),
        }
        environment = {
            "PYTHONPATH": f"{environments.PEERS}:{environments.ROOT}" if self.environment else "",
            "BENCH_BUNDLE": str(version),
            "BENCH_PORT": str(port),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            **{name: value.format(**known, free=free_port()) for name, value in self.variables.items()},
            **setting.variables,
        }
        command = [part.format(**known) for part in self.command]
        return Server(command, port, core, folder / f"{self.name}.log", environment, folder)


def render(route: Route, pair: Pair, names: Sequence[str]) -> bytes:
    """The request for one pair, as this route wants it."""
    ids = dict(zip(names, pair, strict=True))
    if route == "GET /predict":
        return get("/predict?" + "&".join(f"{name}={ident}" for name, ident in ids.items()))
    if route == "POST /predict pairs":
        return post("/predict", {"pairs": [ids]})
    if route == "POST /v2":
        inputs = [{"name": n, "shape": [1], "datatype": "INT64", "data": [i]} for n, i in ids.items()]
        return post("/v2/models/levi/infer", {"inputs": inputs})
    return post(route.removeprefix("POST "), ids)


def parse(route: Route, body: bytes) -> list[float]:
    """Rating and head ratings in an answer."""
    found: Any = json.loads(body)
    if route == "POST /v2":
        outputs = {output["name"]: output["data"] for output in found["outputs"]}
        return [*outputs["rating"], *outputs["heads"]]
    answer = found[0] if isinstance(found, list) else found
    return [answer["rating"], *answer["heads"]]


def _variants(route: Route, *names: str) -> tuple[Setting, ...]:
    return tuple(Setting(route, {"BENCH_VARIANT": name}) for name in names)


def _batches(route: Route, *sizes: tuple[int, float], variant: str = "") -> tuple[Setting, ...]:
    """Batch size and longest wait for company [ms]."""
    return tuple(
        Setting(route, {"BENCH_MAX_BATCH": str(n), "BENCH_MAX_WAIT_MS": f"{wait:g}", "BENCH_VARIANT": variant})
        for n, wait in sizes
    )


_MOSEC = ("{bin}/python", "{peers}/mosec_app.py", "--address", "127.0.0.1", "--port", "{port}", "--log-level", "error")
_BENTOML = ("{bin}/bentoml", "serve", "bentoml_app:Levi", "--working-dir", "{peers}", "--port", "{port}")
_FASTAPI = ("{bin}/python", "{peers}/fastapi_app.py")

LINEUP = (
    Contestant(
        "ours",
        environment=None,
        packages=("levi-serve", "fastapi", "uvicorn", "onnxruntime"),
        command=("{bin}/levi-serve", "--model-repo", "{repository}", "--port", "{port}", "--log-level", "warning"),
        settings=(Setting("GET /predict"),),
    ),
    Contestant(
        "fastapi_torch",
        environment="fastapi_torch",
        packages=("fastapi", "uvicorn", "torch"),
        command=_FASTAPI,
        settings=_variants("GET /predict", "def", "async"),
        variables={"BENCH_SCORER": "torch"},
        views=frozenset({"entity"}),
    ),
    Contestant(
        "fastapi_torch_backbone",
        environment="fastapi_torch",
        packages=("fastapi", "uvicorn", "torch", "transformers"),
        command=_FASTAPI,
        settings=_variants("GET /predict", "def", "async"),
        variables={"BENCH_SCORER": "backbone"},
        views=frozenset({"entity"}),
        tolerance=_FRESH_ROWS,
    ),
    Contestant(
        "fastapi_onnx",
        environment="fastapi_onnx",
        packages=("fastapi", "uvicorn", "onnxruntime"),
        command=_FASTAPI,
        settings=_variants("GET /predict", "def", "async"),
    ),
    Contestant(
        "litserve",
        environment="litserve",
        packages=("litserve", "fastapi", "uvicorn", "onnxruntime"),
        command=("{bin}/python", "{peers}/litserve_app.py"),
        settings=(
            *_batches("POST /predict", (1, 0), (16, 0), (16, 1), (64, 5), variant="zmq"),
            *_batches("POST /predict", (1, 0), (16, 1), variant="queue"),
        ),
    ),
    Contestant(
        "bentoml",
        environment="bentoml",
        packages=("bentoml", "uvicorn", "onnxruntime"),
        command=_BENTOML,
        settings=(
            *_batches("POST /predict", (1, 0)),
            *_batches("POST /predict pairs", (32, 100), (100, 1000), (100, 60000)),
        ),
        variables={"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": "."},
    ),
    Contestant(
        "mosec",
        environment="mosec",
        packages=("mosec", "onnxruntime"),
        command=_MOSEC,
        settings=_batches("POST /inference", (1, 0), (8, 1), (16, 1), (32, 1), (64, 10)),
    ),
    Contestant(
        "mlserver",
        environment="mlserver",
        packages=("mlserver", "fastapi", "uvicorn", "onnxruntime"),
        command=("{bin}/mlserver", "start", "."),
        settings=(
            Setting("GET /predict"),
            *(
                Setting("POST /v2", {"MLSERVER_MODEL_MAX_BATCH_SIZE": n, "MLSERVER_MODEL_MAX_BATCH_TIME": wait})
                for n, wait in (("0", "0"), ("16", "0.001"), ("32", "0.01"))
            ),
        ),
        variables={
            "MLSERVER_HOST": "127.0.0.1",
            "MLSERVER_HTTP_PORT": "{port}",
            "MLSERVER_GRPC_PORT": "{free}",
            "MLSERVER_METRICS_ENDPOINT": "",
            "MLSERVER_DEBUG": "false",
            "MLSERVER_PARALLEL_WORKERS": "0",
            "MLSERVER_MODEL_NAME": "levi",
            "MLSERVER_MODEL_IMPLEMENTATION": "mlserver_app.Levi",
        },
    ),
    Contestant(
        "mosec_null",
        environment="mosec",
        packages=("mosec",),
        command=_MOSEC,
        settings=_batches("POST /inference", (1, 0)),
        variables={"BENCH_SCORER": "null"},
        tolerance=None,
    ),
    Contestant(
        "mosec_null_batched",
        environment="mosec",
        packages=("mosec",),
        command=_MOSEC,
        settings=_batches("POST /inference", (8, 1), (16, 1), (32, 1), (64, 10)),
        variables={"BENCH_SCORER": "null"},
        tolerance=None,
    ),
    Contestant(
        "bentoml_null",
        environment="bentoml",
        packages=("bentoml", "uvicorn"),
        command=_BENTOML,
        settings=(
            *_batches("POST /predict", (1, 0)),
            *_batches("POST /predict pairs", (32, 100), (100, 1000), (100, 60000)),
        ),
        variables={"BENCH_SCORER": "null", "BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": "."},
        tolerance=None,
    ),
)
"""In the order in which they take turns."""

OURS = LINEUP[0]
