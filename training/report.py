"""Evaluations as tables for people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from training.evaluate import Error, Evaluation

PLAIN_WIDTH = 140
"""Columns of a table in a file or pipe, which have no width of their own."""


def show(evaluation: Evaluation) -> None:
    """Print all tables and how telling the heads' disagreement is."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=PLAIN_WIDTH)
    for one in (table(evaluation), slice_table(evaluation), head_table(evaluation)):
        if one.row_count:
            console.print(one)
    if evaluation.auroc_spread is not None:
        console.print(f"AUROC of head disagreement, ID test against OOD: {evaluation.auroc_spread:.3f}")


def table(evaluation: Evaluation) -> Table:
    """Rows are models; columns are ID test, OOD pooled, mean over slices, each with its 95 % interval."""
    out = Table(title=f"{evaluation.run}: RMSE [95 % over items] and MAE", title_justify="left")
    for column in ("model", "ID RMSE", "ID MAE", "OOD RMSE", "OOD MAE", "slices' mean RMSE"):
        out.add_column(column, justify="left" if column == "model" else "right")
    for row in evaluation.rows:
        mean = row.slice_mean
        out.add_row(row.name, *_cells(row.id), *_cells(row.ood), "–" if mean is None else f"{mean:.4f}")
    return out


def slice_table(evaluation: Evaluation) -> Table:
    """Rows are OOD slices, largest first; columns are models."""
    out = Table(title="OOD slices: RMSE [95 % over items]", title_justify="left")
    out.add_column("slice")
    out.add_column("ratings", justify="right")
    for row in evaluation.rows:
        out.add_column(row.name, justify="right")
    for name, error in sorted(evaluation.rows[0].slices.items(), key=lambda pair: -pair[1].ratings):
        out.add_row(name, str(error.ratings), *(_cells(row.slices[name])[0] for row in evaluation.rows))
    return out


def head_table(evaluation: Evaluation) -> Table:
    """Rows are heads, early to late layer."""
    out = Table(title="each head alone: RMSE", title_justify="left")
    for column in ("head", "ID", "OOD"):
        out.add_column(column, justify="right")
    for j, error in enumerate(evaluation.heads_id):
        out.add_row(str(j), f"{error:.4f}", f"{evaluation.heads_ood[j]:.4f}" if evaluation.heads_ood else "–")
    return out


def _cells(error: Error | None) -> tuple[str, str]:
    if error is None:
        return "–", "–"
    right = "" if error.accuracy is None else f", {error.accuracy:.1%} right"
    return f"{error.rmse:.4f} [{error.low:.3f}, {error.high:.3f}]", f"{error.mae:.4f}{right}"
