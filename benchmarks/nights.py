"""Five nights of feedback on MovieLens-100K: is a model that learns from feedback better served than one that does not?

python -m benchmarks.nights --data DIR     # prints a table; writes benchmarks/results/nights.json and a plot

The last 20 % of the ratings by time are held out and fed back in five nights, POSTed to a live server. After each,
`levi-train retrain` runs, and the server takes the new version by itself. Three models rate each night before it is fed
back, all on the same ratings: the frozen one, the one that is served (its answers come over HTTP), and one that is
trained on from the frozen one as long, but without feedback. A sixth night of random ratings must be refused.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
from pydantic import Field

from levi_serve.bundle import DoubleArray, Int64Array
from levi_serve.bundle.commands import Command, RunError, run
from training.checkpoint import write_json
from training.conditions import conditions
from training.datasets import load
from training.datasets.dataset import Dataset, Ratings, with_item_text
from training.datasets.snapshot import write_snapshot
from training.gates import Judged, in_service, interval
from training.night import REPORT, Report, read_report
from training.options import Options, default_cache
from training.run import fit, open_run
from training.splits import PARTS, split

NIGHTS = 5
ITEM_TEXT = ("genres",)
HELD_OUT = 0.2
_POST = 500
"""Pairs in one request for predictions."""
_AT_ONCE = 32
"""Events that are under way at a time."""


class Nights(Command):
    """Hold out, feed back, retrain, compare."""

    data: Annotated[Path, Field(description="Folder of MovieLens-100K.")]
    work: Annotated[
        Path,
        Field(description="Folder of fits and repository. A benchmark that was killed goes on there."),
    ] = Path("runs/nights")
    seed: Annotated[int, Field(description="Of split and fits.")] = 0
    epochs: Annotated[int, Field(description="Of each night's warm fit.")] = 3
    learning_rate: Annotated[float, Field(description="Of each night's warm fit.")] = 1e-3
    cache: Annotated[Path, Field(default_factory=default_cache, description="Folder of cached views.")]
    out: Annotated[Path, Field(description="Where the figures go.")] = Path("benchmarks/results/nights.json")
    plot: Annotated[Path, Field(description="Where the plot goes.")] = Path("docs/plots/nights.svg")

    def __call__(self) -> None:
        """Print the table and write everything."""
        whole = with_item_text(load("ml-100k", self.data), ITEM_TEXT)
        order = np.argsort(whole.ratings.time, kind="stable")
        first = round(len(order) * (1 - HELD_OUT))
        nights = np.array_split(order[first:], NIGHTS)
        self._base(whole, np.sort(order[:first]))
        frozen = in_service(open_run(self.work / "base", self.cache, "cpu"), whole, self.cache)
        rows: list[dict[str, Any]] = []
        squared: dict[str, list[DoubleArray]] = {name: [] for name in MODELS}
        with served(self.work) as server:
            for number, night in enumerate(nights, start=1):
                said, after = self._whole_night(number, night, whole, frozen, server)
                value = whole.ratings.value[night].astype(np.float64)
                for name in MODELS:
                    squared[name].append(np.square(np.array(said[name]) - value))
                rmse = {name: float(np.sqrt(errors[-1].mean())) for name, errors in squared.items()}
                unseen = float(1 - np.isin(whole.ratings.user[night], whole.ratings.user[order[:first]]).mean())
                rows.append({"night": number, "ratings": len(night), "rmse": rmse, "unseen_users": unseen, **after})
                print(rows[-1], flush=True)
            poisoned = self._once("poisoned", lambda: self._poisoned(server, whole))
        users = whole.ratings.user[np.concatenate(nights[1:])].astype(np.int64)
        pooled = {name: np.concatenate(errors[1:]) for name, errors in squared.items()}
        pairs = {name: interval(users, pooled["with feedback"], pooled[name]) for name in MODELS if name != MODELS[1]}
        facts = {
            "command": f"python -m benchmarks.nights --data ml-100k --seed {self.seed} --epochs {self.epochs} "
            f"--learning-rate {self.learning_rate:g}",
            **conditions(),
            "nights": rows,
            "pooled_rmse": {name: float(np.sqrt(errors.mean())) for name, errors in pooled.items()},
            "with_feedback_minus": pairs,
            "poisoned": poisoned,
        }
        write_json(self.out, facts)
        draw(facts, self.plot)
        print(markdown(facts))

    def _whole_night(
        self, number: int, night: Int64Array, whole: Dataset, frozen: Judged, server: Server
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the models say of a night before it is fed back, and what became of it then."""
        said = self._once(f"said-{number}", lambda: self._said(number, night, whole, frozen, server))
        return said, self._once(f"after-{number}", lambda: self._fed(number, night, whole, server))

    def _once(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What was measured, now or before the benchmark was killed."""
        path = self.work / f"{name}.json"
        if not path.exists():
            write_json(path, measure())
        found: dict[str, Any] = json.loads(path.read_bytes())
        return found

    def _said(
        self, number: int, night: Int64Array, whole: Dataset, frozen: Judged, server: Server
    ) -> dict[str, list[float]]:
        """The three models' ratings of a night that none of them has seen."""
        without = in_service(self._without(), whole, self.cache) if number > 1 else frozen
        said = frozen.rating(night), server.rate(whole, night), without.rating(night)
        return {name: rating.tolist() for name, rating in zip(MODELS, said, strict=True)}

    def _fed(self, number: int, night: Int64Array, whole: Dataset, server: Server) -> dict[str, Any]:
        """Feed it back, retrain, and wait for the server to take what came of it."""
        asyncio.run(server.feed(whole, night, whole.ratings.value[night].astype(np.float64), f"night-{number}"))
        began = time.monotonic()
        code, told = self._retrain()
        seconds = round(time.monotonic() - began, 1)
        made = self._last_report().version
        if code == 0 and made is not None:
            server.wait_for(made)
        return {"version_afterwards": server.version, "retrained": told, "retrain_seconds": seconds}

    def _last_report(self) -> Report:
        return read_report(sorted((self.work / "state/nights").glob(f"*/{REPORT}"))[-1].parent)

    def _base(self, whole: Dataset, rows: Int64Array) -> None:
        """Fit on what comes before the nights, and export it as version 1."""
        r, data, kept = whole.ratings, self.work / "data", self.work / "base-repository"
        base = replace(
            load("ml-100k", self.data), ratings=Ratings(r.user[rows], r.item[rows], r.value[rows], r.time[rows])
        )
        parts, part = split(base, self.seed), np.empty(len(rows), np.int8)
        for k, name in enumerate(PARTS):
            part[getattr(parts, name)] = k
        data.mkdir(parents=True, exist_ok=True)
        write_snapshot(data, replace(base, part=part), np.zeros(len(rows), np.int32))
        fit(self._options(), self.work / "base", self.cache, "cpu")
        if not (kept / "levi/1").exists():
            self._train("export", self.work / "base", kept)
        if not (self.work / "repository").exists():
            shutil.copytree(kept, self.work / "repository")

    def _options(self, **changes: Any) -> Options:
        return Options(
            dataset="snapshot", data=self.work / "data", item_text=ITEM_TEXT, select="random", seed=self.seed, **changes
        )

    def _without(self) -> Any:
        """The model that was trained on as the nights are, without feedback: the same one every night."""
        folder, told = self.work / "without", {"epochs": self.epochs, "learning_rate": (self.learning_rate,)}
        fit(self._options(start=self.work / "base", **told), folder, self.cache, "cpu")
        return open_run(folder, self.cache, "cpu")

    def _retrain(self) -> tuple[int, str]:
        """The nightly job as an operator runs it; its exit code and what it said last."""
        return self._train(
            "retrain",
            self.work / "base",
            self.work / "repository",
            *("--feedback", self.work / "feedback", "--state", self.work / "state"),
            *("--epochs", self.epochs, "--learning-rate", self.learning_rate),
            check=False,
        )

    def _train(self, *arguments: object, check: bool = True) -> tuple[int, str]:
        command = [sys.executable, "-m", "training.cli", *map(str, arguments), "--cache", str(self.cache)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if check and ended.returncode:
            raise RunError(ended.stderr)
        return ended.returncode, (ended.stdout or ended.stderr).strip().splitlines()[-1]

    def _poisoned(self, server: Server, whole: Dataset) -> dict[str, Any]:
        """Random ratings of random pairs."""
        rng = np.random.default_rng(self.seed)
        rows = rng.integers(len(whole.ratings), size=round(len(whole.ratings) * HELD_OUT / NIGHTS))
        r = whole.ratings
        shuffled = Ratings(r.user, rng.permutation(r.item), r.value, r.time)
        value = rng.integers(1, 6, size=len(rows)).astype(np.float64)
        version = server.version
        asyncio.run(server.feed(replace(whole, ratings=shuffled), rows, value, "poison"))
        code, told = self._retrain()
        return {
            "events": len(rows),
            "exit_code": code,
            "said": told,
            "gates_failed": [gate.name for gate in self._last_report().verdict.gates if not gate.passed],
            "version_served": server.version,
            "version_before": version,
        }


MODELS = ("frozen", "with feedback", "without feedback")


class Server:
    """A running `levi-serve`."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=60)
        self._url = url

    @property
    def version(self) -> int:
        """The version that answers."""
        return int(self.http.get("/predict?user=138&movie=357").json()["version"])

    def wait_for(self, version: int) -> None:
        """Until the server has taken the version by itself."""
        end = time.monotonic() + 120
        while self.version != version:
            if time.monotonic() > end:
                raise RunError(f"the server does not serve version {version}")
            time.sleep(0.2)

    def rate(self, dataset: Dataset, rows: Int64Array) -> DoubleArray:
        """What it answers for these ratings' pairs."""
        pairs = self._pairs(dataset, rows)
        out: list[float] = []
        for at in range(0, len(pairs), _POST):
            body = {"pairs": [{"user": u, "movie": m} for u, m in pairs[at : at + _POST]]}
            out += [one["rating"] for one in self.http.post("/predict", json=body).raise_for_status().json()]
        return np.array(out)

    async def feed(self, dataset: Dataset, rows: Int64Array, value: DoubleArray, name: str) -> None:
        """POST these ratings, every one acknowledged."""
        events = [
            {"id": f"{name}-{k}", "user": u, "movie": m, "rating": v, "time": t}
            for k, ((u, m), v, t) in enumerate(
                zip(self._pairs(dataset, rows), value.tolist(), dataset.ratings.time[rows].tolist(), strict=True)
            )
        ]
        slots = asyncio.Semaphore(_AT_ONCE)
        async with httpx.AsyncClient(base_url=self._url, timeout=60) as client:

            async def post(event: dict[str, Any]) -> None:
                async with slots:
                    (await client.post("/feedback", json=event)).raise_for_status()

            await asyncio.gather(*map(post, events))

    @staticmethod
    def _pairs(dataset: Dataset, rows: Int64Array) -> list[tuple[int, int]]:
        users, items = dataset.users["id"].to_pylist(), dataset.items["id"].to_pylist()
        ratings = dataset.ratings
        return [(users[u], items[i]) for u, i in zip(ratings.user[rows], ratings.item[rows], strict=True)]


@contextmanager
def served(work: Path) -> Iterator[Server]:
    """A server over the repository that takes feedback, on a free port."""
    command = [sys.executable, "-m", "levi_serve.cli", "--model-repo", str(work / "repository"), "--port", "0"]
    command += ["--feedback", str(work / "feedback"), "--watch-s", "0.2", "--timeout-ms", "60000"]
    with (work / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 120
        while not ((text := (work / "server.log").read_text()) and "ready: " in text):
            if process.poll() is not None or time.monotonic() > end:
                raise RunError(f"the server does not start: {text}")
            time.sleep(0.1)
        (url,) = re.findall(r"listening on (http://\S+)", text)
        yield Server(url)
    finally:
        process.terminate()
        process.wait()


def markdown(facts: dict[str, Any]) -> str:
    """The table."""
    lines = [f"| rated | {' | '.join(MODELS)} | afterwards |", "|---" * (len(MODELS) + 2) + "|"]
    for row in facts["nights"]:
        told = " | ".join(f"{row['rmse'][name]:.4f}" for name in MODELS)
        lines.append(f"| night {row['night']} | {told} | version {row['version_afterwards']} |")
    lines.append("| nights 2–5 | " + " | ".join(f"{facts['pooled_rmse'][name]:.4f}" for name in MODELS) + " | |")
    for name, (difference, low, high) in facts["with_feedback_minus"].items():
        lines.append(f"\nwith feedback − {name}: {difference:+.4f} [{low:+.4f}, {high:+.4f}]")
    lines.append(f"\npoisoned night: {json.dumps(facts['poisoned'], ensure_ascii=False)}")
    return "\n".join(lines)


def draw(facts: dict[str, Any], path: Path) -> None:
    """RMSE by night, and the pooled differences."""
    import matplotlib as mpl  # noqa: PLC0415 - an extra

    mpl.use("svg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    plt.rcParams["svg.hashsalt"] = "nights"
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, marker in zip(MODELS, "so^", strict=True):
        nights = [row["night"] for row in facts["nights"]]
        left.plot(nights, [row["rmse"][name] for row in facts["nights"]], f"{marker}-", label=name)
    left.set_xticks(nights)
    left.set(xlabel="night whose ratings are predicted, before they are fed back", ylabel="RMSE")
    left.legend()
    for y, (name, (difference, low, high)) in enumerate(facts["with_feedback_minus"].items()):
        right.plot([low, high], [y, y], color="tab:blue")
        right.plot(difference, y, "o", color="tab:blue")
        right.annotate(name, (difference, y), xytext=(0, 8), textcoords="offset points", ha="center")
    right.axvline(0, color="gray")
    right.set_ylim(-0.5, 1.5)
    right.set_yticks([])
    right.set(xlabel="RMSE with feedback minus RMSE of the other, nights 2–5", title="95 %, users resampled")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(run("nights", "", {"nights": Nights}, sys.argv[1:], default="nights"))
