"""A server that nobody asks anything."""

from __future__ import annotations

from typing import Any

from benchmarks.serving.bench import Bench, claim

SECONDS = 20.0
SHARE = 0.01


def idle(bench: Bench) -> dict[str, Any]:
    """Share of a core, after a load that has made it warm."""
    with bench.serve() as server:
        bench.closed(server, [bench.singles()], 16, seconds=1.0, warmup=0.0)
        share = server.cpu_share(SECONDS)
    return {"cpu_share": share, "claims": [claim(f"≤ {SHARE:.0%} of a core", share, share <= SHARE)]}
