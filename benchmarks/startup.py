"""How fast, how small: the serving environment's size, the time from start to ready, and the memory of a server.

python -m benchmarks.startup --model-repo model_repo     # prints a table, writes benchmarks/results/startup.json
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from statistics import median
from typing import Annotated
from urllib.error import URLError

from pydantic import Field, PositiveInt

from levi_serve.bundle.commands import Command, RunError, run
from training.checkpoint import write_json
from training.conditions import conditions

ROOT = Path(__file__).parents[1]
LIMIT_S = 60.0


class Startup(Command):
    """Install the server alone into a fresh environment, start it several times and look at it."""

    model_repo: Annotated[Path, Field(description="Model repository to serve.")] = Path("model_repo")
    starts: Annotated[PositiveInt, Field(description="Starts; the median counts.")] = 7
    port: Annotated[int, Field(description="Loopback port.")] = 8765
    out: Annotated[Path, Field(description="Where the figures go.")] = Path("benchmarks/results/startup.json")

    def __call__(self) -> None:
        """Print the table and write the figures."""
        with tempfile.TemporaryDirectory() as folder:
            environment = Path(folder) / "environment"
            subprocess.run([sys.executable, "-m", "venv", environment], check=True)
            pip, pinned = str(environment / "bin" / "pip"), str(ROOT / "constraints.txt")
            subprocess.run([pip, "install", "-q", "-c", pinned, f"{ROOT}[cpu]"], check=True, stderr=subprocess.DEVNULL)
            size = sum(f.stat().st_size for f in environment.rglob("*") if f.is_file() and not f.is_symlink()) / 2**20
            found = [self._start(environment / "bin" / "levi-serve") for _ in range(self.starts)]
        facts = {
            "command": "python -m benchmarks.startup",
            **conditions(),
            "environment_mib": size,
            "seconds_to_ready": [seconds for seconds, _ in found],
            "resident_mib": [memory for _, memory in found],
        }
        write_json(self.out, facts)
        print("| environment | start to ready, median (slowest) | peak resident, largest |")
        print("|---|---|---|")
        seconds = [s for s, _ in found]
        print(
            f"| {size:.0f} MiB | {median(seconds):.2f} s ({max(seconds):.2f} s) | {max(m for _, m in found):.0f} MiB |"
        )

    def _start(self, program: Path) -> tuple[float, float]:
        """Seconds from start to ready, and peak resident MiB; being ready includes real predictions."""
        base = f"http://127.0.0.1:{self.port}"
        start = time.perf_counter()
        command = [str(program), "--model-repo", str(self.model_repo.resolve()), "--port", str(self.port)]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
            try:
                while not _answers(f"{base}/readyz"):
                    if server.poll() is not None or time.perf_counter() - start > LIMIT_S:
                        raise RunError(f"{program} did not become ready")
                    time.sleep(0.01)
                seconds = time.perf_counter() - start
                status = Path(f"/proc/{server.pid}/status").read_text(encoding="ascii")
            finally:
                server.terminate()
        return seconds, int(status.partition("VmHWM:")[2].split()[0]) / 1024


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


if __name__ == "__main__":
    sys.exit(run("startup", "", {"run": Startup}, sys.argv[1:], default="run"))
