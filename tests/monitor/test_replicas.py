"""levi_serve.replicas: counts of several servers as one block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from prometheus_client import CollectorRegistry, generate_latest

from levi_serve.metrics import Metrics
from levi_serve.metrics_fleet import Serving
from levi_serve.monitor.detector import Detector
from levi_serve.monitor.metrics import MonitorCollector
from levi_serve.monitor.watch import Monitor
from levi_serve.replicas import ReplicaError, Replicas

from .conftest import World


def exposed(monitor: Monitor, version: int = 3) -> str:
    """What a server with this monitor says in /metrics."""
    metrics = Metrics()
    metrics.show_monitor(MonitorCollector(monitor))
    metrics.serving("levi", version, "entity")
    return metrics.text().decode()


def test_replicas_are_added_exactly(detector: Detector, world: World) -> None:
    """What two servers have counted since the last reading is one block, and gives the very evidence of one that saw
    both.
    """
    one, two = (Monitor(world.reference(), detector, None) for _ in range(2))
    replicas = Replicas(detector.streams, "levi", 3)
    world.show(one, 640)
    assert not replicas.added({"a": exposed(one), "b": exposed(two)})[0].any()
    before = one.read()["counts"].copy()
    world.show(one, 320)
    world.show(two, 320)
    block, missing = replicas.added({"a": exposed(one), "b": exposed(two)})
    assert missing == {}
    assert block.tolist() == (one.read()["counts"] - before + two.read()["counts"]).tolist()
    alone, merged = detector.start(), detector.start()
    detector.apply(alone, (one.read()["counts"] - before + two.read()["counts"])[..., None], 0.0)
    detector.apply(merged, block[..., None], 0.0)
    assert alone.tobytes() == merged.tobytes()


def test_a_restarted_replica(detector: Detector, world: World) -> None:
    """Counts that fell were begun anew: all of them are new."""
    old, new = (Monitor(world.reference(), detector, None) for _ in range(2))
    replicas = Replicas(detector.streams, "levi", 3)
    world.show(old, 6400)
    replicas.added({"a": exposed(old)})
    world.show(new, 320)
    block, _ = replicas.added({"a": exposed(new)})
    assert block.tolist() == new.read()["counts"].tolist()


def test_workers_that_change_over(detector: Detector, world: World, tmp_path: Path) -> None:
    """While some workers of a server serve one version and some another, its bins are of either, as the one happens to
    answer: they are left out, and what was added meanwhile counts when all serve this version again.
    """
    old, new = (Monitor(world.reference(), detector, None) for _ in range(2))
    world.show(old, 6400)
    world.show(new, 320)
    first, second = Serving(tmp_path, 0), Serving(tmp_path, 1)

    def told(monitor: Monitor) -> str:
        registry = CollectorRegistry()
        registry.register(first)
        registry.register(MonitorCollector(monitor))
        return generate_latest(registry).decode()

    first.change("levi", "3", "entity")
    second.change("levi", "3", "entity")
    replicas = Replicas(detector.streams, "levi", 3)
    replicas.added({"a": told(old)})
    second.change("levi", "4", "entity")
    for answering in (old, new, old, new):
        block, missing = replicas.added({"a": told(answering)})
        assert not block.any()
        assert missing == {"a": "it serves levi/3 and levi/4, not levi/3"}
    world.show(old, 320)
    second.change("levi", "3", "entity")
    block, missing = replicas.added({"a": told(old)})
    assert (int(block[0].sum()), missing) == (320, {})
    first.change("levi", "4", "entity")
    second.change("levi", "4", "entity")
    assert replicas.added({"a": told(new)})[1] == {"a": "it serves levi/4, not levi/3"}


def test_who_is_left_out(detector: Detector, world: World) -> None:
    """A server that is away, of another version, without a monitor or no such server is named, and the others count."""
    monitor = Monitor(world.reference(), detector, None)
    metrics = Metrics()
    metrics.serving("levi", 3, "entity")
    texts = {
        "good": exposed(monitor),
        "away": ReplicaError("refused"),
        "old": exposed(monitor, version=2),
        "off": metrics.text().decode(),
        "noise": "levi_monitor_score_bin_total{score=",
    }
    replicas = Replicas(detector.streams, "levi", 3)
    replicas.added(texts)
    world.show(monitor, 320)
    block, missing = replicas.added({**texts, "good": exposed(monitor)})
    assert block.tolist() == monitor.read()["counts"].tolist()
    assert missing["away"] == "refused"
    assert missing["old"] == "it serves levi/2, not levi/3"
    assert missing["off"] == "it has no monitor"
    assert missing["noise"].startswith("its metrics are not as expected")
    assert np.count_nonzero(block) > 0
