"""levi_serve.monitor.watch: whom the monitor believes."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from levi_serve.bundle.reference import Reference
from levi_serve.bundle.scores import BINS, bins_of
from levi_serve.monitor.detector import Detector
from levi_serve.monitor.rounds import LONGEST, Rounds
from levi_serve.monitor.streams import BLOCK, ROUND
from levi_serve.monitor.watch import (
    _KEPT,
    BATCHES,
    CHUNK,
    MANY,
    Monitor,
    block_counts,
    estimated_rmse,
    head_ratings,
    true_rmse,
)

from .conftest import HEADS, World


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


def test_no_more_than_the_rate_is_watched(reference: Reference, detector: Detector, world: World) -> None:
    """Of 64,000 predictions in less than an hour at one an hour, one batch is watched; the others are counted."""
    monitor = Monitor(reference, detector, None, rate=1 / 3600)
    world.show(monitor, 64_000, noise=0.3)
    record = monitor.read()
    assert (record["predictions"], record["passed_over"]) == (32, 63_968)
    assert not record["active"]


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
    assert record["blocks"] > 1000
    world.show(monitor, 640, noise=0.4)
    assert monitor.read()["alarm_count"] == 1


def test_few_users_move_nothing(monitor: Monitor, world: World) -> None:
    """Two users are heard twice in a round that only its length ends: they fill a block in four rounds."""
    world.show(monitor, 3 * LONGEST, users=lambda n: [1, 2] * (n // 2))
    assert monitor.read()["blocks"] == 0
    world.show(monitor, 32, users=lambda n: [1, 2] * (n // 2))
    record = monitor.read()
    assert record["blocks"] == 1
    assert record["counts"][0].sum() == BLOCK


VALUES = st.sampled_from([np.nan, np.inf, -np.inf, 0.0, *np.linspace(-1, 6, 40).tolist()])


@settings(max_examples=30)
@given(data=st.data(), new=st.booleans())
def test_blocks_are_those_of_one_prediction_after_the_other(
    reference: Reference, data: st.DataObject, new: bool
) -> None:
    """Whatever the scores, numbers or not, and however they come in batches, the blocks are those of a plain loop."""
    count = data.draw(st.integers(1, 5 * BLOCK))
    users = data.draw(st.lists(st.integers(0, 20), min_size=count, max_size=count))
    scores = np.array(data.draw(st.lists(st.tuples(*[VALUES] * 6), min_size=count, max_size=count)), np.float32)
    scores[:, 0] = np.abs(scores[:, 0])
    rows = data.draw(st.lists(st.integers(0, count - 1), max_size=20))
    scores[rows] = reference.edges[:, rows[0] % (BINS - 1)] if rows else 0  # where bins begin
    known = np.array(data.draw(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=count, max_size=count)))
    ends = sorted(data.draw(st.sets(st.integers(1, count))) | {count})
    monitor = Monitor(reference, Detector.of(reference, np.inf, new), None, lambda: 0.0)
    monitor._next, start = np.inf, 0
    for end in ends:
        trained = tuple(side[start:end].copy() for side in known.T)
        monitor.observe(users[start:end], scores[start:end], np.ones((end - start, HEADS)), trained)  # type: ignore[arg-type]
        if data.draw(st.booleans()):
            monitor._take_in()
        start = end
    monitor._take_in()
    heard, bins = set[int](), list[list[int]]()
    for user, score, trained in zip(users, scores, known, strict=True):
        if user not in heard:
            heard.add(user)
            numbers = score if np.isfinite(score[0]) else score * np.nan
            of = [
                BINS - 1 if np.isnan(x) else int((edges <= x).sum())
                for x, edges in zip(numbers, reference.edges, strict=True)
            ]
            bins.append(of + [0 if one else BINS - 1 for one in trained] * new)
    full = [bins[at : at + BLOCK] for at in range(0, len(bins) // BLOCK * BLOCK, BLOCK)]
    expected = [
        [[[one[row] for one in block].count(b) for b in range(BINS)] for row in range(6 + 2 * new)] for block in full
    ]
    found = np.concatenate([np.empty((6 + 2 * new, BINS, 0), np.int64), *monitor._blocks], axis=-1)
    assert np.moveaxis(found, -1, 0).tolist() == expected
    assert monitor._watched.new.tolist() == (~known).sum(axis=0).tolist()


@given(st.lists(st.integers(0, ROUND + 40), max_size=6 * ROUND), st.integers(1, 300))
def test_rounds(users: list[int], batch: int) -> None:
    """However predictions are batched, each user is heard where a plain loop hears them."""
    rounds, found, expected, seen = Rounds(), [], [], set[int]()
    for start in range(0, len(users), batch):
        found += [start + place for place, heard in enumerate(rounds.heard(users[start : start + batch])) if heard]
    for place, user in enumerate(users):
        if user not in seen:
            seen.add(user)
            expected.append(place)
        if len(seen) == ROUND:
            seen.clear()
    assert found == expected


def test_counts_of_blocks_by_hand() -> None:
    """Two scores of two blocks."""
    bins = np.array([[3] * BLOCK + [0] * BLOCK, [5, 6] * BLOCK])
    counts = block_counts(bins)
    assert counts.shape == (2, 20, 2)
    assert (counts[0, 3, 0], counts[0, 0, 1], counts.sum()) == (BLOCK, BLOCK, 4 * BLOCK)
    assert counts[1, 5:7].tolist() == [[BLOCK // 2] * 2] * 2


def test_bins_are_those_of_the_calibration(monitor: Monitor, reference: Reference, world: World) -> None:
    """Scores anywhere, at the beginnings of bins, and no numbers at all are counted where `bins_of` puts them."""
    count = 16 * BLOCK
    scores = reference.scorer(world.heads(count, noise=0.3), world.support(count))
    for column, edges in enumerate(reference.edges):
        scores[: len(edges), column] = edges
    scores[40] = np.nan
    trained = (world.rng.random(count) < 0.5, world.rng.random(count) < 0.9)
    monitor.observe(list(range(count)), scores, world.heads(count).astype(np.float64), trained)
    bins = np.concatenate([bins_of(scores, reference.edges), ~np.stack(trained) * (BINS - 1)])
    expected = [np.bincount(row, minlength=BINS).tolist() for row in bins]
    assert monitor.read()["counts"].tolist() == expected


@pytest.mark.parametrize("batch", [1, 7, 32, CHUNK + 1])
def test_batches_and_hand_overs_do_not_matter(
    reference: Reference, detector: Detector, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same predictions end with the same evidence and counts, however they are batched and whenever the state is
    changed.
    """
    world, count = World(), 4 * (CHUNK + 1) * 7
    heads, who, known = world.heads(count), world.rng.integers(0, 500, count).tolist(), np.ones(count, np.bool_)
    scores = reference.scorer(heads, world.support(count))
    found = []
    for size, pause in ((batch, 0.0), (32, 1e9)):
        monkeypatch.setattr("levi_serve.monitor.watch.PAUSE_S", pause)
        monitor = Monitor(reference, detector, None, lambda: 0.0)
        for at in range(0, count, size):
            part = slice(at, at + size)
            monitor.observe(who[part], scores[part], heads[part], (known[part], known[part]))
        record = monitor.read()
        found.append([record[name].tobytes() for name in ("predictions", "evidence", "counts", "blocks", "spreads")])
    assert found[0] == found[1]


