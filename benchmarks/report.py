"""The one table of the genre shift: the paper's methods, the strongest recommenders, and our best model.

python -m benchmarks.report     # from committed figures into docs/; a test holds the two together

It measures nothing. In docs/results.md, rows come from docs/results/ml-100k-frozen.json (`levi-train reproduce
ml-100k-frozen`), benchmarks/results/genre_shift.json and benchmarks/results/best.json; in docs/best.md, the table of
folds comes from benchmarks/results/best_choice.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from levi_serve.bundle.commands import Command, run

BEGIN, END = "<!-- made by python -m benchmarks.report -->", "<!-- end -->"
PLOT = "genre-shift-all.svg"
SEEDS = 3
"""Of every row that does not say otherwise."""
PARTS = ("random", *(f"items {k}" for k in range(5)), "Action", "Comedy", "Drama", "Romance", "Thriller")
"""Folds of the training part of seed 0; a genre is the one that is left out."""
HEADER = (
    "| model | ID RMSE | OOD RMSE | AUROC of disagreement | reference − row, ID | reference − row, OOD |\n"
    "|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Row:
    """One model, mean over three seeds; differences with their intervals where they were measured."""

    name: str
    id: float
    ood: float
    auroc: float | None = None
    deltas: Sequence[Sequence[float]] = ()

    def markdown(self, *, bold: bool = False) -> str:
        """The row of the table."""
        cells = [f"{self.id:.4f}", f"{self.ood:.4f}"]
        name, *cells = [f"**{cell}**" if bold else cell for cell in (self.name, *cells)]
        auroc = "–" if self.auroc is None else f"{self.auroc:.3f}"
        deltas = ["{:+.4f} [{:+.4f}, {:+.4f}]".format(*delta) for delta in self.deltas] or ["–", "–"]
        return f"| {' | '.join([name, *cells, auroc, *deltas])} |"


class Report(Command):
    """Write the tables and the plot."""

    docs: Annotated[Path, Field(description="Folder of the pages that hold the tables.")] = Path("docs")

    def __call__(self) -> None:
        """Write all."""
        groups = read()
        for page, made in (("results.md", table(groups)), ("best.md", choice_table())):
            text = (self.docs / page).read_text(encoding="utf-8")
            before, after = text.partition(BEGIN)[0], text.partition(END)[2]
            (self.docs / page).write_text(f"{before}{BEGIN}\n{made}\n{END}{after}", encoding="utf-8")
        plot(groups, self.docs / "results" / PLOT)


def read() -> dict[str, list[Row]]:
    """The groups of the table."""
    frozen = json.loads(Path("docs/results/ml-100k-frozen.json").read_text())
    recipe = json.loads(Path("benchmarks/results/genre_shift.json").read_text())
    best = json.loads(Path("benchmarks/results/best.json").read_text())
    levi = best["rows"][0]
    peers = [_peer(row, best["paired"][f"LEVI best - {row['model']}"]) for row in best["rows"][1:]]
    return {
        f"The paper's methods over a frozen backbone, plan fixed before; reference: {frozen['plan']['reference']}": [
            _method(row) for row in frozen["rows"]
        ],
        "LEVI with our recipe (size `ref`), which was searched with looks at OOD": [
            Row(r["model"], r["id_rmse"], r["ood_rmse"], r.get("auroc_spread")) for r in recipe["rows"][:3]
        ],
        "Our best model and what a user would pick instead; reference: our best model": [
            Row("LEVI, size best", levi["id_rmse"], levi["ood_rmse"], float(np.mean(best["auroc_spread"]))),
            *sorted(peers, key=lambda row: row.ood),
        ],
    }


def _method(row: dict[str, Any]) -> Row:
    keys = [f"reference_minus_this_{part}" for part in ("id", "ood")]
    deltas = [row[key] for key in keys if key in row]
    auroc = float(np.mean(row["auroc_spread"])) if row["auroc_spread"] else None
    name = row["method"] if row["seeds"] == SEEDS else f"{row['method']} (seeds: {row['seeds']})"
    return Row(name, float(np.mean(row["id"])), float(np.mean(row["ood"])), auroc, deltas)


def _peer(row: dict[str, Any], paired: dict[str, dict[str, float]]) -> Row:
    deltas = [[paired[part][key] for key in ("difference", "low", "high")] for part in ("id", "ood")]
    return Row(row["model"], row["id_rmse"], row["ood_rmse"], None, deltas)


def table(groups: dict[str, list[Row]]) -> str:
    """One table, a line above each group."""
    lines = [HEADER]
    for name, rows in groups.items():
        lines.append(f"| *{name}* | | | | | |")
        lines += [row.markdown(bold=row.name == "LEVI, size best") for row in rows]
    return "\n".join(lines)


def choice_table() -> str:
    """What `benchmarks.best choose` found: a row per candidate and weights, a column per fold, the lowest bold."""
    found: dict[str, dict[str, float]] = {}
    for row in json.loads(Path("benchmarks/results/best_choice.json").read_text())["rows"]:
        for name, rmse in (row.get("by_weights") or {"": row.get("rmse")}).items():
            found.setdefault(f"{row['name']}, {name} weights" if name else row["name"], {})[row["part"]] = rmse
    items = [part for part in PARTS if part.startswith("items")]
    lines = [f"| model | {' | '.join(PARTS)} | mean of items |", "|---" * (len(PARTS) + 2) + "|"]
    lowest = {part: min(rmse[part] for rmse in found.values() if part in rmse) for part in PARTS}
    for name, rmse in sorted(found.items(), key=lambda pair: (-len(pair[1]), pair[0])):
        cells = [f"{rmse[part]:.4f}" if part in rmse else "–" for part in PARTS]
        cells = [f"**{c}**" if rmse.get(part) == lowest[part] else c for c, part in zip(cells, PARTS, strict=True)]
        mean = f"{np.mean([rmse[part] for part in items]):.4f}" if set(items) <= rmse.keys() else "–"
        lines.append(f"| {name} | {' | '.join(cells)} | {mean} |")
    return "\n".join(lines)


def plot(groups: dict[str, list[Row]], path: Path) -> None:
    """ID against OOD of every row."""
    import matplotlib as mpl  # noqa: PLC0415 - a second to import

    mpl.use("svg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    plt.rcParams["svg.hashsalt"] = path.name
    figure, axes = plt.subplots(figsize=(9, 7), layout="constrained")
    for (name, rows), marker in zip(groups.items(), "xos", strict=True):
        axes.scatter([r.id for r in rows], [r.ood for r in rows], marker=marker, label=name.partition(",")[0])
        for r in rows:
            axes.annotate(r.name, (r.id, r.ood), fontsize=7, xytext=(3, 3), textcoords="offset points")
    axes.set(xlabel="ID RMSE", ylabel="OOD RMSE", title="Genre shift of MovieLens-100K, mean of three seeds")
    axes.legend(fontsize=7)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(run("report", "", {"run": Report}, sys.argv[1:], default="run"))
