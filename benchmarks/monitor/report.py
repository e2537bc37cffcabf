"""Tables and the plot of `benchmarks/results/monitor.json`.

python -m benchmarks.monitor.report > tables.md    # and docs/plots/monitor.svg
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS, PLOT = Path("benchmarks/results/monitor.json"), Path("docs/plots/monitor.svg")
_SHARES = (0.01, 0.05, 0.1, 0.3, 1.0)


def tables(results: Mapping[str, Any]) -> str:
    """All tables, in Markdown."""
    makers = {
        "auroc": _auroc,
        "delays": _delays,
        "peers": _peers,
        "replay": _replay,
        "recipes": _recipes,
        "errors": _errors,
        "cost": _cost,
        "tried": _tried,
    }
    found = []
    for stage, make in makers.items():
        if stage in results:
            head = f"`{results[stage]['command']}`, {results[stage]['date'][:10]}"
            found.append(f"{head}\n\n{make(results[stage]['figures'])}")
    return "\n\n".join(found)


def plot(results: Mapping[str, Any], path: Path) -> None:
    """Median delay by share of OOD requests."""
    import matplotlib as mpl  # noqa: PLC0415 - half a second, and only for plots

    mpl.use("svg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    figures = results["delays"]["figures"]
    figure, axes = plt.subplots(figsize=(7, 4))
    for text, style in (("titles", "-"), ("genres", "--"), ("paper", ":")):
        for case, shares, colour in (
            ("OOD genres", _SHARES, "#2c5f8a"),
            ("without id novelty, OOD genres", (0.1, 0.3, 1.0), "#c0392b"),
        ):
            told = [(s, figures.get(f"{text} · 30 days · {case}, {s:.0%}")) for s in shares]
            points = [(s, one["median"]) for s, one in told if one and one["share_alarmed"] > 0.5]
            label = f"{text}: {'ids as they are' if case == 'OOD genres' else 'ids hidden'}"
            axes.plot(*zip(*points, strict=True), style, marker="o", color=colour, label=label) if points else None
    axes.set(xscale="log", yscale="log", xlabel="share of OOD requests", ylabel="median requests to the alarm")
    axes.set_title("Budget: one false alarm in 30 days at 1,000 predictions a second", fontsize=10)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})


def _auroc(figures: Mapping[str, Any]) -> str:
    out = []
    for text, comparisons in figures.items():
        names = list(next(iter(comparisons.values())))
        rows = [[f"{text}: {case}", *(f"{values[n]:.3f}" for n in names)] for case, values in comparisons.items()]
        out.append(_table([text, *names], rows))
    return "\n\n".join(out)


def _delays(figures: Mapping[str, Any]) -> str:
    rows = [
        [case, _requests(one["median"], one["share_alarmed"]), _requests(one["p95"], one["share_alarmed"] - 0.45),
         f"{one['share_alarmed']:.0%}", f"{one['oracle_median']:,.0f}", str(one["alarms_before_the_change"])]
        for case, one in figures.items()
    ]  # fmt: skip
    return _table(["fit · budget · shift", "median", "p95", "alarmed", "oracle median", "early alarms"], rows)


def _requests(value: float, share: float) -> str:
    return f"{value:,.0f}" if share > 0.5 else "–"


def _peers(figures: Mapping[str, Any]) -> str:
    rows = [
        [name, f"{one['median_delay']:,.0f}", f"{one['share_alarmed_in_10000']:.0%}",
         ", ".join(f"{length:,.0f}" for length in one["run_length"])]
        for name, one in figures.items()
    ]  # fmt: skip
    return _table(["detector · share of OOD", "median delay", "alarmed in 10,000", "run length in distribution"], rows)


def _replay(figures: Mapping[str, Any]) -> str:
    rows = [
        [name, f"{sum(r['requests'] for r in runs):,}", str(sum(r["alarms"] for r in runs)),
         f"{max(r.get('largest_evidence_seen', r.get('largest_evidence')) for r in runs):.1f}", _grew(runs)]
        for name, runs in figures.items()
    ]  # fmt: skip
    return _table(["in-distribution traffic", "requests", "alarms", "largest evidence", "memory grew [MiB]"], rows)


def _grew(runs: Sequence[Mapping[str, Any]]) -> str:
    """By how much the process's memory rose in any run from the first 100,000 requests on, where it was measured."""
    grown = [run["memory_grew_mib"] for run in runs if "memory_grew_mib" in run]
    return f"{max(grown):.1f}" if grown else "–"


def _errors(figures: Mapping[str, Any]) -> str:
    names = ("estimated", "estimated_and_other_slices", "other_slices_alone", "assuming_id")
    rows = [
        [text, *(f"{one[n]:.4f} ({one[n] / one['assuming_id']:.2f})" for n in names)] for text, one in figures.items()
    ]
    return _table(["median error of the RMSE (of that of assuming the ID value)", *map(_spoken, names)], rows)


def _recipes(figures: Mapping[str, Any]) -> str:
    names = list(next(iter(figures.values())))
    rows = [[name, *(f"{one[n]:.3f}" for n in names)] for name, one in figures.items()]
    return _table(["recipe", "RMSE, ID", "RMSE, OOD", *(f"AUROC, ids hidden: {n}" for n in names[2:])], rows)


def _spoken(name: str) -> str:
    return name.replace("_", " ").replace(" id", " the ID value")


def _cost(figures: Mapping[str, Any]) -> str:
    rows = [[f"{figures[name]:.2f}" for name in ("scores_us", "ood_score_us", "monitor_us", "all_us")]]
    return _table(["scores, µs a prediction", "`ood_score`", "monitor", "together"], rows)


def _tried(figures: Mapping[str, Any]) -> str:
    parts = [figures["heads"], figures["content"], figures["errors"]]
    names = ("AUROC, one head broken", "AUROC, ids hidden", "median error of the estimated RMSE")
    shown = []
    for name, rows in zip(names, parts, strict=True):
        columns = list(next(iter(rows.values())))
        cells = [[row, *(f"{values[column]:.3f}" for column in columns)] for row, values in rows.items()]
        shown.append(_table([name, *columns], cells))
    return "\n\n".join(shown)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    known = json.loads(RESULTS.read_text())
    print(tables(known))
    if "delays" in known:
        plot(known, PLOT)
