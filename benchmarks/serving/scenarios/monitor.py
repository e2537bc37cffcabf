"""What the shift monitor costs: the same server with and without it, in turns on one core."""

from __future__ import annotations

from typing import Any

from benchmarks.serving.bench import Bench, claim, spread

THROUGHPUT = 0.04
P99_MS = 0.2
_CONNECTIONS = 64
_SIDES = {"with": (), "without": ("--no-monitor",)}


def monitor(bench: Bench) -> dict[str, Any]:
    """Closed loops, then open loops at half of what the server without it answers; whoever is not asked is idle."""
    traffic = [bench.singles()]
    with bench.serve(flags=_SIDES["with"]) as watching, bench.serve(flags=_SIDES["without"]) as plain:
        servers = {"with": watching, "without": plain}
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
                waits[side].append({"p50": latency.p50, "p99": latency.p99, "p99_9": latency.p99_9})
            bench.say(
                f"turn {turn}: " + ", ".join(f"{side} it p99 {waits[side][-1]['p99']:.2f} ms" for side in servers)
            )
        own = watching.sample("levi_monitor_seconds_total") / watching.sample("levi_monitor_predictions_total")
    lost = spread([1 - a / b for a, b in zip(rates["with"], rates["without"], strict=True)])
    later = {
        name: spread([a[name] - b[name] for a, b in zip(waits["with"], waits["without"], strict=True)])
        for name in ("p50", "p99", "p99_9")
    }
    return {
        "requests_per_second": rates,
        "latency_ms": waits,
        "open_rate": half,
        "throughput_lost": lost,
        "later_ms": later,
        "its_own_count_us": own * 1e6,
        "claims": [
            claim("throughput ≤ 4 % less than without [share, median]", lost["median"], lost["median"] <= THROUGHPUT),
            claim("p99 at half ≤ 0.2 ms later [ms, median]", later["p99"]["median"], later["p99"]["median"] <= P99_MS),
        ],
    }


def _in_turn(turn: int) -> list[str]:
    """Who was second is first the next time."""
    return list(_SIDES) if turn % 2 else list(reversed(_SIDES))
