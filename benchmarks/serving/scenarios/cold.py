"""One request in a hundred brings a movie that nobody has seen, a backbone pass: the others should not care."""

from __future__ import annotations

from typing import Any

from benchmarks.serving.bench import Bench, claim, spread
from benchmarks.serving.load import Traffic, post
from benchmarks.serving.server import Server

SHARE = 0.01
ALLOWED = 2.0
_BUSY = 0.25
"""At most this share of the time the encoder works: cold requests must not be what the server is full of."""


def cold(bench: Bench) -> dict[str, Any]:
    """Warm p99 with and without cold requests beside, at the same warm rate, in turn."""
    singles = bench.singles()
    with bench.serve() as server:
        warm_ceiling = bench.ceiling(server, [singles]).goodput
        cold_ceiling = _cold_ceiling(bench, server)
        rate = min(warm_ceiling / 2, _BUSY * cold_ceiling / SHARE)
        without, beside = [], []
        for turn in range(bench.repeats):
            without.append(bench.open(server, [singles], rate))
            count = int(1.5 * SHARE * rate * (bench.seconds + bench.warmup)) + 50
            new = Traffic("cold", _posts(bench, count, 100 + turn), SHARE / (1 - SHARE), once=True)
            beside.append(bench.open(server, [singles, new], rate / (1 - SHARE)))
            bench.say(f"without: {without[-1].line()}; with: {beside[-1].line()}")
    warm = [report.classes["single"]["200"].p99 for report in beside]
    alone = [report.latency_ms.p99 for report in without]
    ratios = spread([a / b for a, b in zip(warm, alone, strict=True)])
    return {
        "warm_ceiling": warm_ceiling,
        "cold_ceiling": cold_ceiling,
        "rate": rate,
        "warm_p99_alone_ms": spread(alone),
        "warm_p99_beside_cold_ms": spread(warm),
        "ratio": ratios,
        "cold_p99_ms": spread([report.classes["cold"]["200"].p99 for report in beside]),
        "failed": sum(report.failed for report in (*without, *beside)),
        "claims": [claim(f"warm p99 ≤ {ALLOWED:g} × with 1 % cold requests", ratios["median"], ratios["median"] <= 2)],
    }


def _cold_ceiling(bench: Bench, server: Server) -> float:
    """Cold requests a second, nothing else asked."""
    count = int(2000 * bench.seconds)
    traffic = [Traffic("cold", _posts(bench, count, 99), once=True)]
    return bench.closed(server, traffic, 16, seconds=bench.seconds / 2, warmup=bench.warmup / 2).goodput


def _posts(bench: Bench, count: int, seed: int) -> list[bytes]:
    """A known user and a new movie each, no title twice."""
    user, item = bench.bundle.names
    known = [pair[0] for pair in bench.bundle.pairs(count, seed)]
    new = bench.bundle.new_items(count, seed)
    return [post("/predict", {"pairs": [{user: u, item: i}]}) for u, i in zip(known, new, strict=True)]
