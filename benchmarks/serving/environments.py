"""A virtual environment for each program that is measured, made by pip once and kept between runs."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

from levi_serve.bundle.commands import RunError

ROOT = Path(__file__).parents[2]
PEERS = Path(__file__).with_name("peers")


def peer(cache: Path, name: str) -> Path:
    """The `bin` folder of the environment that `peers/NAME.txt` describes, every package of it pinned.

    Raises:
        RunError: pip cannot install it; its own last words.

    """
    requirements = PEERS / f"{name}.txt"
    # The file is a whole environment: with --no-deps nothing that it does not name comes along.
    return _made(cache / "environments" / name, requirements.read_bytes(), ["--no-deps", "-r", str(requirements)])


def ours(cache: Path) -> Path:
    """The `bin` folder of an environment with this repository's server and what it needs, torch not among it.

    Raises:
        RunError: pip cannot install it; its own last words.

    """
    pins = ROOT / "constraints.txt"
    facts = pins.read_bytes() + (ROOT / "pyproject.toml").read_bytes() + bytes(ROOT)
    return _made(cache / "environments" / "ours", facts, ["-c", str(pins), "-e", f"{ROOT}[cpu]"])


def installed(folder: Path) -> dict[str, str]:
    """Versions of an environment's packages."""
    program = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
    done = subprocess.run([folder / "python", "-c", program], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _made(folder: Path, facts: bytes, arguments: list[str]) -> Path:
    """The environment in `folder`, made anew unless it was made of the same facts."""
    mark, wanted = folder / "made-of", hashlib.sha256(facts).hexdigest()
    if mark.exists() and mark.read_text() == wanted:
        return folder / "bin"
    shutil.rmtree(folder, ignore_errors=True)
    for command in ([sys.executable, "-m", "venv", str(folder)], [str(folder / "bin" / "pip"), "install", *arguments]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RunError(" ".join(done.stderr.strip().splitlines()[-3:]) or f"{command[0]} failed")
    mark.write_text(wanted)
    return folder / "bin"
