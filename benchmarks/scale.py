"""Memory and pace of a fit on many ratings: streamed from Parquet, and held in memory.

python -m benchmarks.scale      # writes benchmarks/results/scale.json; about half an hour on one core

Ratings are generated: 20,000 users and 5,000 movies, no pair twice, in a random order of users. The data folder is what
a user would have: entity tables, 60,000 ratings of which the held-out parts are drawn, and a Parquet file with the
others. Each fit is `levi-train fit` of LEVI over entity views, one epoch, in a process of its own.
"""

from __future__ import annotations

import json
import platform
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, PositiveInt

from levi_serve.bundle import Int64Array
from levi_serve.bundle.commands import Command, run
from training.checkpoint import write_json
from training.options import Options, default_cache
from training.run import fit, open_run, versions
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
    """Generate the ratings and fit them both ways, at each size; sizes that are there are not generated again."""

    sizes: Annotated[tuple[PositiveInt, ...], Field(description="Ratings.")] = (2_500_000, 25_000_000)
    ways: Annotated[tuple[Literal["stream", "memory"], ...], Field(description="Ways to hold them.")] = (
        "stream",
        "memory",
    )
    runs: Annotated[Path, Field(description="Folder of the ratings and fits.")] = Path("runs/scale")
    cache: Annotated[Path, Field(default_factory=default_cache, description="Folder of cached views.")]
    out: Annotated[Path, Field(description="Where the figures go.")] = Path("benchmarks/results/scale.json")

    def __call__(self) -> None:
        """Print a row per fit and write the figures."""
        rows = []
        for size in self.sizes:
            for way in self.ways:
                folder = self.runs / f"{way}-{size}"
                if not (folder / "dataset.toml").exists():
                    generate(folder, size, streamed=way == "stream")
                done = subprocess.run(
                    [sys.executable, "-m", "benchmarks.scale", "one", "--folder", folder, "--cache", self.cache],
                    check=True,
                    capture_output=True,
                    text=True,
                )
                rows.append({"ratings": size, "way": way, **json.loads(done.stdout.splitlines()[-1])})
                print(rows[-1], flush=True)
        facts = {
            "command": "python -m benchmarks.scale",
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": f"{platform.system()} {platform.machine()}, CPU only",
            "versions": versions(),
            "users": USERS,
            "items": ITEMS,
            "batch": BATCH,
            "row_group": GROUP,
            "buffer": BUFFER,
            "rows": rows,
        }
        write_json(self.out, facts)


class One(Command):
    """One fit in this process: its time, its validation RMSE and the most memory that the process had."""

    folder: Annotated[Path, Field(description="Folder of generated ratings.")]
    cache: Annotated[Path, Field(description="Folder of cached views.")]

    def __call__(self) -> None:
        """Print one line of JSON."""
        options = Options(dataset="tables", data=self.folder, epochs=1, batch=BATCH, select="random")
        out = self.folder / f"run-{time.time_ns()}"
        began = time.monotonic()
        record = fit(options, out, self.cache, "cpu")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        whole = time.monotonic() - began
        opened = open_run(out, self.cache, "cpu")
        fitted = len(opened.train)
        found = {
            "fitted": fitted,
            "streamed": isinstance(opened.train, Stream),
            "rmse": record.curve[0],
            "fit_seconds": record.seconds,
            "ratings_per_second": fitted / record.seconds,
            "whole_seconds": whole,
            "peak_mib": peak,
        }
        print(json.dumps(found))


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
