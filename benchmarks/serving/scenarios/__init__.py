"""What the server does under loads and faults; each scenario is a function from a `Bench` to its figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.serving.bench import Bench
from benchmarks.serving.scenarios.cold import cold
from benchmarks.serving.scenarios.disconnect import disconnect
from benchmarks.serving.scenarios.drain import drain
from benchmarks.serving.scenarios.idle import idle
from benchmarks.serving.scenarios.latency import latency
from benchmarks.serving.scenarios.million import million
from benchmarks.serving.scenarios.monitor import monitor
from benchmarks.serving.scenarios.overload import overload
from benchmarks.serving.scenarios.pairs import pairs
from benchmarks.serving.scenarios.ratings import ratings
from benchmarks.serving.scenarios.recommend import recommend
from benchmarks.serving.scenarios.redis_faults import redis_faults

SCENARIOS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "ratings": ratings,
    "latency": latency,
    "overload": overload,
    "cold": cold,
    "recommend": recommend,
    "pairs": pairs,
    "redis_faults": redis_faults,
    "million": million,
    "disconnect": disconnect,
    "drain": drain,
    "idle": idle,
    "monitor": monitor,
}
