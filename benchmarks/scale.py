"""Memory and pace of a fit on many ratings: streamed from Parquet, and held in memory.

python -m benchmarks.scale      # writes benchmarks/results/scale.json; some minutes on one core

Ratings are generated: 20,000 users and 5,000 movies, no pair twice, in a random order of users. The data folder is what
a user would have: entity tables, 60,000 ratings of which the held-out parts are drawn, and a Parquet file with the
others. Each fit is the first steps of an epoch of LEVI over entity views, size ref, in a process of its own; the
streamed one has read the whole file once before. A first fit computes the views; those that count find them cached.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from levi_serve.bundle import Int64Array
from levi_serve.bundle.commands import Command, run
from training.backbones import load_backbone
from training.checkpoint import write_json
from training.conditions import conditions
from training.datasets import load
from training.features import prepare
from training.fit import Fitter, Fold, Views
from training.model import SIZES
from training.options import Options, Recipe, default_cache
from training.run import accelerator
from training.splits import split
from training.stream import BUFFER, Stream

USERS, ITEMS, OWN, GROUP = 20_000, 5_000, 60_000, 250_000
"""Users, movies, ratings in the dataset itself, ratings of a row group."""
BATCH = 2_000
TABLES = """
name = "generated"
[user]
file = "users.parquet"
attributes = [{name = "occupation", kind = "category", embed = true}]
[item]
name = "movie"
file = "movies.parquet"
attributes = [{name = "title", kind = "text"}]
[ratings]
file = "own.parquet"
user = "user"
item = "movie"
rating = "rating"
min = 1
max = 5
"""


Files = dict[Path, tuple[list[pa.Table], pq.ParquetWriter]]
"""Rows that wait, and the file that they go to."""


class Scale(Command):
    """Generate the ratings and fit them both ways, at each size; what is there is not made again."""

    sizes: Annotated[tuple[PositiveInt, ...], Field(description="Ratings.")] = (2_500_000, 25_000_000)
    ways: Annotated[tuple[Literal["stream", "memory"], ...], Field(description="Ways to hold them.")] = (
        "stream",
        "memory",
    )
    steps: Annotated[PositiveInt, Field(description="Steps of the epoch that are made.")] = 600
    runs: Annotated[Path, Field(description="Folder of the ratings.")] = Path("runs/scale")
    cache: Annotated[Path, Field(default_factory=default_cache, description="Folder of cached views.")]
    out: Annotated[Path, Field(description="Where the figures go.")] = Path("benchmarks/results/scale.json")

    def __call__(self) -> None:
        """Print a row per fit and write the figures."""
        rows = json.loads(self.out.read_text())["rows"] if self.out.exists() else []
        for size, way in product(self.sizes, self.ways):
            if not any((row["ratings"], row["way"]) == (size, way) for row in rows):
                rows.append({"ratings": size, "way": way, **self._measure(size, way)})
                print(rows[-1], flush=True)
                self._write(rows)

    def _measure(self, size: int, way: str) -> dict[str, Any]:
        folder = self.runs / f"{way}-{size}"
        if not (folder / "dataset.toml").exists():
            generate(folder, size, streamed=way == "stream")
        command = [sys.executable, "-m", "benchmarks.scale", "one", f"--folder={folder}", f"--cache={self.cache}"]
        if not (self.runs / "cached").exists():
            subprocess.run([*command, "--steps=1"], check=True, capture_output=True)
            (self.runs / "cached").touch()
        done = subprocess.run([*command, f"--steps={self.steps}"], check=True, capture_output=True, text=True)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    def _write(self, rows: list[dict[str, Any]]) -> None:
        facts = {
            "command": "python -m benchmarks.scale",
            **conditions(),
            "users": USERS,
            "items": ITEMS,
            "batch": BATCH,
            "steps": self.steps,
            "row_group": GROUP,
            "buffer": BUFFER,
            "rows": rows,
        }
        write_json(self.out, facts)


class One(Command):
    """One fit in this process: its pace, and the most memory that the process had."""

    folder: Annotated[Path, Field(description="Folder of generated ratings.")]
    cache: Annotated[Path, Field(description="Folder of cached views.")]
    steps: Annotated[PositiveInt, Field(description="Steps of the epoch that are made.")]

    def __call__(self) -> None:
        """Print one line of JSON."""
        began = time.monotonic()
        dataset = load("tables", self.folder)
        parts, device = split(dataset, 0), torch.device("cpu")
        stream = Stream.open(dataset, parts.train) if dataset.more else None
        fitted = parts.train if stream is None else stream
        opened = time.monotonic() - began
        prepared = prepare(
            dataset, fitted, load_backbone(Options().backbone), "entity", SIZES["ref"], self.cache, device
        )
        recipe = Recipe(epochs=1, batch=BATCH, select="random")
        bounds = (dataset.schema.rating_min, dataset.schema.rating_max)
        with TemporaryDirectory() as folder:
            fitter = Shortened(Views(prepared), recipe, bounds, accelerator("cpu"), Path(folder), self.steps)
            began = time.monotonic()
            train = torch.from_numpy(parts.train) if stream is None else stream
            fitter._stage("pace", Fold(train, None), 6e-3, None)
        seconds = time.monotonic() - began
        found = {
            "fitted": len(fitted),
            "open_seconds": round(opened, 1),
            "steps": self.steps,
            "ratings_per_second": round(self.steps * BATCH / seconds),
            "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        }
        print(json.dumps(found))


@dataclass(frozen=True)
class Shortened(Fitter):
    """The loop, with fewer steps."""

    steps: int = 1

    def _batches(self, *args: Any) -> Iterator[tuple[int, Tensor]]:
        yield from islice(super()._batches(*args), self.steps)


def generate(folder: Path, size: int, *, streamed: bool) -> None:
    """Write entity tables and `size` ratings, all but OWN of them in a file of their own if they are to be streamed."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    jobs = [f"occupation {n % 20}" for n in range(USERS)]
    pq.write_table(pa.table({"id": np.arange(USERS), "occupation": jobs}), folder / "users.parquet")
    titles = [f"movie number {n}" for n in range(ITEMS)]
    pq.write_table(pa.table({"id": np.arange(ITEMS), "title": titles}), folder / "movies.parquet")
    of_user, of_item = rng.normal(0, 0.5, USERS), rng.normal(0, 0.5, ITEMS)
    first, step = rng.integers(ITEMS, size=USERS), 2 * rng.integers(ITEMS // 2, size=USERS) + 1
    step += 2 * (step % 5 == 0)  # shares no factor with ITEMS: a user's movies are distinct
    written, files = 0, Files()
    for turn in range(-(-size // USERS)):
        user = rng.permutation(USERS)[: size - written]
        item = (first[user] + turn * step[user]) % ITEMS
        value = np.clip(np.rint(3.4 + of_user[user] + of_item[item] + rng.normal(0, 0.8, len(user))), 1, 5)
        name = "more.parquet" if streamed and written >= OWN else "own.parquet"
        _append(files, folder / name, user, item, value.astype(np.int64))
        written += len(user)
    for rows, writer in files.values():
        _flush(rows, writer, 1)
        writer.close()
    more = 'more = "more.parquet"\n' if streamed else ""
    (folder / "dataset.toml").write_text(TABLES + more, encoding="utf-8")


def _append(files: Files, path: Path, user: Int64Array, item: Int64Array, value: Int64Array) -> None:
    table = pa.table({"user": user, "movie": item, "rating": value})
    if path not in files:
        files[path] = [], pq.ParquetWriter(path, table.schema)
    rows, writer = files[path]
    rows.append(table)
    _flush(rows, writer, GROUP)


def _flush(rows: list[pa.Table], writer: pq.ParquetWriter, least: int) -> None:
    """Write a row group if there are so many rows."""
    if sum(map(len, rows)) >= least:
        writer.write_table(pa.concat_tables(rows).combine_chunks(), row_group_size=1 << 30)
        rows.clear()


if __name__ == "__main__":
    sys.exit(run("scale", "", {"run": Scale, "one": One}, sys.argv[1:], default="run"))
