"""Redis dies, freezes, talks nonsense, is full, comes back or holds spoilt rows, all under load."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving.bench import Bench, claim
from benchmarks.serving.load import Report, Run
from benchmarks.serving.redis_server import Garbage, Redis, running

FAULT_S, HEAL_S, SECONDS = 4.0, 9.0, 16.0
RECOVERY_S = 2.0
EXACT = 1e-5
_NORMAL = 2.0
"""A window is normal again when its p99 is at most this much the usual one, or a millisecond above it."""

_LIMITS = (
    ("failed requests", "failed", 0),
    ("wrong ratings that were not marked", "wrong", 0),
    ("degraded answers", "degraded", 0),
    ("seconds until p99 was normal, after the fault began or ended", "slow_s", RECOVERY_S),
)
MODES = {"with_table": (), "without_table": ("--remote-only", "user")}


def redis_faults(bench: Bench) -> dict[str, Any]:
    """Every fault, with a local table of users and without, at a third of the ceiling, nothing kept in the process."""
    results: dict[str, Any] = {}
    for mode, flags in MODES.items():
        for fault in FAULTS:
            with (
                tempfile.TemporaryDirectory(dir=bench.folder) as folder,
                running(bench.redis, Path(folder), bench.load_core) as redis,
            ):
                bench.levi("publish", "--redis", redis.url)
                redis.save()
                results[f"{fault}, {mode}"] = _fault(bench, redis, fault, ("--redis", redis.url, *flags))
    return {
        "faults": results,
        "claims": [
            claim(f"{name}: {text}", result[key], result[key] <= most)
            for name, result in results.items()
            for text, key, most in _LIMITS
            if key != "degraded" or "with_table" in name
        ],
    }


def _fault(bench: Bench, redis: Redis, fault: str, flags: tuple[str, ...]) -> dict[str, Any]:
    pairs = bench.bundle.pairs(2000, bench.seed)
    expected = bench.bundle.expected(pairs)
    traffic = [bench.singles(count=2000)]
    with bench.serve(flags=("--cache-mib", "0", *flags)) as server:
        rate = bench.closed(server, traffic, 64, seconds=2.0, warmup=1.0).goodput / 3
        run = bench.start(server, traffic, 256, rate=rate, seconds=SECONDS, keep=True, window_ms=100)
        inflict, heal = FAULTS[fault]
        _at(run, FAULT_S)
        found = inflict(redis)
        _at(run, HEAL_S)
        heal(redis, found)
        report = run.finish()
        wrong, degraded = _judge(run, expected)
    usual = float(np.median([w.p99 for w in report.windows if w.at < FAULT_S]))
    slow = max(_slow(report, usual, FAULT_S, HEAL_S), _slow(report, usual, HEAL_S, SECONDS))
    bench.say(f"{fault} {flags}: slow for {slow:.1f} s, wrong {wrong}, degraded {degraded}: {report.line()}")
    return {
        "rate": rate,
        "usual_p99_ms": usual,
        "worst_window_p99_ms": max(w.p99 for w in report.windows),
        "slow_s": slow,
        "failed": report.failed,
        "wrong": wrong,
        "degraded": degraded,
        **report.brief(),
        "windows": [[w.at, w.p50, w.p99, w.count, w.errors] for w in report.windows],
    }


def _at(run: Run, seconds: float) -> None:
    time.sleep(max(0.0, run.begin + seconds - time.monotonic()))


def _judge(run: Run, expected: Any) -> tuple[int, int]:
    """Answers that are neither right nor marked as degraded, and those that are marked."""
    wrong = degraded = 0
    for reply in run.replies():
        if reply.status != 200:
            continue
        answer = json.loads(reply.body)
        if answer.get("degraded"):
            degraded += 1
        else:
            found = np.array([answer["rating"], *answer["heads"]])
            wrong += bool(np.abs(found - expected[reply.request]).max() > EXACT)
    return wrong, degraded


def _slow(report: Report, usual: float, begin: float, end: float) -> float:
    """Seconds from `begin` until p99 was normal and stayed so until `end`; a single slow window is no relapse."""
    allowed = max(_NORMAL * usual, usual + 1.0)
    windows = [w for w in report.windows if begin <= w.at < end]
    late = [
        w.at + 0.1 - begin
        for i, w in enumerate(windows)
        if np.median([near.p99 for near in windows[max(0, i - 2) : i + 3]]) > allowed
    ]
    return max(late, default=0.0)


def _garbage(redis: Redis) -> Garbage:
    redis.kill()
    return Garbage(redis.port)


def _no_garbage(redis: Redis, garbage: Any) -> None:
    garbage.close()
    redis.start()


def _restart(redis: Redis) -> None:
    redis.kill()
    redis.start()


FAULTS: dict[str, tuple[Callable[[Redis], Any], Callable[[Redis, Any], None]]] = {
    "killed": (Redis.kill, lambda redis, _: redis.start()),
    "frozen": (Redis.freeze, lambda redis, _: redis.thaw()),
    "garbage": (_garbage, _no_garbage),
    "full": (lambda redis: redis.fill(True), lambda redis, _: redis.fill(False)),
    "restarted": (_restart, lambda redis, _: None),
    "spoilt": (Redis.spoil, lambda redis, _: redis.spoil()),
}
"""How each begins and how it ends; spoiling twice mends."""