def test_numbers_that_are_none(monitor: Monitor, reference: Reference, world: World) -> None:
    """NaN counts as stranger than everything, and spoils no average."""
    for start in range(0, 8 * BLOCK, 32):
        heads = world.heads(32) * np.float32(np.nan)
        known = np.ones(32, np.bool_)
        scores = reference.scorer(heads, world.support(32))
        monitor.observe(list(range(start, start + 32)), scores, heads, (known, known))
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
    assert record["blocks"] >= 20 * 2 * 96 // BLOCK - 2


def test_a_busy_state_costs_nothing(reference: Reference, detector: Detector, world: World, tmp_path: Path) -> None:
    """While another process holds the state, predictions are watched and handed over later, however many."""
    one, other = (Monitor(reference, detector, tmp_path / "state") for _ in range(2))
    with other._state.change():
        world.show(one, 640)
        for _ in range(80):
            world.show(one, CHUNK)
            one.settle()
        assert len(one._blocks) <= _KEPT
    record = one.read()
    assert record["predictions"] == 640 + 80 * CHUNK
    assert record["counts"][0].sum() > 70 * CHUNK


def test_the_state_is_changed_seldom(reference: Reference, detector: Detector, world: World) -> None:
    """Within a pause predictions are only counted; after one, what was counted is told at once, or a single block."""
    monitor = Monitor(reference, detector, None, lambda: 0.0)
    world.show(monitor, 32)
    assert monitor._state.read()["predictions"] == 32
    monitor._next = np.inf
    world.show(monitor, CHUNK)
    assert monitor._state.read()["predictions"] == 32
    assert monitor._waiting == 0
    for told in (0, 2 * BLOCK):
        monitor._next = -np.inf
        world.show(monitor, BLOCK, batch=BLOCK)
        assert monitor._state.read()["predictions"] == 32 + CHUNK + told


