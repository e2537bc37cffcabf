"""What one batch costs in process, without HTTP: pairs from rows to scores, and a pass over the whole catalogue.

python -m benchmarks.batch --model-repo model_repo --label "fp16 rows"   # adds a row to benchmarks/results/batch.json
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
from pydantic import Field, PositiveInt

from levi_serve.bundle.commands import Command, UsageError, run
from levi_serve.predictor import entity_feeds
from levi_serve.recommend import Recommender
from levi_serve.versions import load, newest
from training.checkpoint import write_json
from training.conditions import conditions

BATCHES = (1, 16, 32)
K = 10
PART_S = 0.05
"""Seconds of runs that one measurement is the mean of."""


class Batch(Command):
    """Medians over repeats that take turns; one thread."""

    model_repo: Annotated[Path, Field(description="Model repository with entity views.")] = Path("model_repo")
    label: Annotated[str, Field(description="Name of this row; one of the same name is replaced.")]
    repeats: Annotated[PositiveInt, Field(description="Measurements of each.")] = 15
    seed: int = 0
    out: Annotated[Path, Field(description="Where the figures go.")] = Path("benchmarks/results/batch.json")

    def __call__(self) -> None:
        """Print the row and write it beside the others."""
        version = load(self.model_repo, "levi", newest(self.model_repo, "levi"), "cpu", threads=1)
        users, items = version.tables
        if version.manifest.views != "entity" or users is None or items is None:
            raise UsageError(f"--model-repo {self.model_repo}: needs entity views")
        rng = np.random.default_rng(self.seed)
        score = version.predictor.score
        recommender = Recommender(version.predictor, items, users, None)
        work: dict[str, Callable[[], object]] = {}
        for size in BATCHES:
            user, item = rng.integers(len(users), size=size), rng.integers(len(items), size=size)
            work[f"pairs_{size}_us"] = lambda u=user, i=item: score(entity_feeds(users.rows[u], items.rows[i]))  # type: ignore[misc]
        work["catalogue_us"] = lambda: recommender.top(users.rows[0], K)
        taken: dict[str, list[float]] = {name: [] for name in work}
        for _ in range(1 + self.repeats):
            for name, one in work.items():
                taken[name].append(timed(one))
        row = {name: round(median(times[1:]) * 1e6, 1) for name, times in taken.items()}  # the first warms up
        found = json.loads(self.out.read_bytes()) if self.out.exists() else {}
        found[self.label] = {
            "command": f"python -m benchmarks.batch --label '{self.label}'",
            **conditions("one thread"),
            "items": len(items),
            "width": version.manifest.layout.width,
            **row,
        }
        write_json(self.out, found)
        print("| " + " | ".join([self.label, *(f"{value:,.0f} µs" for value in row.values())]) + " |")


def timed(work: Callable[[], object]) -> float:
    """Mean seconds of a run."""
    start, runs = time.perf_counter(), 0
    while time.perf_counter() - start < PART_S:
        work()
        runs += 1
    return (time.perf_counter() - start) / runs


if __name__ == "__main__":
    sys.exit(run("batch", "", {"run": Batch}, sys.argv[1:], default="run"))
