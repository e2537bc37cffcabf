"""Two processes fit what one does: torchrun with gloo on the CPU, as on several GPUs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from training.options import Options
from training.run import Record, fit


@pytest.mark.parametrize("adapt", ["none", "ht"])
def test_two_processes(options: Options, cache: Path, tmp_path: Path, adapt: str) -> None:
    """Both see half of every step's ratings; without random draws the curves agree to rounding."""
    plain = options.model_copy(
        update={"size": "paper", "hide_user": 0.0, "hide_item": 0.0, "adapt": adapt, "adapt_learning_rate": (1e-3,)}
    )
    one = fit(plain, tmp_path / "one", cache, "cpu")
    program = (
        "import sys, json, torch\n"
        "from pathlib import Path\n"
        "from training.options import Options\n"
        "from training.run import accelerator, fit\n"
        "assert accelerator('cpu').num_processes == 2\n"
        "options = Options.model_validate_json(sys.argv[1])\n"
        "fit(options, Path(sys.argv[2]), Path(sys.argv[3]), 'cpu')\n"
        "torch.distributed.destroy_process_group()\n"
    )
    (tmp_path / "two.py").write_text(program)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"),
        *(str(tmp_path / "two.py"), plain.model_dump_json(), str(tmp_path / "two"), str(cache)),
    ]
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=240, cwd=root, env=_environment(root)
    )
    assert done.returncode == 0, done.stderr[:3000]
    two = Record.model_validate(json.loads((tmp_path / "two" / "run.json").read_text()))
    assert two.curve == pytest.approx(one.curve, abs=1e-3)
    assert two.epochs == one.epochs


def _environment(root: str) -> dict[str, str]:
    import os

    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
