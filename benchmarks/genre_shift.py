"""The genre shift of MovieLens-100K: LEVI over entity and pair views and the scratch tower alone, three seeds each.

python -m benchmarks.genre_shift --data DIR     # prints a table, writes benchmarks/results/genre_shift.json
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Annotated

from pydantic import Field

from levi_serve.bundle.commands import Command, run
from training.checkpoint import write_json
from training.conditions import conditions
from training.evaluate import METRICS, Evaluation, Row, evaluate
from training.options import Options, ViewKind, default_cache
from training.run import Record, fit, open_run

SEEDS = (0, 1, 2)
VIEWS: tuple[ViewKind, ...] = ("entity", "pair", "none")


class GenreShift(Command):
    """Fit and evaluate; finished runs are not fitted again."""

    data: Annotated[Path, Field(description="Folder of MovieLens-100K.")]
    runs: Annotated[Path, Field(description="Folder of the fitted runs.")] = Path("runs/genre-shift")
    cache: Annotated[Path, Field(default_factory=default_cache, description="Folder of cached views.")]
    out: Annotated[Path, Field(description="Where the figures go.")] = Path("benchmarks/results/genre_shift.json")

    def __call__(self) -> None:
        """Print the table and write the figures."""
        rows = []
        for views in VIEWS:
            found = [self._measure(views, seed) for seed in SEEDS]
            rows.append(_summary([e.rows[0] for _, e in found]) | _extra(found))
        # The reference rows do not depend on the views.
        rows += [_summary([e.rows[i] for _, e in found]) for i in range(1, len(found[0][1].rows))]
        facts = {
            "command": "python -m benchmarks.genre_shift --data ml-100k",
            **conditions(),
            "seeds": SEEDS,
            "rows": rows,
        }
        write_json(self.out, facts)
        print(_markdown(rows))

    def _measure(self, views: ViewKind, seed: int) -> tuple[Record, Evaluation]:
        folder = self.runs / f"{views}-{seed}"
        options = Options(dataset="ml-100k", data=self.data, views=views, seed=seed, select="random")
        record = fit(options, folder, self.cache, "cpu")
        if not (folder / METRICS).exists():
            evaluate(open_run(folder, self.cache, "cpu"))
        return record, Evaluation.model_validate_json((folder / METRICS).read_bytes())


def _summary(rows: Sequence[Row]) -> dict[str, object]:
    """One model's mean over seeds, and its values."""
    shifted = [row.ood for row in rows if row.ood is not None]
    return {
        "model": rows[0].name.partition(", α")[0],
        "id_rmse": mean(row.id.rmse for row in rows),
        "id_mae": mean(row.id.mae for row in rows),
        "ood_rmse": mean(e.rmse for e in shifted),
        "ood_mae": mean(e.mae for e in shifted),
        "slice_mean_rmse": mean(row.slice_mean or 0.0 for row in rows),
        "id_by_seed": [row.id.rmse for row in rows],
        "ood_by_seed": [e.rmse for e in shifted],
        "ood_interval_first_seed": [shifted[0].low, shifted[0].high],
        "slices": {name: mean(row.slices[name].rmse for row in rows) for name in rows[0].slices},
    }


def _extra(found: Sequence[tuple[Record, Evaluation]]) -> dict[str, object]:
    telling = [e.auroc_spread for _, e in found if e.auroc_spread is not None]
    return {
        "fit_seconds": [record.seconds for record, _ in found],
        "epochs": [record.epochs for record, _ in found],
        "auroc_spread": mean(telling) if telling else None,
        "heads_id": [mean(heads) for heads in zip(*(e.heads_id for _, e in found), strict=True)],
        "heads_ood": [mean(heads) for heads in zip(*(e.heads_ood for _, e in found), strict=True)],
    }


def _markdown(rows: Sequence[dict[str, object]]) -> str:
    lines = [
        "| model | ID RMSE | OOD RMSE | mean of 12 genres | ID MAE | OOD MAE | AUROC of spread |",
        "|---|---|---|---|---|---|---|",
    ]
    columns = ("id_rmse", "ood_rmse", "slice_mean_rmse", "id_mae", "ood_mae", "auroc_spread")
    for row in rows:
        cells = ["–" if row.get(c) is None else f"{row[c]:.4f}" for c in columns]
        lines.append(f"| {row['model']} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run("genre_shift", "", {"run": GenreShift}, sys.argv[1:], default="run"))
