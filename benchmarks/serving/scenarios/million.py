"""A million users: in the process's own tables, and in Redis with none here."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.serving.bench import Bench, claim, spread
from benchmarks.serving.bundle import Bundle, enlarged
from benchmarks.serving.redis_server import running

USERS = (10_000, 100_000, 1_000_000)
QUICK_USERS = (2_000, 5_000)
PAIRS = 300_000
"""Different pairs that are asked for: far more users than the process keeps."""
CACHE_MIB = 8
"""What the process may keep of Redis' rows: less than ten thousand users take, so that it is full in every run."""
WITHIN_MS = 2.0
_FLAT_MIB = 50.0


def million(bench: Bench) -> dict[str, Any]:
    """Latency at half of the ceiling and memory, by number of users."""
    sizes = {}
    for users in QUICK_USERS if bench.quick else USERS:
        grown = bench.with_bundle(Bundle(enlarged(bench.bundle, bench.cache / "bundles", users=users)))
        sizes[users] = _size(grown, users)
    largest = sizes[max(sizes)]
    apart = largest["redis"]["p99_ms"]["median"] - largest["in_process"]["p99_ms"]["median"]
    memory = [size["redis"]["memory_mib"] for size in sizes.values()]
    return {
        "users": sizes,
        "claims": [
            claim(f"p99 within {WITHIN_MS:g} ms of the in-process figure", apart, apart <= WITHIN_MS),
            claim(
                "memory of the server independent of the number of users [MiB from least to most]",
                max(memory) - min(memory),
                max(memory) - min(memory) <= _FLAT_MIB,
            ),
        ],
    }


def _size(bench: Bench, users: int) -> dict[str, Any]:
    with (
        tempfile.TemporaryDirectory(dir=bench.folder) as folder,
        running(bench.redis, Path(folder), bench.load_core) as redis,
    ):
        start = time.monotonic()
        bench.levi("publish", "--redis", redis.url, "--entity", bench.bundle.names[0])
        published = time.monotonic() - start
        remote = ("--redis", redis.url, "--remote-only", bench.bundle.names[0], "--cache-mib", str(CACHE_MIB))
        flags: dict[str, tuple[str, ...]] = {"in_process": (), "redis": remote}
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in flags}
        for turn in range(bench.repeats):
            for name, these in flags.items():
                runs[name].append(_run(bench, these, turn))
                bench.say(f"{users:,} users, {name}: {runs[name][-1]}")
        used = redis.used_mib
    return {
        "publish_s": published,
        "published_a_second": users / published,
        "redis_mib": used,
        **{
            name: {
                **{key: spread([run[key] for run in found]) for key in ("throughput", "p50_ms", "p99_ms")},
                "memory_mib": max(run["memory_mib"] for run in found),
                "degraded_or_failed": sum(run["failed"] for run in found),
            }
            for name, found in runs.items()
        },
    }


def _run(bench: Bench, flags: tuple[str, ...], turn: int) -> dict[str, Any]:
    traffic = [bench.singles(count=20_000 if bench.quick else PAIRS, seed=bench.seed + turn)]
    with bench.serve(flags=flags) as server:
        ceiling = bench.ceiling(server, traffic)
        half = bench.open(server, traffic, ceiling.goodput / 2)
        return {
            "throughput": ceiling.goodput,
            "p50_ms": half.latency_ms.p50,
            "p99_ms": half.latency_ms.p99,
            "failed": half.failed,
            "memory_mib": server.memory_mib(),
        }
