"""`levi-train reproduce`: every method of a plan, every seed, what is missing only; then tables, JSON and plots."""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score

from levi_serve.bundle import FloatArray, Int64Array
from levi_serve.bundle.scores import spread
from training.atomic import atomic_file
from training.checkpoint import write_json
from training.conditions import conditions
from training.cost import Cost
from training.datasets import load
from training.datasets.dataset import Dataset
from training.errors import UsageError
from training.evaluate import RESAMPLES
from training.methods import METHODS, Lab, Outcome, Plan, Ratings
from training.options import Device
from training.progress import console
from training.run import data_hash
from training.splits import Split, sampled, split
from training.tables import markdown, plots

PLANS = Path(__file__).parent / "plans"


def read_plan(name: str) -> Plan:
    """A committed plan by its name, or a TOML file.

    Raises:
        UsageError: there is none, or it names methods that do not exist.
    """
    path = Path(name) if name.endswith(".toml") else PLANS / f"{name}.toml"
    try:
        plan = Plan.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        there = ", ".join(sorted(p.stem for p in PLANS.glob("*.toml")))
        raise UsageError(f"there is no plan {name}; there are synthetic, {there}, or give a .toml file") from None
    except (tomllib.TOMLDecodeError, ValidationError, OSError) as error:
        raise UsageError(f"{path}: not a plan: {str(error).splitlines()[0]}") from None
    if unknown := {plan.reference, *plan.methods} - METHODS.keys():
        raise UsageError(f"{path}: there is no method {min(unknown)}; there are {', '.join(METHODS)}")
    return plan


@dataclass(frozen=True)
class Found:
    """One method on one seed: squared errors, and what else the tables show."""

    rows: Int64Array
    item: Int64Array
    truth: Ratings
    outcome: Outcome
    parts: Split
    bounds: tuple[float, float]
    binary: bool

    def errors(self, rows: Int64Array, rating: Ratings | None = None) -> Ratings:
        """Squared errors of clipped ratings; where the task is binary, 1 for each wrong class."""
        place = np.searchsorted(self.rows, rows, sorter=np.argsort(self.rows))
        place = np.argsort(self.rows)[place]
        said = (self.outcome.rating if rating is None else rating)[place].clip(*self.bounds)
        wrong: Ratings = ((said > 0.5) != self.truth[rows]) * 1.0 if self.binary else np.square(said - self.truth[rows])
        return wrong

    def auroc(self) -> float | None:
        """How well the heads' disagreement alone tells OOD from ID test."""
        heads, test, ood = self.outcome.heads, len(self.parts.test), len(self.parts.ood)
        if heads is None or heads.shape[1] < 2 or not ood:
            return None
        return float(roc_auc_score(np.arange(test + ood) >= test, spread(heads[len(self.parts.selection) :])))


def reproduce(name: str, data: Path | None, runs: Path, docs: Path, cache: Path, device: Device) -> None:
    """Fit what is missing and write NAME.md, NAME.json and plots into `docs`."""
    plan = read_plan(name)
    title = Path(name).stem
    dataset = load(plan.dataset, data)
    if dataset.shift is None:
        raise UsageError(f"{plan.dataset}: has no shift, so there is nothing out of distribution to compare on")
    wanted = plan.methods or tuple(METHODS)
    _claim(runs / title, plan, dataset)
    results: dict[str, list[Found]] = {}
    for seed in plan.seeds:
        parts, kept = split(dataset, seed), dataset
        if plan.sample is not None:
            kept, parts = sampled(dataset, parts, plan.sample, seed)
        lab = Lab(plan, seed, data, kept, parts, runs / title, cache, device)
        for method in wanted:
            results.setdefault(method, []).append(_found(lab, _outcome(lab, method)))
            console.print(f"seed {seed}: {method}")
            write_report(plan, title, results, docs)


def _claim(folder: Path, plan: Plan, dataset: Dataset) -> None:
    """Refuse to mix outcomes of a changed plan or of other data."""
    facts = {"plan": plan.model_dump(mode="json", exclude={"title", "methods"}), "data": data_hash(dataset)}
    path = folder / "plan.json"
    if path.exists() and json.loads(path.read_text()) != facts:
        raise UsageError(f"{folder}: holds outcomes of another plan or of other data; choose another --runs")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, facts)


def _outcome(lab: Lab, method: str) -> Outcome:
    """The stored outcome, or a new one."""
    path = lab.folder / f"{method.replace(' ', '_').replace('→', '-')}.seed-{lab.seed}.npz"
    if not path.exists():
        outcome = METHODS[method](lab)
        heads = np.zeros((0, 0), np.float32) if outcome.heads is None else outcome.heads
        cost = json.dumps(asdict(outcome.cost))
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, rating=outcome.rating, heads=heads, cost=np.array(cost))
    stored = np.load(path)
    return Outcome(
        stored["rating"], stored["heads"] if stored["heads"].size else None, Cost(**json.loads(str(stored["cost"])))
    )


