"""Does a fit on a device, or over several processes, come to what one process on the CPU comes to?

python -m benchmarks.devices --device cuda                 # a GPU
python -m benchmarks.devices --device cuda --processes 4   # as many GPUs
python -m benchmarks.devices --device xla                  # a TPU, with torch_xla
python -m benchmarks.devices --device cpu --processes 2    # gloo

The built-in sample with the packaged MiniLM: LEVI over entity views, and over a backbone adapted with HT and LoRA.
Nothing is dropped or hidden in LEVI itself, so that the fits differ by rounding (and by the dropout of an adapted
backbone). It writes benchmarks/results/devices.json and exits 1 where validation errors are too far apart.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveInt

from levi_serve.bundle.commands import Command, RunError, run
from training.checkpoint import write_json
from training.conditions import conditions
from training.options import Device, default_cache
from training.run import RECORD

FITS = {"frozen": ["--adapt=none"], "HT": ["--adapt=ht"], "LoRA": ["--adapt=lora"]}
PLAIN = [
    "--size=paper", "--learning-rate=1e-3", "--epochs=2", "--hide-user=0", "--hide-item=0", "--select=random",
    "--sample=2000", "--adapt-epochs=1",
]  # fmt: skip
ALLOWED = {"frozen": 1e-3, "HT": 1e-2, "LoRA": 1e-2}
"""Differences of the validation RMSE."""


class Devices(Command):
    """Fit on the CPU and on the device, and compare."""

    device: Annotated[Device, Field(description="The device to be checked.")] = "cuda"
    processes: Annotated[PositiveInt, Field(description="One per GPU; more than one go through torchrun.")] = 1
    fits: Annotated[tuple[str, ...], Field(description="Of frozen, HT, LoRA.")] = tuple(FITS)
    cache: Annotated[Path, Field(default_factory=default_cache, description="Folder of cached views.")]
    out: Annotated[Path, Field(description="Where the figures go.")] = Path("benchmarks/results/devices.json")

    def __call__(self) -> None:
        """Print a row per fit; write them.

        Raises:
            RunError: a fit failed on the device, or came to something else.
        """
        rows = []
        for name in self.fits:
            with tempfile.TemporaryDirectory() as folder:
                expected, on_cpu = self._fit(FITS[name], Path(folder) / "cpu", "cpu", 1)
                found, on_device = self._fit(FITS[name], Path(folder) / "device", self.device, self.processes)
            off = max(abs(a - b) for a, b in zip(expected, found, strict=True))
            rows.append({"fit": name, "difference": off, "cpu_seconds": on_cpu, "device_seconds": on_device})
            print(rows[-1], flush=True)
            if off > ALLOWED[name]:
                raise RunError(f"{name}: validation RMSE differs by {off:.2g}, more than {ALLOWED[name]:g}")
        facts = {
            "command": f"python -m benchmarks.devices --device {self.device} --processes {self.processes}",
            **conditions(),
            "allowed": ALLOWED,
            "rows": rows,
        }
        write_json(self.out, facts)

    def _fit(self, flags: list[str], out: Path, device: Device, processes: int) -> tuple[list[float], float]:
        """The validation curve, and the seconds of fitting."""
        launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--standalone"]
        command = [
            *(sys.executable, *(launcher if processes > 1 else []), "-m", "training.cli", "fit"),
            *(*PLAIN, *flags, f"--device={device}", f"--cache={self.cache}", f"--out={out}"),
        ]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise RunError(f"{' '.join(command)} failed: {done.stderr.strip().splitlines()[-1]}")
        record = json.loads((out / RECORD).read_text())
        return record["curve"], record["seconds"]


if __name__ == "__main__":
    sys.exit(run("devices", "", {"run": Devices}, sys.argv[1:], default="run"))
