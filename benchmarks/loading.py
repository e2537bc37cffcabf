"""Seconds and peak memory of loading generated ratings.csv files as `ml-csv`.

python -m benchmarks.loading 1000000 25000000
"""

from __future__ import annotations

import math
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from training.datasets import load

USERS, MOVIES = 162_541, 62_423  # ml-25m's
CHUNK = 1_000_000


def generate(folder: Path, rows: int) -> None:
    """`rows` distinct pairs with half stars, as GroupLens writes them, in constant memory."""
    movies = np.arange(1, MOVIES + 1)
    titles = [f'"Film {i}, The ({1930 + i % 90})",Comedy|Drama' for i in movies.tolist()]
    lines = [f"{i},{title}" for i, title in zip(movies.tolist(), titles, strict=True)]
    (folder / "movies.csv").write_text("movieId,title,genres\n" + "\n".join(lines) + "\n")
    pairs = USERS * MOVIES
    stride = pairs // rows
    while math.gcd(stride, pairs) > 1:
        stride -= 1
    rng = np.random.default_rng(0)
    with (folder / "ratings.csv").open("wb") as file:
        for start in range(0, rows, CHUNK):
            # Multiples of a number without a common divisor: no pair comes twice.
            pair = np.arange(start, min(start + CHUNK, rows)) * stride % pairs
            table = pa.table(
                {
                    "userId": pair // MOVIES + 1,
                    "movieId": pair % MOVIES + 1,
                    "rating": rng.integers(1, 11, len(pair)) / 2,
                    "timestamp": rng.integers(800_000_000, 1_600_000_000, len(pair)),
                }
            )
            options = pa.csv.WriteOptions(include_header=start == 0, quoting_style="none")
            pa.csv.write_csv(table, file, options)


def measure(folder: Path) -> tuple[float, float, float]:
    """Seconds, peak MiB of this process, and MiB of the loaded arrays."""
    began = time.perf_counter()
    ratings = load("ml-csv", folder).ratings
    seconds = time.perf_counter() - began
    arrays = sum(a.nbytes for a in (ratings.user, ratings.item, ratings.value, ratings.time))
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, arrays / 2**20


def main(counts: list[int]) -> None:
    """Print one row per number of ratings."""
    print(f"{'rows':>12} {'seconds':>8} {'peak MiB':>9} {'arrays MiB':>11}")
    for rows in counts:
        with tempfile.TemporaryDirectory() as name:
            generate(Path(name), rows)
            # A fresh process: the peak is the loader's alone.
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                seconds, peak, arrays = pool.apply(measure, (Path(name),))
        print(f"{rows:>12,} {seconds:>8.1f} {peak:>9,.0f} {arrays:>11,.0f}", flush=True)


if __name__ == "__main__":
    main([int(a) for a in sys.argv[1:]] or [1_000_000, 25_000_000])
