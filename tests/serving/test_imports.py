"""What the server needs to be installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT

FITTING = ("torch", "transformers", "pandas", "pyarrow", "sklearn", "scipy", "accelerate", "onnx", "training")


@pytest.mark.parametrize("module", ["levi_serve.app", "levi_serve.cli"])
def test_no_fitting_libraries(module: str) -> None:
    """Importing the server, in a process of its own, imports none of the libraries that only fitting needs."""
    code = f"import sys, {module}; print(*(m for m in {FITTING} if m in sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == []


def test_the_core_knows_no_web_framework() -> None:
    """Prediction, batching, stores and versions can be imported without FastAPI, Starlette or uvicorn."""
    code = (
        "import sys, levi_serve.engine, levi_serve.versions, levi_serve.errors;"
        "print(*(m for m in ('fastapi', 'starlette', 'uvicorn', 'levi_serve.settings') if m in sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == []


def test_no_telemetry(entity_toy_repository: Path, tmp_path: Path) -> None:
    """ONNX Runtime keeps its telemetry's session in a temporary file; with the server's settings there is none."""
    code = "import sys, levi_serve.backends.onnx as onnx; onnx.ort.InferenceSession(sys.argv[1]); print('opened')"
    quiet = {name: value for name, value in os.environ.items() if name not in {"ORT_DISABLE_TELEMETRY", "CI"}}
    ended = subprocess.run(
        [sys.executable, "-c", code, str(entity_toy_repository / "levi/1/model.onnx")],
        cwd=ROOT,
        env={**quiet, "TMPDIR": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout == "opened\n"
    assert list(tmp_path.iterdir()) == []
