"""A toy model whose reference is its own traffic, real servers over it, and a real Prometheus that watches them."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from levi_serve.bundle.reference import Reference, measure
from levi_serve.monitor.detector import Detector
from levi_serve.monitor.watch import Monitor, state_file
from levi_serve.versions import load
from tests.programs import program
from tests.serving.redis_server import free_port, until
from tests.serving.toy import MOVIES, USERS, Toy, encoder_graph, vouch

from .rules import RULES

FACTOR = 60
"""How much faster than a clock the rules' windows and waits go by."""
MANY = {number: {"age": 20 + number % 40, "occupation": "doctor"} for number in range(1000, 1400)}
USUAL = tuple((user, movie) for user in MANY for movie in (357, 50))
"""Pairs as in distribution."""
_DURATION = re.compile(r"((?:for: |offset |\[)\d+)([smh])")
_AGE = re.compile(r"(time\(\) - .* > )(\d+)")
_SECONDS = {"s": 1, "m": 60, "h": 3600}


class World(Toy):
    """Its heads disagree the more, the larger the error; one of them may be unlike the others."""

    def __init__(self, moved: float = 0.0) -> None:
        """In the reference, the last head's mean is `moved` from where it is in traffic."""
        self._moved = moved
        super().__init__("entity", users={**USERS, **MANY}, movies=MOVIES)

    def reference(self, digest: str) -> Reference:
        """Measured on the usual pairs."""
        rng = np.random.default_rng(0)
        drawn = [USUAL[i] for i in rng.integers(0, len(USUAL), 4000)]
        pairs = {pair: self.heads(*pair) for pair in USUAL}
        heads = np.stack([pairs[pair] for pair in drawn]).astype(np.float32)
        rating = np.clip(heads.mean(1), 1, 5)
        truth = rating + (0.2 + heads.std(1)) * rng.normal(size=len(heads))
        nothing, known = np.zeros(len(heads)), np.ones(len(heads), np.bool_)
        users = np.array([user for user, _ in drawn])
        found = measure(heads, (nothing, nothing), rating, truth, users, (known, known), seed=0, model=digest)
        means = found.heads.copy()
        means[0, -1] -= self._moved
        return replace(found, heads=means)


def slow_down(repository: Path) -> None:
    """Give the encoder a quarter of a second's work that changes nothing."""
    size, graph = 900, encoder_graph()
    matrix = np.full((size, size), 1e-3, np.float32)
    graph.graph.initializer.append(numpy_helper.from_array(matrix, "matrix"))
    graph.graph.initializer.append(numpy_helper.from_array(np.float32(0), "nothing"))
    nodes = [
        helper.make_node("ReduceMax", ["side_f"], ["any"], keepdims=0),
        helper.make_node("Add", ["matrix", "any"], ["work_0"]),
        *(helper.make_node("MatMul", [f"work_{i}", "matrix"], [f"work_{i + 1}"]) for i in range(8)),
        helper.make_node("ReduceMean", ["work_8"], ["done"], keepdims=0),
        helper.make_node("Mul", ["done", "nothing"], ["zero"]),
        helper.make_node("Add", ["row", "zero"], ["slow_row"]),
    ]
    graph.graph.node.extend(nodes)
    graph.graph.output[0].CopyFrom(helper.make_tensor_value_info("row", TensorProto.FLOAT, ["B", 4]))
    for node in graph.graph.node:
        for names in (node.input, node.output):
            renamed = [{"row": "fast_row", "slow_row": "row"}.get(name, name) for name in names]
            names[:] = renamed
    path = repository / "levi_encoder/1/model.onnx"
    onnx.save(graph, path)
    vouch(repository, repository / "levi/1")


def feed_back(repository: Path, state: Path, squared: float) -> None:
    """True ratings came: note their squared errors as a worker of the same node would."""
    version = load(repository, "levi", 1, "cpu", threads=1)
    detector = Detector.of(version.reference, 20.0)
    monitor = Monitor(version.reference, detector, state_file(state, version.manifest, version.reference))
    monitor.observe_errors(np.full(1000, squared))
    monitor.close()


def faster(text: str) -> str:
    """Rules whose windows, waits and ages are FACTOR times shorter."""

    def shorter(found: re.Match[str]) -> str:
        head, number = re.match(r"(.*?)(\d+)$", found[1]).groups()  # type: ignore[union-attr]
        return f"{head}{int(number) * _SECONDS[found[2]] * 1000 // FACTOR}ms"

    return _AGE.sub(lambda found: f"{found[1]}{int(found[2]) // FACTOR}", _DURATION.sub(shorter, text))


class Prometheus:
    """A Prometheus process over some targets, by job."""

    def __init__(self, folder: Path, targets: Mapping[str, str]) -> None:
        folder.mkdir()
        for path in RULES:
            (folder / path.name).write_text(faster(path.read_text()))
        jobs = [{"job_name": job, "static_configs": [{"targets": [at]}]} for job, at in targets.items()]
        times = {"scrape_interval": "700ms", "scrape_timeout": "700ms", "evaluation_interval": "500ms"}
        config = {"global": times, "rule_files": ["*.yml"], "scrape_configs": jobs}
        (folder / "prometheus.json").write_text(json.dumps(config))
        port = free_port()
        command = [
            program("prometheus"),
            f"--config.file={folder / 'prometheus.json'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--query.lookback-delta=3s",
            "--log.level=warn",
        ]
        self._log = (folder / "log").open("w")
        self._process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT, cwd=folder)
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10)
        until(self._ready)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Samples as of now."""
        answer = self.http.get("/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", f"{expression}: {answer}"
        if answer["data"]["resultType"] == "scalar":
            return [{"metric": {}, "value": answer["data"]["result"]}]
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def fired(self) -> dict[str, set[str]]:
        """The alerts that were firing at any time, by job."""
        found: dict[str, set[str]] = {}
        for sample in self.query('count_over_time(ALERTS{alertstate="firing"}[10m])'):
            found.setdefault(sample["metric"].get("job", ""), set()).add(sample["metric"]["alertname"])
        return found

    def close(self) -> None:
        self.http.close()
        self._process.kill()
        self._process.wait()
        self._log.close()

    def _ready(self) -> bool:
        assert self._process.poll() is None, "prometheus ended"
        try:
            return self.http.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False


def usual(seed: int) -> Iterator[list[dict[str, Any]]]:
    """Requests for 64 pairs each, as in distribution."""
    rng = np.random.default_rng(seed)
    while True:
        yield [{"user": user, "movie": movie} for user, movie in (USUAL[i] for i in rng.integers(0, len(USUAL), 64))]
