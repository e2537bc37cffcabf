"""SIGTERM under load: the server says so first, answers what it accepted, and leaves nothing behind."""

from __future__ import annotations

import signal
import time
from http.client import HTTPException
from typing import Any

from benchmarks.serving.bench import Bench, claim
from benchmarks.serving.load import get
from benchmarks.serving.server import Server

WORKERS = (1, 2)
DRAIN_S = 2.0
_AFTER_S = 1.0
_LIMIT_S = 15.0


def drain(bench: Bench) -> dict[str, Any]:
    """With one worker and with two, at half of the ceiling."""
    results = {f"workers_{workers}": _drain(bench, workers) for workers in WORKERS}
    return {
        **results,
        "claims": [
            claim(f"{name}: {text}", result[key], result[key] == wanted)
            for name, result in results.items()
            for text, key, wanted in (
                ("/readyz says 503 while requests are still answered", "announced", True),
                ("accepted requests without an answer", "lost", 0),
                ("exit code", "exit_code", 0),
                ("processes left", "left", 0),
            )
        ],
    }


def _drain(bench: Bench, workers: int) -> dict[str, Any]:
    traffic = [bench.singles()]
    with bench.serve(flags=("--workers", str(workers), "--drain-s", f"{DRAIN_S:g}")) as server:
        rate = bench.closed(server, traffic, 64, seconds=2.0, warmup=1.0).goodput / 2
        tree = server.processes()
        seconds = 2 * _AFTER_S + DRAIN_S
        run = bench.start(server, traffic, 64, rate=rate, seconds=seconds, warmup=0.0, timeout=2.0, window_ms=100)
        time.sleep(max(0.0, run.begin + _AFTER_S - time.monotonic()))
        server.signal(signal.SIGTERM)
        asked = time.monotonic()
        unready, ended = _watch(server, asked)
        report = run.finish()
        left = [process for process in tree if process.is_running()]
        code = server.stop()[0]
    # What nobody took any more is refused or unsent; a request is lost if it was taken and its answer did not come.
    lost = sum(report.errors.get(kind, 0) for kind in ("closed", "cut", "timeout", "protocol"))
    answered_after = sum(w.count for w in report.windows if w.at >= _AFTER_S + (unready or 0.0))
    bench.say(f"{workers} workers: /readyz 503 after {unready} s, gone after {ended} s: {report.line()}")
    return {
        "rate": rate,
        "unready_after_s": unready,
        "ended_after_s": ended,
        "announced": unready is not None and unready < DRAIN_S and answered_after > 0,
        "answered_after_announcing": answered_after,
        "lost": lost,
        "exit_code": code,
        "left": len(left),
        **report.brief(),
    }


def _watch(server: Server, since: float) -> tuple[float | None, float | None]:
    """Seconds until /readyz said 503, and until the program was gone."""
    unready = None
    while time.monotonic() - since < _LIMIT_S:
        if server.ended():
            return unready, time.monotonic() - since
        if unready is None:
            try:
                if server.ask(get("/readyz"), timeout=1.0).status == 503:
                    unready = time.monotonic() - since
            except (OSError, HTTPException):
                pass
        time.sleep(0.01)
    return unready, None
