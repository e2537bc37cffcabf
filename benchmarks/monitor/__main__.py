"""The shift monitor on MovieLens-100K.

python -m benchmarks.monitor --data DIR    # every stage, or those after --stage; results are added to the file

`--runs` holds the finished fits titles-0, -1, -2 (the default recipe), genres-0, … (`--item-text genres`) and
paper-0, … (genres, and the paper's size and learning rates: its heads read views as they are, and all of them).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from benchmarks.monitor import stages
from benchmarks.monitor.recipes import recipes
from benchmarks.monitor.separation import auroc
from benchmarks.monitor.tried import tried
from levi_serve.bundle.commands import Command, run
from training.checkpoint import write_json
from training.conditions import conditions
from training.options import Options, default_cache
from training.run import Run, fit, open_run

SEEDS = (0, 1, 2)
FITS: dict[str, dict[str, Any]] = {
    "titles": {},
    "genres": {"item_text": ("genres",)},
    "paper": {
        "item_text": ("genres",),
        "size": "paper",
        "batch": 200,
        "learning_rate": (1e-4, 1e-3, 1e-2),
        "trial": 1,
    },
}
STAGES: dict[str, Callable[[dict[str, list[Run]], Path], Any]] = {
    "auroc": auroc,
    "delays": stages.delays,
    "peers": stages.peers,
    "replay": stages.replay,
    "errors": stages.errors,
    "cost": stages.cost,
    "recipes": recipes,
    "tried": tried,
}


class Stage(Command):
    """Run one stage, or `all`."""

    stage: Annotated[
        str,
        Field(description="Some of auroc, delays, peers, replay, errors, cost, recipes, tried, with commas; or all."),
    ] = "all"
    data: Annotated[Path, Field(description="Folder of MovieLens-100K.")]
    runs: Annotated[Path, Field(description="Folder of the fitted runs; what is missing is fitted.")] = Path(
        "runs/monitor"
    )
    cache: Annotated[Path, Field(default_factory=default_cache, description="Folder of cached views.")]
    out: Annotated[Path, Field(description="Where the figures go.")] = Path("benchmarks/results/monitor.json")

    def __call__(self) -> None:
        """Add the stage's figures to the file."""
        found = {text: [self._run(text, seed) for seed in SEEDS] for text in FITS}
        for name in STAGES if self.stage == "all" else self.stage.split(","):
            figures = STAGES[name](found, self.cache)
            known = json.loads(self.out.read_text()) if self.out.exists() else {}
            known[name] = {
                "command": f"python -m benchmarks.monitor --stage {name} --data ml-100k",
                **conditions(),
                "figures": figures,
            }
            write_json(self.out, known)
            print(name, json.dumps(figures, indent=1), flush=True)

    def _run(self, text: str, seed: int) -> Run:
        folder = self.runs / f"{text}-{seed}"
        options = Options(dataset="ml-100k", data=self.data, seed=seed, select="random", **FITS[text])
        fit(options, folder, self.cache, "cpu")
        return open_run(folder, self.cache, "cpu")


if __name__ == "__main__":
    sys.exit(run("monitor", "", {"run": Stage}, sys.argv[1:], default="run"))
