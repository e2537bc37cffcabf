"""What the server needs to be installed."""

from __future__ import annotations

import subprocess
import sys

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
