"""The figures of a reproduction as Markdown and as plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def markdown(facts: Mapping[str, Any], name: str) -> str:
    """Tables: all methods, slices, heads, cost."""
    rows, plan, measure = facts["rows"], facts["plan"], facts["measure"]
    lines = [
        f"# {facts['title']}",
        "",
        f"`{facts['command']}`, {facts['date'][:10]}, {facts['machine']}, Python {facts['versions']['python']}, torch "
        f"{facts['versions']['torch']}. Plan: `training/plans/{name}.toml`, fixed before the first figure was read: "
        f"{plan['views']} views, {plan['epochs']} epochs, batch {plan['batch']}, learning rates "
        f"{', '.join(f'{r:g}' for r in plan['learning_rate'])} (linear probing: "
        f"{', '.join(f'{r:g}' for r in plan['lp_learning_rate'])}); the best after one epoch goes on, chosen on the ID "
        f"selection part (one row on item folds). {measure}; Δ is {plan['reference']} minus the row on the same "
        "ratings, with a 95 % interval over resampled items"
        + ("; below zero, the row is worse." if measure == "RMSE" else "; above zero, the row is worse."),
        "",
        f"| method | seeds | ID {measure} | OOD {measure} | mean of slices | AUROC of spread | Δ ID | Δ OOD |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [_row(r) for r in rows]
    if missing := [m for m in facts["wanted"] if m not in {r["method"] for r in rows}]:
        lines += ["", f"Not measured yet: {', '.join(missing)}."]
    if names := list(rows[0]["slices"]):
        lines += ["", f"## OOD slices, {measure}", f"| method | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        lines += [f"| {r['method']} | " + " | ".join(f"{r['slices'][n]:.3f}" for n in names) + " |" for r in rows]
    if headed := [r for r in rows if r["heads_id"]]:
        lines += ["", f"## Each head alone, early to late layer, {measure}; and the heads' mean spread"]
        lines += ["| method | ID | OOD | spread ID | spread OOD |", "|---|---|---|---|---|"]
        lines += [
            f"| {r['method']} | {_list(r['heads_id'])} | {_list(r['heads_ood'])} | {np.mean(r['spread_id']):.3f} | "
            f"{np.mean(r['spread_ood']):.3f} |"
            for r in headed
        ]
    lines += [
        "",
        "## Cost (first seed)",
        "| method | parameters fitted | parameters used | backbone MFLOPs per pair, uncached | other MFLOPs per pair "
        "| ms per pair, measured | fit, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        c = r["cost"]
        lines.append(
            f"| {r['method']} | {c['trained']:,} | {c['used']:,} | {c['sentence_flops'] / 1e6:.0f} | "
            f"{c['pair_flops'] / 1e6:.2f} | {c['pair_ms']:.1f} | {c['fit_seconds']:.0f} |"
        )
    if plan["views"] == "entity":
        lines += ["", "Entity views: the backbone's cost is that of a user and an item, paid once each, not per pair."]
    lines += ["", *(f"![{title}]({name}-{kind}.svg)" for kind, title in PLOTS.items()), ""]
    return "\n".join(lines)


PLOTS = {"scatter": "ID against OOD", "slices": "OOD slices", "heads": "each head alone"}


def _row(r: Mapping[str, Any]) -> str:
    slices = f"{np.mean(list(r['slices'].values())):.4f}" if r["slices"] else "–"
    auroc = f"{np.mean(r['auroc_spread']):.3f}" if r["auroc_spread"] else "–"
    deltas = [
        "{:+.4f} [{:+.4f}, {:+.4f}]".format(*r[key]) if (key := f"reference_minus_this_{p}") in r else "–"
        for p in ("id", "ood")
    ]
    return (
        f"| {r['method']} | {r['seeds']} | {np.mean(r['id']):.4f} | {np.mean(r['ood']):.4f} | {slices} | {auroc} | "
        f"{' | '.join(deltas)} |"
    )


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{v:.3f}" for v in values)


def plots(facts: Mapping[str, Any], docs: Path, name: str) -> None:
    """ID against OOD of all methods, bars per slice, and every head's error by layer."""
    import matplotlib as mpl  # noqa: PLC0415 - a second to import, and only reports need it

    mpl.use("svg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    plt.rcParams["svg.hashsalt"] = name
    rows, measure = facts["rows"], facts["measure"]
    figure, axes = plt.subplots(figsize=(8, 6), layout="constrained")
    for r in rows:
        x, y = np.mean(r["id"]), np.mean(r["ood"])
        axes.scatter(x, y, marker="o" if r["method"].startswith("LEVI") else "x")
        axes.annotate(r["method"], (x, y), fontsize=7, xytext=(3, 3), textcoords="offset points")
    axes.set(xlabel=f"ID {measure}", ylabel=f"OOD {measure}", title=facts["title"])
    _save(figure, docs / f"{name}-scatter.svg")
    names = list(rows[0]["slices"])
    figure, axes = plt.subplots(figsize=(10, 5), layout="constrained")
    width = 0.85 / len(rows)
    for k, r in enumerate(rows):
        axes.bar(np.arange(len(names)) + k * width, [r["slices"][n] for n in names], width, label=r["method"])
    axes.set_xticks(np.arange(len(names)) + 0.4, names, rotation=30)
    axes.set(ylabel=f"OOD {measure}")
    if measure == "RMSE":
        axes.set_ylim(bottom=0.7)
    axes.legend(fontsize=6, ncol=3)
    _save(figure, docs / f"{name}-slices.svg")
    figure, both = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for part, axes in zip(("id", "ood"), both, strict=True):
        for r in rows:
            if r[f"heads_{part}"]:
                axes.plot(r[f"heads_{part}"], marker=".", label=r["method"])
        axes.set(xlabel="layer of the head, early to late", ylabel=f"{part.upper()} {measure}")
    if any(r["heads_id"] for r in rows):
        both[1].legend(fontsize=6)
    _save(figure, docs / f"{name}-heads.svg")
    plt.close("all")


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None})