class Turns(list[tuple[Callable[..., object], object]]):
    """An event loop in which we say when a turn comes."""

    def soon(self, *call: Any) -> None:
        self.append(call)

    def next(self) -> None:
        (work, soon) = self.pop()
        work(soon)
        assert len(self) < 2


def test_many_blocks_do_not_wait_for_a_pause(reference: Reference, detector: Detector, world: World) -> None:
    """They are told as soon as they are counted, and more than that in several turns."""
    monitor, turns, everybody = Monitor(reference, detector, None, lambda: 0.0), Turns(), itertools.count()

    def show(count: int, soon: Callable[..., object] | None = None) -> None:
        world.show(monitor, count, users=lambda n: list(itertools.islice(everybody, n)), soon=soon)

    monitor._next = np.inf
    show(2 * CHUNK)
    assert monitor._state.read()["blocks"] == 2 * CHUNK // BLOCK >= MANY
    with monitor._state.change():
        show(6 * CHUNK)
    monitor._next = -np.inf
    show(32, turns.soon)
    told = [monitor._state.read()["blocks"]]
    while turns:
        turns.next()
        told.append(monitor._state.read()["blocks"])
    assert np.diff(told).tolist() == [2 * MANY, 2 * MANY]
    assert told[-1] == 8 * CHUNK // BLOCK


def test_one_thing_in_a_turn(
    reference: Reference, detector: Detector, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A turn counts so many predictions or batches at most, or changes the state; the call itself does nothing."""
    monitor, turns = Monitor(reference, detector, None, lambda: 0.0), Turns()
    with monkeypatch.context() as patches:
        patches.setattr("levi_serve.monitor.watch.MANY", np.inf)
        monitor._next = np.inf
        for size in (1, 7, 32):
            for _ in range(3 * CHUNK // size):
                world.show(monitor, size, batch=size, soon=turns.soon)
                assert monitor._waiting < CHUNK + size
                assert len(monitor._held) <= BATCHES
                if turns:
                    turns.next()
                    assert (monitor._waiting, len(turns)) == (0, 0)
    monitor.settle()
    before = monitor._state.read()["predictions"]
    monitor._next = -np.inf
    world.show(monitor, 32, soon=turns.soon)
    assert monitor._waiting == 32
    turns.next()
    assert (monitor._waiting, monitor._state.read()["predictions"]) == (0, before)
    turns.next()
    assert monitor._state.read()["predictions"] == before + 32
    assert not turns


def test_a_turn_after_the_end(
    reference: Reference, detector: Detector, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is still to come when the monitor is closed does nothing, even if not all could be told."""
    monkeypatch.setattr("levi_serve.monitor.watch.PAUSE_S", 0.0)
    one, other = (Monitor(reference, detector, tmp_path / "state") for _ in range(2))
    turns = Turns()
    world.show(one, 32, soon=turns.soon)
    with other._state.change():
        one.close()
    turns.next()
    assert not turns


def test_a_hot_user_is_counted_together(reference: Reference, detector: Detector, world: World) -> None:
    """Predictions that fill no block are told like others, and no sooner."""
    monitor = Monitor(reference, detector, None, lambda: 0.0)
    world.show(monitor, 8 * BLOCK, users=lambda n: [7] * n, batch=BLOCK)
    assert monitor._state.read()["predictions"] == BLOCK
    assert monitor._waiting == 7 * BLOCK


def test_errors(monitor: Monitor, world: World) -> None:
    """Without labels the estimate in distribution is the measured error; with more disagreement it is higher; true
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
    assert strange > 1.1 * usual
    monitor.observe_errors(np.array([0.25, 0.25]))
    assert true_rmse(monitor.read()) == pytest.approx(0.5)
    monitor.observe_errors(np.array([0.25]))
    assert monitor.read()["true_ratings"] == 3


def test_memory_is_flat(monitor: Monitor, world: World) -> None:
    """Ten times the predictions take no more memory."""
    world.show(monitor, 6400)
    tracemalloc.start()
    world.show(monitor, 6400)
    monitor.settle()  # what is held, and what a round remembers, is bounded, but never the same
    before = tracemalloc.get_traced_memory()[0]
    world.show(monitor, 64_000)
    monitor.settle()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 40_000  # users of a round, more or fewer of them: not a byte a prediction
