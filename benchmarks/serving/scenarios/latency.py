"""Latency against load, for the plot: single GETs in an open loop from a tenth of the ceiling to almost all of it."""

from __future__ import annotations

from typing import Any

from benchmarks.serving.bench import Bench, claim

FACTORS = (0.1, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
P99_MS = 5.0


def latency(bench: Bench) -> dict[str, Any]:
    """p50 and p99 at each share of our own ceiling."""
    traffic = [bench.singles()]
    with bench.serve() as server:
        ceiling = bench.ceiling(server, traffic).goodput
        points = []
        for factor in FACTORS:
            report = bench.open(server, traffic, factor * ceiling)
            points.append({"share": factor, **report.brief()})
            bench.say(f"at {factor:.0%} of {ceiling:,.0f}/s: {report.line()}")
    half = next(point for point in points if point["share"] == 0.5)["latency_ms"]["p99"]
    return {
        "ceiling": ceiling,
        "points": points,
        "claims": [claim(f"p99 at half of the ceiling ≤ {P99_MS:g} ms", half, half <= P99_MS)],
    }
