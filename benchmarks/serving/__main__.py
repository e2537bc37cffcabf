"""The serving benchmark.

python -m benchmarks.serving --bundle model_repo --cache ~/.cache/levi-bench             # the peers
python -m benchmarks.serving --bundle model_repo --cache … --scenario overload --scenario drain
python -m benchmarks.serving report --page docs/results.md                               # tables and plots anew
"""

from __future__ import annotations

import json
import os
import resource
import shlex
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from benchmarks.serving import load
from benchmarks.serving.bench import Bench, commit, machine
from benchmarks.serving.bundle import Bundle
from benchmarks.serving.compare import claims, compare
from benchmarks.serving.environments import ROOT
from benchmarks.serving.lineup import LINEUP
from benchmarks.serving.redis_server import find_redis
from benchmarks.serving.report import plots, tables, terminal
from benchmarks.serving.scenarios import SCENARIOS
from levi_serve.bundle.commands import Command, RunError, run
from training.checkpoint import write_json

PEERS = "peers"
BEGIN, END = "<!-- tables of benchmarks.serving -->", "<!-- end of the tables -->"
_FILES = 16_384
"""Open files: an overload has thousands of connections on either side."""


class Results(Command):
    """Where figures and plots are."""

    out: Annotated[Path, Field(description="File of the figures.")] = Path("benchmarks/results/serving.json")
    plots: Annotated[Path, Field(description="Folder of the plots.")] = Path("docs/plots")

    def read(self) -> dict[str, Any]:
        """The figures so far, by section."""
        found: dict[str, Any] = json.loads(self.out.read_bytes()) if self.out.exists() else {}
        return found


