"""levi_serve.monitor.watch: whom the monitor believes."""

from __future__ import annotations

import itertools
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from levi_serve.bundle.reference import Reference
from levi_serve.monitor.detector import Detector
from levi_serve.monitor.streams import BLOCK
from levi_serve.monitor.watch import LONGEST, Monitor, estimated_rmse, head_ratings, true_rmse

from .conftest import World


def test_quiet_in_distribution(monitor: Monitor, world: World) -> None:
    """64,000 predictions like the reference raise no alarm, and fill the bins evenly."""
    world.show(monitor, 64_000)
    record = monitor.read()
    assert (record["alarm_count"], record["predictions"]) == (0, 64_000)
    share = record["counts"][0] / record["counts"][0].sum()
    assert share == pytest.approx(np.full(20, 0.05), abs=0.01)


@pytest.mark.parametrize("change", [{"noise": 0.3}, {"noise": 0.0}, {"shift": 0.5}, {"shift": -0.5}, {"new": 0.3}])
def test_a_shift_is_found(monitor: Monitor, world: World, change: dict[str, float]) -> None:
    """More or no disagreement, a level that all heads share, and unseen items are found within 640 predictions."""
    world.show(monitor, 6400)
    assert not monitor.read()["active"]
    world.show(monitor, 640, **change)  # type: ignore[arg-type]
    assert monitor.read()["active"]


def test_a_restart_on_shifted_traffic(reference: Reference, detector: Detector, world: World) -> None:
    """A monitor that never saw anything else still knows what traffic should be like."""
    monitor = Monitor(reference, detector, None)
    world.show(monitor, 640, noise=0.3)
    assert monitor.read()["active"]


def test_one_user_is_one_voice(monitor: Monitor, world: World) -> None:
    """A user who sends 90 % of the requests, all strange, raises no alarm; the same strangeness of all users does."""
    strange = itertools.cycle([True] * 9 + [False])
    for _ in range(4000):
        if next(strange):
            world.show(monitor, 32, noise=0.4, users=lambda n: [7] * n)
        else:
            world.show(monitor, 32)
    record = monitor.read()
    assert record["alarm_count"] == 0
    assert record["blocks"] > 100
    world.show(monitor, 640, noise=0.4)
    assert monitor.read()["alarm_count"] == 1


def test_a_block_is_of_different_users(monitor: Monitor, world: World) -> None:
    """Repeated users fill no block, up to a limit."""
    world.show(monitor, 32 * 100, users=lambda n: [1, 2] * (n // 2))
    assert monitor.read()["blocks"] == 0
    world.show(monitor, LONGEST, users=lambda n: [1, 2] * (n // 2))
    record = monitor.read()
    assert record["blocks"] == 1
    assert record["counts"][0].sum() == 2


def test_numbers_that_are_none(monitor: Monitor, reference: Reference, world: World) -> None:
    """NaN counts as stranger than everything, and spoils no average."""
    for start in range(0, 8 * BLOCK, 32):
        heads = world.heads(32) * np.float32(np.nan)
        known = np.ones(32, np.bool_)
        scores = reference.scorer(heads, world.support(32))
        monitor.observe(list(range(start, start + 32)), scores, heads, ~known, (known, known))
    record = monitor.read()
    assert record["counts"][0, 19] == 8 * BLOCK
    assert record["active"]
    assert head_ratings(record) is None
    assert np.isfinite(record["spread_sum"])


def test_a_clock_that_jumps(reference: Reference, detector: Detector) -> None:
    """Evidence does not depend on the time of day: jumps back and forth end with the same as a clock that stands."""
    times = itertools.cycle([0.0, 1e9, 5.0, -3.0])
    found = []
    for clock in (lambda: next(times), lambda: 0.0):
        monitor = Monitor(reference, detector, None, clock)
        World().show(monitor, 6400, noise=0.205)
        found.append(monitor.read()["evidence"].tobytes())
    assert found[0] == found[1]


def test_two_workers_one_state(reference: Reference, detector: Detector, world: World, tmp_path: Path) -> None:
    """What two monitors over one file watch is added up, whoever is asked; one that ends hands over what it counted."""
    workers = [Monitor(reference, detector, tmp_path / "state") for _ in range(2)]
    for _ in range(20):
        for worker in workers:
            world.show(worker, 96)
    workers[0].close()
    world.show(workers[1], 32)
    record = workers[1].read()
    assert record["predictions"] == 20 * 2 * 96 + 32
    assert record["blocks"] >= 20 * 2 * 96 // (BLOCK + 32) - 2


def test_a_busy_state_costs_nothing(reference: Reference, detector: Detector, world: World, tmp_path: Path) -> None:
    """While another process holds the state, predictions are watched and handed over later."""
    one, other = (Monitor(reference, detector, tmp_path / "state") for _ in range(2))
    with other._state.change():
        world.show(one, 640)
    assert one.read()["predictions"] == 640


def test_errors(monitor: Monitor, world: World) -> None:
    """Without labels the estimate in distribution is the measured error; with more disagreement it is not lower; true
    errors are told when they come.
    """
    record = monitor.read()
    assert (estimated_rmse(monitor.reference, record), true_rmse(record)) == (None, None)
    world.show(monitor, 32_000)
    usual = estimated_rmse(monitor.reference, monitor.read())
    assert usual == pytest.approx(monitor.reference.rmse, rel=0.02)
    world.show(monitor, 32_000, noise=0.4)
    strange = estimated_rmse(monitor.reference, monitor.read())
    assert usual is not None
    assert strange is not None
    assert strange >= usual
    monitor.observe_errors(np.array([0.25, 0.25]))
    assert true_rmse(monitor.read()) == pytest.approx(0.5)


def test_memory_is_flat(monitor: Monitor, world: World) -> None:
    """Ten times the predictions take no more memory."""
    world.show(monitor, 6400)
    tracemalloc.start()
    world.show(monitor, 6400)
    before = tracemalloc.get_traced_memory()[0]
    world.show(monitor, 64_000)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 20_000
