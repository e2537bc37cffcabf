"""A night's report for people: report.md with two plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.gates import Slice
from training.night import Report

_KINDS = {"id": "in distribution", "newest": "new", "ood": "OOD", "seen": "shifted, trained on"}


def write_report(folder: Path, report: Report, earlier: Sequence[Report]) -> None:
    """Write report.md, slices.svg and nights.svg into the night's folder."""
    (folder / "report.md").write_text(markdown(report), encoding="utf-8")
    _plots(folder, report, earlier)


def markdown(report: Report) -> str:
    """The report as Markdown."""
    plan, counts, taken = report.plan, report.counts, report.plan.taken
    outcome = f"promoted: version {report.version}" if report.version else f"refused: version {plan.version} goes on"
    users, items = counts.new_entities
    lines = [
        f"# Night {report.night}: {outcome}",
        "",
        f"{report.finished}. Compared with version {plan.version} (`{plan.in_service}`); fitted in "
        f"{report.fit_seconds:.1f} s on base data and the events of nights {', '.join(map(str, plan.nights))}.",
        "",
    ]
    if report.version is None:
        lines += [
            f"**Why not:** {report.verdict.reasons}. This night's events lie in `refused/{report.night:04}.events` and "
            "are left out from now on. To give them another try, move that file into the feedback folder.",
            "",
        ]
    lines += ["| gate | passed | |", "|---|---|---|"]
    lines += [f"| {gate.name} | {'yes' if gate.passed else '**no**'} | {gate.says} |" for gate in report.verdict.gates]
    lines += [
        "",
        "| held-out ratings | kind | number | RMSE in service | RMSE new | difference | 95 % interval | margin |",
        "|---|---|---|---|---|---|---|---|",
        *(_row(one) for one in report.verdict.slices),
        "",
        "![differences](slices.svg)",
        "",
        "![nights](nights.svg)",
        "",
        "| events | number |",
        "|---|---|",
        f"| new this night | {taken.events:,} |",
        f"| sent again, ignored | {taken.repeated:,} |",
        f"| damaged lines | {taken.damaged:,} |",
        f"| merged, all nights | {counts.merged:,} |",
        f"| of pairs that had a rating | {counts.rated_again:,} |",
        f"| new users, new items | {users:,}, {items:,} |",
        f"| of ids without a row or attributes, waiting | {counts.undescribed:,} |",
        f"| rating out of range | {counts.out_of_range:,} |",
        f"| dated in the future | {counts.future:,} |",
        "",
    ]
    return "\n".join(lines)


def _row(one: Slice) -> str:
    rmse = f"{one.old:.4f} | {one.new:.4f} | {one.difference:+.4f} | [{one.low:+.4f}, {one.high:+.4f}]"
    return f"| {one.name} | {_KINDS[one.kind]} | {one.ratings:,} | {rmse} | {one.margin:g} |"


def _plots(folder: Path, report: Report, earlier: Sequence[Report]) -> None:
    import matplotlib as mpl  # noqa: PLC0415 - a second to import, and only reports need it

    mpl.use("svg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    slices = report.verdict.slices[::-1]
    figure, axes = plt.subplots(figsize=(8, 1 + 0.35 * len(slices)), layout="constrained")
    for y, one in enumerate(slices):
        color = "tab:green" if one.passes else "tab:red"
        axes.plot([one.low, one.high], [y, y], color=color)
        axes.plot(one.difference, y, "o", color=color)
        axes.plot(one.margin, y, "|", color="black", markersize=12)
    axes.axvline(0, color="gray", linewidth=0.8)
    axes.set_yticks(range(len(slices)), [one.name for one in slices])
    axes.set(xlabel="RMSE of the new model minus RMSE in service; |: margin", title=f"Night {report.night}")
    _save(plt, figure, folder / "slices.svg")
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    nights = [*(one for one in earlier if one.night != report.night), report]
    for name in ("ID test", "newest", "OOD"):
        found = {r.night: one for r in nights for one in r.verdict.slices if one.name == name}
        (line,) = axes.plot(list(found), [one.new for one in found.values()], "o-", label=f"{name}, new")
        old = [one.old for one in found.values()]
        axes.plot(list(found), old, "o--", color=line.get_color(), alpha=0.5, label=f"{name}, in service")
    for night in nights:
        if night.version is None:
            axes.axvline(night.night, color="tab:red", linewidth=0.8, linestyle=":")
    axes.set_xticks([night.night for night in nights])
    axes.set(xlabel="night (dotted: refused)", ylabel="RMSE")
    axes.legend(fontsize=7)
    _save(plt, figure, folder / "nights.svg")


def _save(plt: Any, figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
