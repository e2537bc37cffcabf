"""The rules of design that tools can check: who may import whom, and that every option is explained."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

from training.options import Options

ROOT = Path(__file__).parents[1]


WATCH = """
import os, sys
class Watch:
    def find_spec(self, name, *_):
        if name == "onnxruntime": print(os.environ.get("ORT_DISABLE_TELEMETRY"))
sys.meta_path.insert(0, Watch())
import {module}
"""


@pytest.mark.parametrize("module", ["levi_serve.app", "levi_serve.backends.binding", "training.export"])
def test_the_runtime_is_silent(module: str) -> None:
    """Whoever is imported first, ONNX Runtime's telemetry is off before it is loaded."""
    clean = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    code = WATCH.format(module=module)
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=clean)
    assert told.stdout == "1\n"


@pytest.fixture(scope="module")
def imports() -> grimp.ImportGraph:
    """Every import between modules of both packages."""
    return grimp.build_graph("levi_serve", "training", cache_dir=None)


def test_contracts() -> None:
    """The contracts in pyproject.toml are kept. The linter sets up logging for its whole process: it has its own."""
    linter = Path(sys.executable).with_name("lint-imports")
    told = subprocess.run([linter, "--no-cache"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert told.returncode == 0, told.stdout


def test_fitting_knows_only_the_bundle(imports: grimp.ImportGraph) -> None:
    """Modules of `training` import `levi_serve.bundle` and nothing else of `levi_serve`, in functions neither."""
    modules = {"training"} | imports.find_descendants("training")
    used = {name for module in modules for name in imports.find_modules_directly_imported_by(module)}
    assert {
        name for name in used if name.startswith("levi_serve") and not name.startswith("levi_serve.bundle")
    } == set()
    assert any(name.startswith("levi_serve.bundle") for name in used)


def test_serving_knows_nothing_of_fitting(imports: grimp.ImportGraph) -> None:
    """No module of `levi_serve` imports `training`, directly or through others."""
    assert not imports.find_shortest_chains("levi_serve", "training", as_packages=True)


def test_the_bundle_knows_nobody(imports: grimp.ImportGraph) -> None:
    """`levi_serve.bundle`, the door between both, imports nothing but itself."""
    modules = {"levi_serve.bundle"} | imports.find_descendants("levi_serve.bundle")
    used = {name for module in modules for name in imports.find_modules_directly_imported_by(module)}
    assert used <= modules


def test_only_the_edge_sees_settings(imports: grimp.ImportGraph) -> None:
    """Parts take plain arguments: only `app` and the programs, `cli` and `worker`, import the server's settings."""
    users = imports.find_modules_that_directly_import("levi_serve.settings")
    assert users <= {"levi_serve.app", "levi_serve.cli", "levi_serve.worker"}


@pytest.mark.parametrize("package", ["levi_serve", "training"])
def test_packages_stay_empty(package: str) -> None:
    """Importing a package runs nothing: its __init__ is empty but for a docstring."""
    lines = (ROOT / package / "__init__.py").read_text().splitlines()
    assert len(lines) <= 1
    assert all(line.startswith('"""') for line in lines)


@pytest.mark.parametrize("option", Options.model_fields)
def test_every_option_is_described(option: str) -> None:
    """Each option of a fit has a sentence that says what it does, and a default."""
    field = Options.model_fields[option]
    assert field.description
    assert field.description.endswith(".")
    assert not field.is_required()
