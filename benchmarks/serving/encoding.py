"""How many new entities the backbone encodes in a second (entity views): the rows that no table and no Redis has yet.

python -m benchmarks.serving.encoding --model-repo model_repo     # a table, and benchmarks/results/encoding.json
"""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
from pydantic import Field, PositiveInt

from levi_serve.bundle.commands import Command, UsageError, run
from levi_serve.bundle.rows import Table
from levi_serve.encoder import Encoder, NewEntity
from levi_serve.versions import Version, load, newest
from training.checkpoint import write_json

BATCHES = (1, 8, 32)


class Encoding(Command):
    """Encode entities of the catalogue from their attributes, as if they were new."""

    model_repo: Annotated[Path, Field(description="Model repository with entity views.")] = Path("model_repo")
    model: Annotated[str, Field(description="Name of the model.")] = "levi"
    entities: Annotated[PositiveInt, Field(description="Users and items in one repeat, half of each.")] = 512
    repeats: Annotated[PositiveInt, Field(description="Repeats; the median counts.")] = 5
    threads: Annotated[PositiveInt, Field(description="Threads of ONNX Runtime.")] = 1
    out: Annotated[Path, Field(description="Where the figures go.")] = Path("benchmarks/results/encoding.json")

    def __call__(self) -> None:
        """Print the table and write the figures."""
        number = newest(self.model_repo, self.model)
        version = load(self.model_repo, self.model, number, "cpu", self.threads)
        if version.encoder is None:
            raise UsageError(f"--model-repo {self.model_repo}: pair views encode no entities")
        entities = self._entities(version, self.model_repo / self.model / str(number))
        print("| batch | rows a second, median (slowest, fastest repeat) |")
        print("|---|---|")
        rates = {}
        for batch in BATCHES:
            rates[batch] = [_rate(version.encoder, entities, batch) for _ in range(self.repeats)]
            print(f"| {batch} | {median(rates[batch]):,.0f} ({min(rates[batch]):,.0f}, {max(rates[batch]):,.0f}) |")
        write_json(
            self.out,
            {
                "command": f"python -m benchmarks.serving.encoding --entities {self.entities} --threads {self.threads}",
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "run": version.manifest.run,
                "rows_per_second_by_batch": {str(batch): values for batch, values in rates.items()},
            },
        )

    def _entities(self, version: Version, folder: Path) -> list[NewEntity]:
        """Random ones of both catalogues, users and items in turn as requests bring them."""
        rng = np.random.default_rng(0)
        sides = []
        for side, entity in enumerate(version.manifest.schema_.entities):
            table = Table(folder, f"{entity.name}s")
            chosen = rng.integers(0, len(table), -(-self.entities // 2)).tolist()
            sides.append([NewEntity(side, table.attributes(row)) for row in chosen])
        return [entity for pair in zip(*sides, strict=True) for entity in pair]


def _rate(encoder: Encoder, entities: list[NewEntity], batch: int) -> float:
    start = time.perf_counter()
    for first in range(0, len(entities), batch):
        encoder.rows(entities[first : first + batch])
    return len(entities) / (time.perf_counter() - start)


if __name__ == "__main__":
    sys.exit(run("encoding", "", {"run": Encoding}, sys.argv[1:], default="run"))
