"""More than the server can do: how much it still does, how fast it refuses the rest, and whether it stays in shape."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.serving.bench import Bench, claim
from benchmarks.serving.lineup import OURS
from benchmarks.serving.load import Traffic, post
from benchmarks.serving.server import Server

FACTORS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)
CONNECTIONS = 4096
"""More than the server lets wait: with fewer, the queue would be here and nothing would be refused."""
POST_CONNECTIONS = 256
POST_CEILING_CONNECTIONS = (4, 8)
"""With more, lists would be refused in a closed loop: half of the queue holds ten."""
PAIRS = 100
DEADLINE_MS = 50
REFUSED_MS = 10.0
SINGLE_SHARE, SINGLE_AT, POST_SHARE = 0.75, 1.5, 0.9
_GROWTH_MIB = 64.0
_LOOK_S = 0.5


def overload(bench: Bench) -> dict[str, Any]:
    """Single GETs from half to three times the ceiling; pair views and POSTs of 100 pairs at three times; a deadline on
    top.
    """
    singles = [bench.singles()]
    with bench.serve() as server:
        ceiling = bench.ceiling(server, singles).goodput
        memory = server.memory_mib()
        curve = [_point(bench, server, singles, factor, ceiling, CONNECTIONS) for factor in FACTORS]
    posts = [_posts(bench)]
    with bench.serve() as server:
        post_ceiling = bench.ceiling(server, posts, POST_CEILING_CONNECTIONS).goodput
        three = _point(bench, server, posts, 3, post_ceiling, POST_CONNECTIONS)
    with bench.serve() as server:
        hurried = [_posts(bench, f"X-Request-Timeout-Ms: {DEADLINE_MS}\r\n")]
        before = server.seconds_within(DEADLINE_MS / 1000, "200")  # the first request of all may take long
        deadline = _point(bench, server, hurried, 3, post_ceiling, POST_CONNECTIONS)
        in_time, good = np.subtract(server.seconds_within(DEADLINE_MS / 1000, "200"), before).tolist()
    found = {
        "ceiling": ceiling,
        "memory_before_mib": memory,
        "curve": curve,
        "posts_of_100": {"ceiling": post_ceiling, **three},
        "posts_with_deadline": {"answered_late": good - in_time, **deadline},
    }
    kept = [(POST_SHARE, f"POSTs of {PAIRS} pairs at 3 ×", three)]
    refusing = [at for at in curve if at["share"] == SINGLE_AT] + [three]
    if bench.pair_bundle:
        views = found["pair_views"] = _pair_views(bench.with_bundle(bench.pair_bundle))
        kept.append((POST_SHARE, "single GETs of pair views at 3 ×", views))
        refusing.append(views)
    kept.append((SINGLE_SHARE, f"single GETs at {SINGLE_AT} ×", refusing[0]))
    quick = min(point["refused_in_10_ms"] for point in refusing)
    silent = sum(point["without_retry_after"] for point in (*curve, *refusing))
    other = sum(point["other_answers"] for point in (*curve, *refusing))
    grown = max(point["memory_mib"] for point in curve) - memory
    return {
        **found,
        "claims": [
            *(
                claim(
                    f"{what} keep ≥ {least:.0%} of the ceiling", point["goodput_share"], point["goodput_share"] >= least
                )
                for least, what, point in kept
            ),
            claim(f"share of refusals within {REFUSED_MS:g} ms inside the server, ≥ 99 %", quick, quick >= 0.99),
            claim("refusals without Retry-After", silent, not silent),
            claim("answers other than 200 and 429, and requests without one", other, not other),
            claim(f"answered 200 after their deadline of {DEADLINE_MS} ms", good - in_time, good == in_time),
            claim("memory flat [MiB]", grown, grown <= _GROWTH_MIB),
        ],
    }


def _pair_views(bench: Bench) -> dict[str, Any]:
    singles = [bench.singles()]
    with bench.serve() as server:
        ceiling = bench.ceiling(server, singles).goodput
        return {"ceiling": ceiling, **_point(bench, server, singles, 3, ceiling, CONNECTIONS)}


def _posts(bench: Bench, headers: str = "") -> Traffic:
    user, item = bench.bundle.names
    pairs = [{user: u, item: i} for u, i in bench.bundle.pairs(PAIRS * 200, bench.seed)]
    bodies = [{"pairs": pairs[start : start + PAIRS]} for start in range(0, len(pairs), PAIRS)]
    return Traffic("post", [post("/predict", body, headers) for body in bodies])


def _point(
    bench: Bench, server: Server, traffic: list[Traffic], share: float, ceiling: float, connections: int
) -> dict[str, Any]:
    """One rate: what came, as the clients saw it, and how long refusals took inside."""
    rate = share * ceiling
    before = server.seconds_within(10e-3, "429")
    run = bench.start(server, traffic, connections, rate=rate)
    memory = server.memory_mib()
    while run.running():
        memory = max(memory, server.memory_mib())
        time.sleep(_LOOK_S)
    report = run.finish()
    quick, refused = np.subtract(server.seconds_within(10e-3, "429"), before).tolist()
    bench.say(f"{OURS.name} at {rate:,.0f}/s: {report.line()}")
    return {
        "share": share,
        "goodput_share": report.goodput / ceiling,
        **report.brief(),
        "other_answers": report.failed - report.statuses.get("429", 0),
        "refused_in_10_ms": quick / refused if refused else 1.0,
        "without_retry_after": report.statuses.get("429", 0) - report.retry_after,
        "memory_mib": memory,
        "void": report.void,
    }
