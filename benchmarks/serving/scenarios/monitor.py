"""What the shift monitor costs: the same server with and without it, in turns on one core. Two more: one that watches
every prediction, however many come, and the one without once more: how far two equal servers lie apart is how little
this machine can tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from scipy.stats import binom

from benchmarks.serving.bench import Bench, claim, spread

THROUGHPUT = 0.04
P99_MS = 0.2
_CONNECTIONS = 64
_SIDES = {
    "with": (),
    "watching all": ("--monitor-rate", "1e9"),
    "without": ("--no-monitor",),
    "without, again": ("--no-monitor",),
}
_TIMES = ("p50", "p99", "p99_9")


def monitor(bench: Bench) -> dict[str, Any]:
    """Closed loops, then open loops at half of what the server without it answers; whoever is not asked is idle."""
    traffic = [bench.singles()]
    with ExitStack() as stack:
        servers = {side: stack.enter_context(bench.serve(flags=flags)) for side, flags in _SIDES.items()}
        rates: dict[str, list[float]] = {side: [] for side in servers}
        waits: dict[str, list[dict[str, float]]] = {side: [] for side in servers}
        for turn in range(bench.repeats):
            for side in _in_turn(turn):
                rates[side].append(bench.closed(servers[side], traffic, _CONNECTIONS).goodput)
            bench.say(f"turn {turn}: " + ", ".join(f"{side} it {rates[side][-1]:,.0f}/s" for side in servers))
        half = spread(rates["without"])["median"] / 2
        for turn in range(bench.repeats):
            for side in _in_turn(turn):
                latency = bench.open(servers[side], traffic, half, seed=bench.seed + turn).latency_ms
                waits[side].append({name: getattr(latency, name) for name in _TIMES})
            bench.say(
                f"turn {turn}: " + ", ".join(f"{side} it p99 {waits[side][-1]['p99']:.2f} ms" for side in servers)
            )
        watching = servers["watching all"]
        own = watching.sample("levi_monitor_seconds_total") / watching.sample("levi_monitor_predictions_total")
    lost, every, noise = (_lost(rates, side) for side in ("with", "watching all", "without, again"))
    later, every_ms, noise_ms = (_later(waits, side) for side in ("with", "watching all", "without, again"))
    return {
        "requests_per_second": rates,
        "latency_ms": waits,
        "open_rate": half,
        "throughput_lost": lost,
        "throughput_lost_watching_all": every,
        "throughput_lost_by_an_equal_server": noise,
        "later_ms": later,
        "later_ms_watching_all": every_ms,
        "later_ms_of_an_equal_server": noise_ms,
        "its_own_count_us_watching_all": own * 1e6,
        "claims": [
            claim(
                f"throughput ≤ 4 % less than without [share: {_range(lost)}; an equal server: {_range(noise)}]",
                lost["median"],
                lost["median"] <= THROUGHPUT,
            ),
            claim(
                f"p99 at half ≤ 0.2 ms later [{_range(later['p99'])}; an equal server: {_range(noise_ms['p99'])}]",
                later["p99"]["median"],
                later["p99"]["median"] <= P99_MS,
            ),
        ],
    }


def _lost(rates: Mapping[str, Sequence[float]], side: str) -> dict[str, float]:
    """Share of the throughput that is missing, turn by turn."""
    return _sure([1 - a / b for a, b in zip(rates[side], rates["without"], strict=True)])


def _later(waits: Mapping[str, Sequence[Mapping[str, float]]], side: str) -> dict[str, dict[str, float]]:
    """Milliseconds, turn by turn."""
    pairs = list(zip(waits[side], waits["without"], strict=True))
    return {name: _sure([a[name] - b[name] for a, b in pairs]) for name in _TIMES}


def _sure(differences: Sequence[float]) -> dict[str, float]:
    """The median of turns, and between which of them it lies with 95 %: no more than the order of turns is used."""
    ordered, n = np.sort(differences), len(differences)
    low, high = binom.interval(0.95, n, 0.5)
    return {
        **spread(differences),
        "low": float(ordered[max(int(low) - 1, 0)]),
        "high": float(ordered[min(int(high), n - 1)]),
    }


def _range(found: Mapping[str, float]) -> str:
    return f"median {found['median']:.3g}, 95 %: {found['low']:.3g} to {found['high']:.3g}"


def _in_turn(turn: int) -> list[str]:
    """Each stands at each place as often as the others."""
    sides = list(_SIDES)
    return sides[turn % len(sides) :] + sides[: turn % len(sides)]
