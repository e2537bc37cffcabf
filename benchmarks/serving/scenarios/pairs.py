"""Pair views: every pair is a sentence for the backbone, so what counts is how little the server adds to that."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.serving.bench import Bench, claim, spread
from benchmarks.serving.lineup import OURS, TOLERANCE
from benchmarks.serving.load import Traffic, get, on_core, post
from levi_serve.bundle.commands import RunError

BATCH = 32
SHARE = 0.95
_LONG_WORDS = 400
_LONG_EVERY_S = 1.0


def pairs(bench: Bench) -> dict[str, Any]:
    """Throughput against raw ONNX Runtime in turn, and what one long sentence does to the short ones' p99."""
    if bench.pair_bundle is None:
        raise RunError("needs --pair-bundle, a repository exported from a fit with --views pair")
    bench = bench.with_bundle(bench.pair_bundle)
    names = bench.bundle.names
    drawn = bench.bundle.pairs(BATCH * 40, bench.seed)
    groups = [drawn[start : start + BATCH] for start in range(0, len(drawn), BATCH)]
    singles = Traffic("single", [get(f"/predict?{names[0]}={u}&{names[1]}={i}") for u, i in drawn])
    posts = Traffic(
        "post", [post("/predict", {"pairs": [dict(zip(names, pair, strict=True)) for pair in g]}) for g in groups]
    )
    raw, by_post, by_get = [], [], []
    with bench.serve() as server:
        difference = bench.difference(server, OURS.settings[0], TOLERANCE)
        for _ in range(bench.repeats):
            with on_core(bench.server_core):
                raw.append(_raw(bench, groups))
            by_post.append(BATCH * bench.closed(server, [posts], 4).goodput)
            by_get.append(bench.closed(server, [singles], 64).goodput)
            bench.say(f"raw {raw[-1]:.1f}, POST {by_post[-1]:.1f}, GET {by_get[-1]:.1f} pairs a second")
        long = _long(bench)
        rate = min(by_get) / 2
        alone = [bench.open(server, [singles], rate) for _ in range(bench.repeats)]
        service = bench.closed(server, [long], 1, seconds=3.0).latency_ms.p50
        share = 1 / (rate * _LONG_EVERY_S)
        rare = Traffic("long", long.requests, share / (1 - share))
        beside = [bench.open(server, [singles, rare], rate / (1 - share)) for _ in range(bench.repeats)]
    without = spread([report.latency_ms.p99 for report in alone])
    with_long = spread([report.classes["single"]["200"].p99 for report in beside])
    ratios = {
        name: spread([a / b for a, b in zip(found, raw, strict=True)])
        for name, found in (("post_32", by_post), ("get", by_get))
    }
    raised = with_long["median"] - without["median"]
    best = max(ratio["median"] for ratio in ratios.values())
    return {
        "bundle": bench.bundle.facts,
        "difference": difference,
        "raw_pairs_a_second": spread(raw),
        "post_32_pairs_a_second": spread(by_post),
        "get_pairs_a_second": spread(by_get),
        "ratios": ratios,
        "rate": rate,
        "short_p99_alone_ms": without,
        "short_p99_beside_long_ms": with_long,
        "long_service_ms": service,
        "claims": [
            claim(f"≥ {SHARE} of raw ONNX Runtime at batch {BATCH}", best, best >= SHARE),
            claim(
                f"one long sentence a second raises short p99 by ≤ its own {service:.0f} ms [ms]",
                raised,
                raised <= service,
            ),
        ],
    }


def _raw(bench: Bench, groups: Sequence[Sequence[tuple[int, int]]]) -> float:
    """Pairs a second of the graph alone, its inputs made beforehand, over whole batches."""
    scorer = bench.bundle.scorer
    feeds = [scorer.feeds(scorer.bundle.numbers(group)) for group in groups]
    scorer.session.run(None, feeds[0])
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < bench.seconds:
        scorer.session.run(None, feeds[done % len(feeds)])
        done += 1
    return done * BATCH / (time.perf_counter() - start)


def _long(bench: Bench) -> Traffic:
    """A known user and a movie whose title is as long as the backbone reads."""
    user, item = bench.bundle.names
    words = np.random.default_rng(bench.seed).choice(["night", "river", "old", "stone", "house"], _LONG_WORDS)
    new = {next(iter(bench.bundle.new_items(1, 0)[0])): " ".join(words)[:990]}
    return Traffic("long", [post("/predict", {"pairs": [{user: bench.bundle.pairs(1, 0)[0][0], item: new}]})])
