"""More than the server can do: how much it still does, how fast it refuses the rest, and whether it stays in shape."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.serving.bench import Bench, claim
from benchmarks.serving.lineup import OURS
from benchmarks.serving.load import Traffic, post
from benchmarks.serving.server import Server

FACTORS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)
CONNECTIONS = 4096
"""More than the server lets wait: with fewer, the queue would be here and nothing would be refused."""
POST_CONNECTIONS = 256
PAIRS = 100
DEADLINE_MS = 50
REFUSED_MS = 10.0
SINGLE_SHARE, POST_SHARE = 0.75, 0.9
_GROWTH_MIB = 64.0
_LOOK_S = 0.5


def overload(bench: Bench) -> dict[str, Any]:
    """Single GETs from half to three times the ceiling; POSTs of 100 pairs at three times; a deadline on top."""
    singles = [bench.singles()]
    with bench.serve() as server:
        ceiling = bench.ceiling(server, singles).goodput
        memory = server.memory_mib()
        curve = []
        for factor in FACTORS:
            point = _point(bench, server, singles, factor * ceiling, CONNECTIONS)
            curve.append({"share": factor, "goodput_share": point["goodput"] / ceiling, **point})
    posts = [_posts(bench)]
    with bench.serve() as server:
        post_ceiling = bench.ceiling(server, posts).goodput
        three = _point(bench, server, posts, 3 * post_ceiling, POST_CONNECTIONS)
    with bench.serve() as server:
        hurried = [_posts(bench, f"X-Request-Timeout-Ms: {DEADLINE_MS}\r\n")]
        deadline = _point(bench, server, hurried, 3 * post_ceiling, POST_CONNECTIONS)
    at = {point["share"]: point for point in curve}
    largest = max(point["memory_mib"] for point in curve)
    return {
        "ceiling": ceiling,
        "memory_before_mib": memory,
        "curve": curve,
        "posts_of_100": {"ceiling": post_ceiling, "goodput_share": three["goodput"] / post_ceiling, **three},
        "posts_with_deadline": deadline,
        "claims": [
            claim(
                f"single GETs at 1.5 × keep ≥ {SINGLE_SHARE:.0%} of the ceiling",
                at[1.5]["goodput_share"],
                at[1.5]["goodput_share"] >= SINGLE_SHARE,
            ),
            claim(
                f"POSTs of {PAIRS} pairs at 3 × keep ≥ {POST_SHARE:.0%} of the ceiling",
                three["goodput"] / post_ceiling,
                three["goodput"] >= POST_SHARE * post_ceiling,
            ),
            claim(
                f"99 % of refusals within {REFUSED_MS:g} ms inside the server",
                min(at[1.5]["refused_in_10_ms"], three["refused_in_10_ms"]),
                min(at[1.5]["refused_in_10_ms"], three["refused_in_10_ms"]) >= 0.99,
            ),
            claim(
                "every refusal says Retry-After",
                sum(point["without_retry_after"] for point in (*curve, three)),
                not any(point["without_retry_after"] for point in (*curve, three)),
            ),
            claim("memory flat", largest - memory, largest - memory <= _GROWTH_MIB),
        ],
    }


def _posts(bench: Bench, headers: str = "") -> Traffic:
    user, item = bench.bundle.names
    pairs = [{user: u, item: i} for u, i in bench.bundle.pairs(PAIRS * 200, bench.seed)]
    bodies = [{"pairs": pairs[start : start + PAIRS]} for start in range(0, len(pairs), PAIRS)]
    return Traffic("post", [post("/predict", body, headers) for body in bodies])


def _point(bench: Bench, server: Server, traffic: list[Traffic], rate: float, connections: int) -> dict[str, Any]:
    """One rate: what came, as the clients saw it, and how long refusals took inside."""
    before = server.seconds_within(10e-3, "429")
    run = bench.start(server, traffic, connections, rate=rate)
    memory = server.memory_mib()
    while run.running():
        memory = max(memory, server.memory_mib())
        time.sleep(_LOOK_S)
    report = run.finish()
    quick, refused = (
        after - earlier for after, earlier in zip(server.seconds_within(10e-3, "429"), before, strict=True)
    )
    bench.say(f"{OURS.name} at {rate:,.0f}/s: {report.line()}")
    return {
        **report.brief(),
        "refused_in_10_ms": quick / refused if refused else 1.0,
        "without_retry_after": report.statuses.get("429", 0) - report.retry_after,
        "memory_mib": memory,
        "void": report.void,
    }
