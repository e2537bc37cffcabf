"""What every scenario shares: the cores, the durations, the generator, and how a server is started and loaded."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.serving import load
from benchmarks.serving.bundle import Bundle
from benchmarks.serving.environments import ROOT
from benchmarks.serving.lineup import OURS, Contestant, Setting, parse, render
from benchmarks.serving.load import Report, Run, Traffic
from benchmarks.serving.server import Server
from levi_serve.bundle.commands import RunError

CEILING_CONNECTIONS = (16, 64)
OPEN_CONNECTIONS = 256
CHECKED = 200
REQUESTS = 20_000
"""Different rendered pairs: more than any server could keep answers for without saying so."""
_TRIES = 3


@dataclass(frozen=True)
class Bench:
    """How everything is measured."""

    bundle: Bundle
    pair_bundle: Bundle | None
    cache: Path
    folder: Path
    """For files of this run."""
    program: Path
    """The load generator."""
    server_core: int
    load_core: int
    seconds: float
    warmup: float
    repeats: int
    seed: int
    redis: str | None
    """A redis-server program; None if there is none."""
    quick: bool = False
    """Only to see that everything works: small tables, and a late generator does not matter."""
    say: Callable[[str], None] = field(default=print)

    def with_bundle(self, bundle: Bundle) -> Bench:
        """The same over another bundle."""
        return replace(self, bundle=bundle)

    @contextmanager
    def serve(
        self, who: Contestant = OURS, setting: Setting | None = None, flags: Sequence[str] = ()
    ) -> Iterator[Server]:
        """A server on its core, ready; ended afterwards. `flags` are added to its command."""
        setting = setting or who.settings[0]
        who = replace(who, command=(*who.command, *flags))
        first = render(setting.route, self.bundle.pairs(1, self.seed)[0], self.bundle.names)
        with (
            tempfile.TemporaryDirectory(dir=self.folder) as folder,
            who.start(self.cache, self.bundle.folder, setting, self.server_core, Path(folder)) as server,
        ):
            server.wait(first)
            yield server

    def levi(self, *arguments: str) -> None:
        """Run another of our commands over the bundle, on the generator's core.

        Raises:
            RunError: it failed; what it said.

        """
        program = OURS.bin(self.cache) / "levi-serve"
        command = [str(program), *arguments, "--model-repo", str(self.bundle.repository)]
        with load.on_core(self.load_core):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RunError(f"levi-serve {arguments[0]}: {done.stderr.strip()}")

    def singles(self, setting: Setting = OURS.settings[0], count: int = REQUESTS, seed: int | None = None) -> Traffic:
        """One random known pair a request."""
        pairs = self.bundle.pairs(count, self.seed if seed is None else seed)
        return Traffic("single", [render(setting.route, pair, self.bundle.names) for pair in pairs])

    def start(self, server: Server, traffic: Sequence[Traffic], connections: int, **how: Any) -> Run:
        """Load in the background, from the generator's core."""
        settings = {"seconds": self.seconds, "warmup": self.warmup, "seed": self.seed, "core": self.load_core} | how
        return load.start(self.program, self.folder, server.port, traffic, connections=connections, **settings)

    def closed(self, server: Server, traffic: Sequence[Traffic], connections: int, **how: Any) -> Report:
        """As fast as answers come."""
        return self.start(server, traffic, connections, **how).finish()

    def ceiling(
        self,
        server: Server,
        traffic: Sequence[Traffic],
        connections: Sequence[int] = CEILING_CONNECTIONS,
        **how: Any,
    ) -> Report:
        """The fastest closed loop over the numbers of connections.

        Raises:
            RunError: some request failed: a rate that includes failures is no ceiling.

        """
        best = max((self.closed(server, traffic, n, **how) for n in connections), key=lambda r: r.goodput)
        if best.failed:
            raise RunError(f"requests failed in a closed loop: {best.statuses} {best.errors}: {server.log()}")
        return best

    def open(
        self, server: Server, traffic: Sequence[Traffic], rate: float, connections: int = OPEN_CONNECTIONS, **how: Any
    ) -> Report:
        """Requests that fall due at a rate; repeated while the generator itself was late (not if it is to be quick).

        Raises:
            RunError: the generator was late every time: the machine is too busy to measure on.

        """
        for _ in range(_TRIES):
            report = self.start(server, traffic, connections, rate=rate, **how).finish()
            if not report.void or self.quick:
                return report
            self.say(f"void: the generator was {report.lateness_ms.p99:.2f} ms late at p99; once more")
        raise RunError(f"the generator was late in {_TRIES} runs; its core is not free")

    def difference(self, server: Server, setting: Setting, tolerance: float) -> float:
        """Largest difference of a rating or head rating from raw ONNX Runtime, over random pairs under load.

        Raises:
            RunError: it exceeds `tolerance`, or a request failed.

        """
        pairs = self.bundle.pairs(CHECKED, self.seed + 1)
        expected = self.bundle.expected(pairs)
        traffic = Traffic("check", [render(setting.route, pair, self.bundle.names) for pair in pairs])
        run = self.start(server, [traffic], 16, seconds=1.0, warmup=0.2, keep=True)
        report = run.finish()
        if report.failed:
            raise RunError(f"requests failed while answers were checked: {report.statuses} {report.errors}")
        worst = 0.0
        for reply in run.replies():
            found = np.array(parse(setting.route, reply.body))
            worst = max(worst, float(np.abs(found - expected[reply.request]).max()))
        if not worst <= tolerance:
            raise RunError(f"its answers are wrong: off by {worst:.2g} from ONNX Runtime")
        return worst


def claim(text: str, found: Any, met: bool) -> dict[str, Any]:
    """Something that must show, what was found, and whether it is so."""
    return {"claim": text, "found": found, "met": bool(met)}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest of several runs."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def machine() -> dict[str, Any]:
    """What it was measured on."""
    processor = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="ascii").splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "load_average_before": os.getloadavg()[0],
    }


def commit() -> str:
    """The sources that were measured."""
    git = shutil.which("git")
    if git is None:
        return "unknown"

    def ask(*command: str) -> str:
        done = subprocess.run([git, "-C", str(ROOT), *command], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = ask("status", "--porcelain", "--", "levi_serve", "benchmarks/serving")
    return (ask("describe", "--always") or "unknown") + ("-dirty" if changed else "")
