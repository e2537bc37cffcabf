"""GET /recommend: the whole catalogue in one pass, and what it costs when the catalogue grows."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from benchmarks.serving.bench import Bench, claim
from benchmarks.serving.bundle import Bundle, enlarged
from benchmarks.serving.load import Traffic, get
from benchmarks.serving.server import Server
from levi_serve.bundle.commands import RunError

ITEMS = (10_000, 50_000, 100_000, 200_000)
QUICK_ITEMS = (5_000, 10_000)
K = 10
P99_MS = 30.0
CHECKED = 20
_LINEAR = 0.2
"""The cost of an item in the largest catalogue may differ by this share from the median over all."""


def recommend(bench: Bench) -> dict[str, Any]:
    """p99 at half of the ceiling, the same top ten as raw ONNX Runtime over every pair, and cost by catalogue."""
    traffic = [_requests(bench)]
    with bench.serve() as server:
        same = _same(bench, server)
        ceiling = bench.ceiling(server, traffic)
        half = bench.open(server, traffic, ceiling.goodput / 2)
        bench.say(f"{ceiling.goodput:.0f} a second; at half of it {half.line()}")
    cost = [_cost(bench)]
    for items in QUICK_ITEMS if bench.quick else ITEMS:
        cost.append(_cost(bench.with_bundle(Bundle(enlarged(bench.bundle, bench.cache / "bundles", items=items)))))
        bench.say(f"{cost[-1]}")
    per_item = [point["ms"] / point["items"] for point in cost[1:]]
    off = abs(per_item[-1] / float(np.median(per_item)) - 1)
    return {
        "ceiling": ceiling.goodput,
        "half": half.brief(),
        "same_top_10": same,
        "cost": cost,
        "claims": [
            claim(f"p99 ≤ {P99_MS:g} ms", half.latency_ms.p99, half.latency_ms.p99 <= P99_MS),
            claim("the same top 10 as scoring every pair", same, same == CHECKED),
            claim("cost linear in the catalogue [deviation of the last point]", off, off <= _LINEAR),
        ],
    }


def _requests(bench: Bench) -> Traffic:
    user = bench.bundle.names[0]
    return Traffic("recommend", [get(f"/recommend?{user}={u}&k={K}") for u, _ in bench.bundle.pairs(500, bench.seed)])


def _cost(bench: Bench) -> dict[str, float]:
    """Milliseconds of one request at a time."""
    with bench.serve() as server:
        report = bench.closed(server, [_requests(bench)], 1)
    if report.failed:
        raise RunError(f"/recommend failed: {report.statuses} {report.errors}")
    return {"items": len(bench.bundle.scorer.bundle.tables[1].ids), "ms": report.latency_ms.p50}


def _same(bench: Bench, server: Server) -> int:
    """For how many users the ten are those that raw ONNX Runtime rates best; equal ratings may change places."""
    user, item = bench.bundle.names
    scorer = bench.bundle.scorer
    items = scorer.bundle.tables[1].ids.tolist()
    good = 0
    for someone, _ in bench.bundle.pairs(CHECKED, bench.seed + 2):
        body = json.loads(server.ask(get(f"/recommend?{user}={someone}&k={K}")).body)
        listed = body if isinstance(body, list) else next(v for v in body.values() if isinstance(v, list))
        ratings = scorer.raw(scorer.bundle.numbers([(someone, i) for i in items]))[1]
        best = dict(zip(items, ratings.tolist(), strict=True))
        found = [best[_identity(entry[item])] for entry in listed]
        good += bool(np.allclose(found, np.sort(ratings)[::-1][:K], atol=1e-5))
    return good


def _identity(entry: Any) -> int:
    return int(entry["id"] if isinstance(entry, dict) else entry)