def _found(lab: Lab, outcome: Outcome) -> Found:
    schema, ratings = lab.dataset.schema, lab.dataset.ratings
    return Found(
        rows=lab.rows,
        item=ratings.item.astype(np.int64),
        truth=ratings.value.astype(np.float64),
        outcome=outcome,
        parts=lab.parts,
        bounds=(schema.rating_min, schema.rating_max),
        binary=lab.dataset.binary,
    )


def paired(ours: list[Found], theirs: list[Found], part: str) -> tuple[float, float, float]:
    """Our score minus theirs on the same ratings, all seeds together: the difference, and its 95 % interval.

    Whole items are resampled, for both at once.
    """
    item = np.concatenate([f.item[getattr(f.parts, part)] for f in ours])
    both = [np.concatenate([f.errors(getattr(f.parts, part)) for f in found]) for found in (ours, theirs)]
    _, cluster = np.unique(item, return_inverse=True)
    count = np.bincount(cluster)
    totals = [np.bincount(cluster, error).astype(np.float64) for error in both]
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(RESAMPLES):
        times = np.bincount(rng.integers(len(count), size=len(count)), minlength=len(count))
        drawn.append(_difference(times, count, totals, ours[0].binary))
    low, high = np.quantile(drawn, (0.025, 0.975))
    return _difference(np.ones(len(count), np.int64), count, totals, ours[0].binary), float(low), float(high)


def _difference(times: Int64Array, count: Int64Array, totals: list[Ratings], binary: bool) -> float:
    means = [float((times @ total) / (times @ count)) for total in totals]
    return means[1] - means[0] if binary else float(np.sqrt(means[0]) - np.sqrt(means[1]))


def score(found: Found, rows: Int64Array, rating: Ratings | None = None) -> float:
    """RMSE, or accuracy where the task is binary."""
    error = float(found.errors(rows, rating).mean())
    return 1 - error if found.binary else float(np.sqrt(error))


def write_report(plan: Plan, title: str, results: dict[str, list[Found]], docs: Path) -> None:
    """All figures as JSON, the same as tables, and plots."""
    rows = []
    for method, found in results.items():
        heads = [f for f in found if f.outcome.heads is not None and f.outcome.heads.shape[1] > 1]
        row: dict[str, object] = {
            "method": method,
            "seeds": len(found),
            "id": [score(f, f.parts.test) for f in found],
            "ood": [score(f, f.parts.ood) for f in found],
            "slices": {
                name: float(np.mean([score(f, f.parts.slices[name]) for f in found if name in f.parts.slices]))
                for name in found[0].parts.slices
            },
            "auroc_spread": [f.auroc() for f in heads],
            "heads_id": _per_head(heads, "test"),
            "heads_ood": _per_head(heads, "ood"),
            "spread_id": [float(spread(_rows(f, "test")).mean()) for f in heads],
            "spread_ood": [float(spread(_rows(f, "ood")).mean()) for f in heads],
            "cost": asdict(found[0].outcome.cost),
        }
        # In a table that was cut short: the seeds that both have.
        same = [(r, f) for f in found for r in results.get(plan.reference, []) if np.array_equal(r.rows, f.rows)]
        if same and method != plan.reference:
            ours, theirs = [r for r, _ in same], [f for _, f in same]
            row |= {f"reference_minus_this_{p}": paired(ours, theirs, q) for p, q in (("id", "test"), ("ood", "ood"))}
        rows.append(row)
    facts = {
        "title": plan.title,
        "command": f"levi-train reproduce {title} --data DIR",
        **conditions(),
        "plan": plan.model_dump(mode="json"),
        "wanted": list(plan.methods or METHODS),
        "measure": "accuracy" if next(iter(results.values()))[0].binary else "RMSE",
        "rows": rows,
    }
    docs.mkdir(parents=True, exist_ok=True)
    write_json(docs / f"{title}.json", facts)
    (docs / f"{title}.md").write_text(markdown(facts, title), encoding="utf-8")
    plots(facts, docs, title)


def _rows(found: Found, part: str) -> FloatArray:
    at, test = len(found.parts.selection), len(found.parts.test)
    assert found.outcome.heads is not None
    return found.outcome.heads[at : at + test] if part == "test" else found.outcome.heads[at + test :]


def _per_head(found: list[Found], part: str) -> list[float]:
    """Each head alone, mean over seeds."""
    if not found:
        return []
    scores = [
        [
            score(f, getattr(f.parts, part), f.outcome.heads[:, j].astype(np.float64))
            for j in range(f.outcome.heads.shape[1])
        ]
        for f in found
        if f.outcome.heads is not None
    ]
    return [float(x) for x in np.mean(scores, axis=0)]
