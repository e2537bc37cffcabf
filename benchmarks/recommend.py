"""The best ten of a catalogue: how long a pass takes, that it grows linearly, and that it finds what single pairs find.

python -m benchmarks.recommend --model-repo model_repo   # writes benchmarks/results/recommend.json and a plot
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
from pydantic import Field, PositiveInt

from levi_serve.app import bring_up
from levi_serve.bundle.commands import Command, UsageError, run
from levi_serve.bundle.rows import Id, Table, write_table
from levi_serve.cli import Serve
from levi_serve.live import Service
from levi_serve.metrics import Metrics
from levi_serve.predictor import GivenPair
from levi_serve.recommend import Recommender
from levi_serve.versions import newest
from training.checkpoint import write_json
from training.conditions import conditions

K = 10
SIZES = (2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000)
NOISE = 0.01
"""Standard deviation of the noise in grown catalogues, as a share of each column's own."""


class Recommend(Command):
    """Time passes over the model's own catalogue and over larger ones, made of its rows with a little noise."""

    model_repo: Annotated[Path, Field(description="Model repository with entity views.")] = Path("model_repo")
    requests: Annotated[PositiveInt, Field(description="Recommendations over the model's own catalogue.")] = 1000
    passes: Annotated[PositiveInt, Field(description="Passes over each larger one.")] = 20
    checked: Annotated[PositiveInt, Field(description="Users whose list is compared with single pairs.")] = 20
    seed: int = 0
    out: Annotated[Path, Field(description="Where the figures go.")] = Path("benchmarks/results/recommend.json")
    plot: Annotated[Path, Field(description="Where the plot goes.")] = Path("docs/plots/recommend.svg")

    def __call__(self) -> None:
        """Print the figures, write and plot them."""
        facts = asyncio.run(self._measure())
        write_json(self.out, {"command": "python -m benchmarks.recommend", **facts})
        draw(facts["passes"], self.plot)
        show(facts)

    async def _measure(self) -> dict[str, Any]:
        settings = Serve(_cli_parse_args=False, model_repo=self.model_repo, threads=1, timeout_ms=600_000)
        service = await bring_up(settings, Metrics(), newest(settings.model_repo, settings.model))
        users, items = service.version.tables
        if service.version.manifest.views != "entity":
            raise UsageError(f"--model-repo {self.model_repo}: pair views cannot recommend")
        assert users is not None
        assert items is not None
        chosen = np.random.default_rng(self.seed).integers(0, len(users), max(self.requests, self.checked))
        ids = [users.id(int(number)) for number in chosen]
        try:
            return {
                **conditions("one thread"),
                "k": K,
                "same_as_single_pairs": await same(service, items, ids[: self.checked]),
                "engine": await self._engine(service, items, ids[: self.requests]),
                "passes": self._passes(service, users, items),
            }
        finally:
            await service.close()

    async def _engine(self, service: Service, items: Table, users: Sequence[Id]) -> dict[str, float]:
        """Whole recommendations, one after the other: look-up, thread, pass, and the answer in JSON."""
        taken = []
        for user in users:
            start = time.perf_counter()
            service.lists.answer(user, await service.engine.recommend(user, K, False))
            taken.append(time.perf_counter() - start)
        p50, p99 = np.percentile(taken, (50, 99)) * 1000
        return {"items": len(items), "requests": len(users), "p50_ms": float(p50), "p99_ms": float(p99)}

    def _passes(self, service: Service, users: Table, items: Table) -> list[dict[str, float]]:
        """Passes over catalogues of growing size. Sizes take turns, so that a busy moment does not meet one alone."""
        predictor, rng = service.version.predictor, np.random.default_rng(self.seed)
        with tempfile.TemporaryDirectory() as folder:
            tables = [items, *(grown(items, size, Path(folder) / str(size)) for size in SIZES)]
            found = [Recommender(predictor, table, None, None) for table in tables]
            taken: list[list[float]] = [[] for _ in tables]
            for turn in range(self.passes + 1):
                row = users.rows[rng.integers(0, len(users))]
                for recommender, times in zip(found, taken, strict=True):
                    times.append(timed(lambda r=recommender, u=row: r.top(u, K)))  # type: ignore[misc]
                if turn == 0:  # files are read and graphs are warm from here on
                    for times in taken:
                        times.clear()
        return [
            {
                "items": len(table),
                "passes": len(times),
                "median_ms": median(times) * 1000,
                "slowest_ms": max(times) * 1000,
            }
            for table, times in zip(tables, taken, strict=True)
        ]


