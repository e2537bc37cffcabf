"""A real Triton server over a model repository. The wheel that brings it has no ONNX Runtime backend: a backend of that
name in Python stands in for it and serves the repository as it is.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import httpx
import psutil

from .redis_server import free_port

BACKEND = """
import json, os
import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        path = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.config = json.loads(args["model_config"])

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        flat = {tensor["name"] for tensor in self.config["input"] if tensor.get("reshape")}
        feeds = {}
        for tensor in self.config["input"]:
            array = pb_utils.get_input_tensor_by_name(request, tensor["name"]).as_numpy()
            feeds[tensor["name"]] = array.reshape(len(array)) if tensor["name"] in flat else array
        names = [tensor["name"] for tensor in self.config["output"]]
        arrays = self.session.run(names, feeds)
        return pb_utils.InferenceResponse([pb_utils.Tensor(*pair) for pair in zip(names, arrays)])
"""


class TritonServer:
    """`tritonserver` out of the environment `venv`, on free loopback ports."""

    def __init__(self, venv: Path, repository: Path, folder: Path) -> None:
        (wheel,) = venv.glob("lib/python3.*/site-packages/pytriton/tritonserver")
        stub = wheel / "backends" / "python" / "triton_python_backend_stub"
        if not stub.exists():
            stub.symlink_to(wheel / "python_backend_stubs" / wheel.parts[-4].removeprefix("python") / stub.name)
        backends = folder / "backends"
        (backends / "onnxruntime").mkdir(parents=True)
        (backends / "onnxruntime" / "model.py").write_text(BACKEND)
        (backends / "python").symlink_to(wheel / "backends" / "python")
        self.http, self.grpc, metrics = free_port(), free_port(), free_port()
        self.url = f"127.0.0.1:{self.grpc}"
        self._log = folder / "triton.log"
        self._command = [
            str(wheel / "bin" / "tritonserver"),
            f"--model-repository={repository}",
            f"--backend-directory={backends}",
            *("--model-control-mode=poll", "--repository-poll-secs=1", "--exit-on-error=false"),
            *("--http-address=127.0.0.1", f"--http-port={self.http}"),
            *("--grpc-address=127.0.0.1", f"--grpc-port={self.grpc}", f"--metrics-port={metrics}"),
        ]
        self._path = f"{venv / 'bin'}:{os.environ['PATH']}"
        self.start()

    def start(self) -> None:
        """Start it, again perhaps, and wait until it serves."""
        environment = {**os.environ, "PATH": self._path, "PYTHONNOUSERSITE": "1"}
        for name in ("PYTHONPATH", "VIRTUAL_ENV"):
            environment.pop(name, None)
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=subprocess.STDOUT, env=environment, process_group=0
            )
        end = time.monotonic() + 60
        while not self.ready():
            assert time.monotonic() < end, self._log.read_text()[-3000:]
            assert self._process.poll() is None, self._log.read_text()[-3000:]
            time.sleep(0.1)

    def ready(self, path: str = "") -> bool:
        """What it says of its health, or a model's."""
        try:
            return httpx.get(f"http://127.0.0.1:{self.http}/v2/{path or 'health/ready'}", timeout=2).is_success
        except httpx.HTTPError:
            return False

    def statistics(self, model: str, version: int = 1) -> tuple[int, int]:
        """Rows inferred, and runs that it took."""
        told = httpx.get(f"http://127.0.0.1:{self.http}/v2/models/{model}/versions/{version}/stats", timeout=5).json()
        (stats,) = told["model_stats"]
        return stats["inference_count"], stats["execution_count"]

    def kill_stubs(self) -> None:
        """Kill what runs the models and leave the server, which says that it is ready."""
        for child in psutil.Process(self._process.pid).children(recursive=True):
            if "stub" in child.name():
                child.kill()

    def kill(self) -> None:
        """End it and what it started, at once, and what it leaves behind."""
        if self._process.poll() is not None:
            return
        server = psutil.Process(self._process.pid)
        children = server.children(recursive=True)
        shared = {Path(memory.path) for memory in server.memory_maps() if memory.path.startswith("/dev/shm/triton_")}
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        for child in children:
            if child.is_running():
                child.kill()
        psutil.wait_procs(children, timeout=5)
        for region in shared:
            region.unlink(missing_ok=True)