class Measure(Results):
    """Measure, and put what was found in place of what the file said of the same section before."""

    bundle: Annotated[Path, Field(description="Model repository that everybody serves.")]
    pair_bundle: Annotated[Path | None, Field(description="Model repository with pair views.")] = None
    cache: Annotated[Path, Field(description="Folder of environments and large tables, kept between runs.")]
    scenario: Annotated[
        tuple[str, ...],
        Field(description=f"What to measure: {', '.join([PEERS, *SCENARIOS])}, or all; may be repeated."),
    ] = (PEERS,)
    only: Annotated[
        tuple[str, ...],
        Field(
            description=f"Peers, by name: {', '.join(who.name for who in LINEUP)}; may be repeated. Ours takes part "
            "each time, and the figures of the others stay."
        ),
    ] = ()
    repeats: Annotated[PositiveInt, Field(description="Turns that everybody takes.")] = 5
    seconds: Annotated[PositiveFloat, Field(description="Measured time of one run.")] = 10.0
    warmup: Annotated[PositiveFloat, Field(description="Time before it that is not counted.")] = 2.0
    quick: Annotated[bool, Field(description="One turn of a second and small tables: does it all work?")] = False
    seed: Annotated[int, Field(ge=0, description="Of the pairs and arrivals.")] = 0
    server_core: Annotated[int, Field(ge=0, description="Core of the server and all it starts.")] = 0
    load_core: Annotated[int, Field(ge=0, description="Core of the generator, of Redis and of this program.")] = 1

    @model_validator(mode="after")
    def _known(self) -> Self:
        for name in self.scenario:
            if name not in {PEERS, "all", *SCENARIOS}:
                raise ValueError(f"there is no scenario '{name}'")
        for name in self.only:
            if name not in {who.name for who in LINEUP}:
                raise ValueError(f"there is no peer '{name}'")
        missing = {self.server_core, self.load_core} - os.sched_getaffinity(0)
        if missing or self.server_core == self.load_core:
            raise ValueError(
                "the server and the generator need a core each: "
                f"--server-core {self.server_core} and --load-core {self.load_core} are not two of those that this "
                f"process may use, {sorted(os.sched_getaffinity(0))}"
            )
        return self

    def __call__(self) -> None:
        """Measure section by section; each is written as soon as it is done."""
        console = terminal()
        os.sched_setaffinity(0, {self.load_core})
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(_FILES, hard), hard))
        chosen = [PEERS, *SCENARIOS] if "all" in self.scenario else self.scenario
        failed = []
        with tempfile.TemporaryDirectory(prefix="levi-bench-") as folder:
            bench = self._bench(Path(folder), lambda text: console.print(text, markup=False, highlight=False))
            for name in chosen:
                console.rule(name)
                try:
                    self._section(name, bench)
                except RunError as error:
                    console.print(f"{name}: {error}", markup=False, style="red")
                    failed.append(name)
        for table in tables(self.read()):
            console.print(table)
        plots(self.read(), self.plots)
        if failed:
            raise RunError(f"not measured: {', '.join(failed)}")

    def _bench(self, folder: Path, say: Callable[[str], None]) -> Bench:
        return Bench(
            bundle=Bundle(self.bundle.resolve()),
            pair_bundle=Bundle(self.pair_bundle.resolve()) if self.pair_bundle else None,
            cache=self.cache.resolve(),
            folder=folder,
            program=load.build(self.cache.resolve()),
            server_core=self.server_core,
            load_core=self.load_core,
            seconds=1.0 if self.quick else self.seconds,
            warmup=0.3 if self.quick else self.warmup,
            repeats=1 if self.quick else self.repeats,
            seed=self.seed,
            redis=find_redis(),
            quick=self.quick,
            say=say,
        )

    def _section(self, name: str, bench: Bench) -> None:
        facts: dict[str, Any] = {
            "command": "python -m benchmarks.serving " + shlex.join(sys.argv[1:]),
            "commit": commit(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "bundle": bench.bundle.facts,
            "quick": bench.quick,
            "repeats": bench.repeats,
            "seconds": bench.seconds,
            "warmup": bench.warmup,
            "seed": bench.seed,
        }
        size = facts["bundle"]["run"]["size"]
        suffix = "" if size == "ref" else f", {size} size"
        key = f"{name}, {bench.bundle.views} views{suffix}" if name == PEERS else name + suffix
        if name == PEERS:
            facts = self._with_peers(self.read().get(key, {}) if self.only else {}, facts, compare(bench, self.only))
        else:
            facts |= SCENARIOS[name](bench)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.out, self.read() | {key: self._without_paths(facts)})

    @staticmethod
    def _with_peers(before: dict[str, Any], facts: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
        """The section with these servers in place of what it said of them. Ratios are each call's own; each server
        says which sources and which day its figures are of.
        """
        mark = {key: facts[key] for key in ("command", "commit", "date")}
        servers = before.get("servers", {}) | {name: {**mark, **one} for name, one in found["servers"].items()}
        ratios = before.get("ratios", {}) | found["ratios"]
        made = claims(facts["bundle"]["views"], servers, ratios)
        return {**facts, "servers": servers, "ratios": ratios, "claims": made}

    def _without_paths(self, facts: dict[str, Any]) -> dict[str, Any]:
        """The figures without the folders of the machine where they were taken."""
        text = json.dumps(facts)
        folders = {self.bundle: "BUNDLE", self.pair_bundle: "PAIR_BUNDLE", self.cache: "CACHE", self.out: "OUT"}
        for folder, name in {**folders, self.plots: "PLOTS", ROOT: "."}.items():
            if folder is not None:
                text = text.replace(str(folder.resolve()), name).replace(f"{folder} ", f"{name} ")
        shown: dict[str, Any] = json.loads(text)
        return shown


class Report(Results):
    """Show the figures of the file as tables, and draw the plots anew; measure nothing."""

    page: Annotated[
        Path | None, Field(description="Page whose part between the benchmark's marks becomes the tables.")
    ] = None

    def __call__(self) -> None:
        """Print and draw."""
        found = self.read()
        if not found:
            raise RunError(f"{self.out}: holds no figures; measure first")
        console = terminal()
        for table in tables(found):
            console.print(table)
        plots(found, self.plots)
        if self.page is not None:
            self._write(self.page, "\n".join(table.markdown() for table in tables(found)))

    @staticmethod
    def _write(page: Path, made: str) -> None:
        before, begin, rest = page.read_text("utf-8").partition(BEGIN)
        _, end, after = rest.partition(END)
        if not end:
            raise RunError(f"{page}: has no part between {BEGIN} and {END}")
        page.write_text(f"{before}{begin}\n\n{made}\n{end}{after}", "utf-8")


if __name__ == "__main__":
    sys.exit(run("benchmarks.serving", __doc__, {"measure": Measure, "report": Report}, sys.argv[1:], "measure"))