async def same(service: Service, items: Table, users: Sequence[Id]) -> dict[str, float]:
    """Lists that are those of scoring every pair alone, in order, and the largest difference of a rating."""
    name = service.version.manifest.schema_.item.name
    ids = [items.id(number) for number in range(len(items))]
    equal, worst = 0, 0.0
    for user in users:
        found = [json.loads(answer) for answer in await service.engine.recommend(user, K, False)]
        alone = [json.loads((await service.engine.predict([GivenPair(user, item)]))[0]) for item in ids]
        best = sorted(alone, key=lambda answer: -answer["rating"])[:K]  # stable: draws stay in the table's order
        equal += [one[name] for one in found] == [one[name] for one in best]
        worst = max(worst, *(abs(one["rating"] - other["rating"]) for one, other in zip(found, best, strict=True)))
    return {"users": len(users), "equal": equal, "largest_difference": worst}


def grown(items: Table, size: int, folder: Path) -> Table:
    """A catalogue of `size` items: rows of the model's own with noise."""
    folder.mkdir()
    rng = np.random.default_rng(size)
    own = items.rows[: len(items)].astype(np.float32)
    rows = own[rng.integers(0, len(items), size + 1)]
    rows += rng.standard_normal(rows.shape, np.float32) * own.std(axis=0) * NOISE
    write_table(folder, "items", range(size), [{}] * size, np.ones(size, np.bool_), rows)
    return Table(folder, "items")


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def draw(passes: Sequence[dict[str, float]], path: Path) -> None:
    """Time against size, with the line that a cost per item would be."""
    import matplotlib as mpl  # noqa: PLC0415 - needs the extra `bench`, which reading the figures does not

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "levi"
    from matplotlib import pyplot as plt  # noqa: PLC0415

    sizes = np.array([one["items"] for one in passes])
    medians = np.array([one["median_ms"] for one in passes])
    slope = float((medians / sizes)[-1])
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.loglog(sizes, sizes * slope, ":", color="grey", label=f"{slope * 1000:.1f} µs per item")
    axes.loglog(sizes, medians, "o-", label="median")
    axes.loglog(sizes, [one["slowest_ms"] for one in passes], "^", label="slowest")
    axes.set(xlabel="items in the catalogue", ylabel="milliseconds for the best ten", title="GET /recommend: one pass")
    axes.grid(which="both", alpha=0.2)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def show(facts: dict[str, Any]) -> None:
    """Tables in Markdown."""
    engine, check = facts["engine"], facts["same_as_single_pairs"]
    print(f"best {facts['k']} of {engine['items']} through the engine, {engine['requests']} requests: ", end="")
    print(f"p50 {engine['p50_ms']:.1f} ms, p99 {engine['p99_ms']:.1f} ms")
    print(f"same list as scoring every pair alone: {check['equal']} of {check['users']} users; ", end="")
    print(f"largest difference of a rating {check['largest_difference']:.1g}")
    print("\n| items | median | slowest | per item |\n|---|---|---|---|")
    for one in facts["passes"]:
        per_item = one["median_ms"] / one["items"] * 1000
        print(f"| {one['items']:,} | {one['median_ms']:.1f} ms | {one['slowest_ms']:.1f} ms | {per_item:.2f} µs |")


if __name__ == "__main__":
    sys.exit(run("recommend", "", {"run": Recommend}, sys.argv[1:], default="run"))
