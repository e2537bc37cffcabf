"""The repository itself: what is built from it, and that its pins and its container file are sound."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_wheel(tmp_path: Path) -> None:
    """A wheel builds, carries both packages with their type markers, and imports from where it was installed."""
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"levi_serve/py.typed", "levi_serve/bundle/schema.py", "training/py.typed", "training/model.py"} <= {*names}
    assert {"levi_serve/page/index.html", "levi_serve/page/page.js", "levi_serve/page/style.css"} <= {*names}
    assert not [name for name in names if name.startswith(("tests", "benchmarks"))]
    target = tmp_path / "installed"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    program = "import levi_serve.cli as cli, levi_serve.page.router as page; page.build_page(); print(cli.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(target)}
    found = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert Path(found.stdout.strip()).is_relative_to(target)


def test_everything_is_pinned() -> None:
    """Each dependency of each extra has its version in the constraints file; only the GPU runtime is the user's."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {re.split(r"[\[>=<]", d)[0] for ds in project["optional-dependencies"].values() for d in ds}
    wanted |= {re.split(r"[\[>=<]", d)[0] for d in project["dependencies"]}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.partition("==")[0] for line in lines if "==" in line}
    normal = [{name.lower().replace("_", "-") for name in names} for names in (wanted, pinned)]
    assert normal[0] - normal[1] <= {"onnxruntime-gpu", "setuptools"}
