"""Figures as tables, for the terminal and for docs/results.md, and as plots."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table as RichTable

_PLAIN_WIDTH = 160


def terminal() -> Console:
    """A file or pipe has no width of its own."""
    console = Console()
    return console if console.is_terminal else Console(width=_PLAIN_WIDTH)


@dataclass(frozen=True)
class Table:
    """A heading, what it says of how it was measured, and rows of text."""

    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """For a terminal."""
        table = RichTable(title=self.title, title_justify="left")
        for i, column in enumerate(self.columns):
            table.add_column(column, justify="left" if i == 0 else "right")
        for row in self.rows:
            table.add_row(*row)
        yield table
        yield self.note

    def markdown(self) -> str:
        """For a page."""
        lines = [f"### {self.title}", "", self.note, "", _row(self.columns), _row("---" for _ in self.columns)]
        return "\n".join([*lines, *map(_row, self.rows), ""])


def tables(found: dict[str, Any]) -> list[Table]:
    """One of each comparison with the peers, and one of all that must show."""
    claimed = {name: section for name, section in found.items() if section.get("claims")}
    rows = [
        [name, one["claim"], "not run", "–"]
        if one["found"] is None
        else [name, one["claim"], _number(one["found"]), "yes" if one["met"] else "**no**"]
        for name, section in claimed.items()
        for one in section["claims"]
    ]
    calls: dict[str, list[str]] = {}
    for name, section in claimed.items():
        calls.setdefault(_how(section), []).append(name)
    note = "\n".join(f"- {'; '.join(names)}: {how}" for how, names in calls.items())
    peers = [_peers(name, section) for name, section in found.items() if "servers" in section]
    return [*peers, Table("What must show", note, ("measured", "what must show", "found", "met"), rows)]


def plots(found: dict[str, Any], folder: Path) -> None:
    """An SVG for each section that says more as a picture."""
    import matplotlib as mpl  # noqa: PLC0415 - half a second, and only for plots

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "levi"  # the same figures give the same file
    folder.mkdir(parents=True, exist_ok=True)
    for name, section in found.items():
        if "servers" in section:
            views, *size = name.split(", ")[1:]  # as in "peers, entity views, paper size"
            _bars(name, section, folder / f"serving-{'-'.join(word.split()[0] for word in (views, *size))}.svg")
    if "latency" in found:
        _curve(found["latency"], folder / "serving-latency.svg")
    if "overload" in found:
        _overload(found["overload"], folder / "serving-overload.svg")
    if "recommend" in found:
        _recommend(found["recommend"], folder / "serving-recommend.svg")
    if "redis_faults" in found:
        _faults(found["redis_faults"], folder / "serving-redis.svg")


def _peers(name: str, section: dict[str, Any]) -> Table:
    rows, left_out = [], ""
    for server, result in section["servers"].items():
        if "summary" not in result:
            left_out += f" No figure of {server}: {result.get('left_out') or '; '.join(result['failed'])}."
            continue
        s, ratio = result["summary"], section["ratios"].get(server)
        rows.append(
            [
                server,
                result["setting"]["route"],
                f"{s['throughput']['median']:,.0f} ({s['throughput']['min']:,.0f}–{s['throughput']['max']:,.0f})",
                f"{ratio['median']:.1f} ({ratio['min']:.1f}–{ratio['max']:.1f})" if ratio else "",
                f"{s['p50_ms']['median']:.2f}",
                f"{s['p99_ms']['median']:.2f} ({s['p99_ms']['min']:.2f}–{s['p99_ms']['max']:.2f})",
                f"{s['memory_mib']['median']:.0f}",
                f"{s['idle_share']['median']:.1%}",
                "" if s["difference"] is None else f"{s['difference']:.0e}",
            ]
        )
    columns = (
        "server",
        "request",
        "requests/s",
        "ours ÷ it",
        "p50 at half [ms]",
        "p99 at half [ms]",
        "MiB",
        "idle CPU",
        "off by",
    )
    return Table(name, _how(section) + left_out, columns, rows)


def _how(section: dict[str, Any]) -> str:
    at = section["machine"]
    return (
        f"`{section['command']}`, {section['date'][:10]}, {section['commit']}; {at['processor']}, one core for the "
        f"server; median of {section['repeats']} (smallest–largest), {section['seconds']:g} s each; "
        f"size {section['bundle']['run']['size']}."
    )


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _figure(width: float, height: float) -> Any:
    import matplotlib.pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    import matplotlib.pyplot as plt  # noqa: PLC0415

    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _bars(name: str, section: dict[str, Any], path: Path) -> None:
    measured = {server: r["summary"]["throughput"] for server, r in section["servers"].items() if "summary" in r}
    if not measured:
        return
    figure, axes = _figure(7, 0.4 * len(measured) + 1)
    order = sorted(measured, key=lambda server: measured[server]["median"])
    medians = [measured[server]["median"] for server in order]
    errors = [[m - measured[s]["min"] for s, m in zip(order, medians, strict=True)]]
    errors.append([measured[s]["max"] - m for s, m in zip(order, medians, strict=True)])
    axes.barh(order, medians, xerr=errors, color=["#c44" if s == "ours" else "#79a" for s in order])
    axes.set_xscale("log")
    axes.set_xlabel(f"requests a second on one core, {name.partition(', ')[2]}; closed loop")
    _save(figure, path)


def _curve(section: dict[str, Any], path: Path) -> None:
    figure, axes = _figure(7, 3.5)
    rates = [point["rate"] for point in section["points"]]
    for key in ("p50", "p99", "p99_9"):
        axes.plot(rates, [p["latency_ms"][key] for p in section["points"]], marker="o", label=key.replace("_", "."))
    axes.axvline(section["ceiling"], color="grey", linestyle=":", label="closed-loop ceiling")
    axes.set(xlabel="requests a second, open loop", ylabel="latency from the scheduled arrival [ms]", yscale="log")
    axes.legend()
    _save(figure, path)


def _overload(section: dict[str, Any], path: Path) -> None:
    figure, axes = _figure(7, 3.5)
    shares = [point["share"] for point in section["curve"]]
    ceiling = section["ceiling"]
    axes.plot(shares, [p["goodput"] / ceiling for p in section["curve"]], marker="o", label="200")
    axes.plot(shares, [(p["throughput"] - p["goodput"]) / ceiling for p in section["curve"]], marker="o", label="other")
    axes.plot(shares, shares, color="grey", linestyle=":", label="asked for")
    axes.set(xlabel="load ÷ ceiling, single GETs", ylabel="answers ÷ ceiling")
    axes.legend()
    _save(figure, path)


def _recommend(section: dict[str, Any], path: Path) -> None:
    figure, axes = _figure(7, 3.5)
    axes.plot([p["items"] for p in section["cost"]], [p["ms"] for p in section["cost"]], marker="o")
    axes.set(xlabel="items in the catalogue", ylabel="GET /recommend?k=10, one at a time [ms]")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    _save(figure, path)


def _faults(section: dict[str, Any], path: Path) -> None:
    figure, axes = _figure(7, 4)
    for name, result in section["faults"].items():
        axes.plot([w[0] for w in result["windows"]], [w[2] for w in result["windows"]], label=name, linewidth=0.8)
    axes.set(xlabel="seconds; the fault lasts from 4 to 9", ylabel="p99 of each 100 ms [ms]", yscale="log")
    axes.legend(fontsize="x-small", ncols=2)
    _save(figure, path)
