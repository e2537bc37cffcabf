"""levi_serve.queues against models that say the same more slowly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from levi_serve import queues
from levi_serve.batcher import Job
from levi_serve.errors import DeadlineError
from levi_serve.queues import Lengths, Turns

NOW = 1000.0


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queues, "perf_counter", lambda: NOW)


def job(items: Sequence[Any], deadline: float = math.inf, replies: list[Any] | None = None) -> Job[Any, Any]:
    """A job; its replies are kept in `replies`."""
    return Job(items, deadline, (replies if replies is not None else []).append, NOW)


def taken(queue: Any) -> list[Any]:
    """The items of the next run."""
    return [job.items[place] for job, place in queue.take()]


def lengths(max_batch: int = 4, max_tokens: int = 100, window: int = 32) -> Lengths[Any, Any]:
    """Items are (anything, length)."""
    return Lengths(lambda item: item[1], max_batch, max_tokens, window)


def test_first_come_first_served() -> None:
    """Runs are filled from the front, across jobs."""
    queue = Turns[Any, Any](3)
    for items in ("a", "bc", "d", "e"):
        queue.add(job(items))
    assert len(queue) == 5
    assert [taken(queue), taken(queue), taken(queue)] == [["a", "b", "c"], ["d", "e"], []]
    assert len(queue) == 0


def test_a_thousand_items_delay_a_later_one_by_one_run() -> None:
    """What comes after a long list waits for the run that takes its next part, and for no further one."""
    queue = Turns[Any, Any](32)
    queue.add(job(range(1000)))
    assert taken(queue) == list(range(32))
    queue.add(job(["late"]))
    assert taken(queue) == list(range(32, 64))
    assert taken(queue) == ["late", *range(64, 95)]


def test_long_lists_take_turns() -> None:
    """Each of several long lists gets a run in turn, and a late single item waits for one run of each at most."""
    queue = Turns[Any, Any](4)
    for name in "abc":
        queue.add(job([name] * 40))
    assert taken(queue) == ["a"] * 4
    queue.add(job(["late"]))
    assert [taken(queue) for _ in range(3)] == [["b"] * 4, ["c"] * 4, ["a"] * 4]
    assert taken(queue) == ["late", "b", "b", "b"]


@pytest.mark.parametrize("make", [lambda: Turns[Any, Any](4), lengths])
def test_jobs_that_are_over_are_skipped(make: Any) -> None:
    """Cancelled, answered and expired jobs are taken by no run; only the expired ones are told, once; at the very
    deadline there is still time.
    """
    queue = make()
    replies: dict[str, list[Any]] = {name: [] for name in ("cancelled", "failed", "late", "just", "fine")}
    jobs = {
        name: job([(name, 1)] * 2, NOW - 1e-6 if name == "late" else NOW if name == "just" else math.inf, told)
        for name, told in replies.items()
    }
    for each in jobs.values():
        queue.add(each)
    jobs["cancelled"].cancel()
    jobs["failed"].end(ValueError())
    assert sorted(taken(queue)) == [("fine", 1)] * 2 + [("just", 1)] * 2
    assert taken(queue) == []
    assert len(queue) == 0
    assert [[type(told) for told in told_all] for told_all in replies.values()] == [
        [],
        [ValueError],
        [DeadlineError],
        [],
        [],
    ]


@pytest.mark.parametrize("make", [lambda: Turns[Any, Any](1), lambda: lengths(max_batch=1)])
def test_a_job_that_is_over_midway(make: Any) -> None:
    """What is left of a job that ends between two of its runs is not taken."""
    queue = make()
    first = job([("a", 1)] * 3)
    queue.add(first)
    queue.add(job([("b", 1)]))
    assert taken(queue) == [("a", 1)]
    first.cancel()
    assert [taken(queue), taken(queue)] == [[("b", 1)], []]
    assert len(queue) == 0


class SlowTurns:
    """Turns, one item at a time: jobs in a ring, of which each gives up to what is left of the run."""

    def __init__(self, max_batch: int) -> None:
        self.ring: list[list[Any]] = []
        self.max_batch = max_batch

    def take(self) -> list[Any]:
        batch: list[Any] = []
        again: list[list[Any]] = []
        while self.ring and len(batch) < self.max_batch:
            items = self.ring.pop(0)
            while items and len(batch) < self.max_batch:
                batch.append(items.pop(0))
            if items:
                again.append(items)
        self.ring += again
        return batch


steps = st.lists(st.one_of(st.integers(1, 20), st.none()), max_size=40)
"""A job of that many items, or a run."""


@settings(max_examples=200, deadline=None, derandomize=True)
@given(steps=steps, max_batch=st.integers(1, 8))
def test_turns_are_as_in_the_slow_model(steps: list[int | None], max_batch: int) -> None:
    """For any order of jobs and runs the batches are those of the model above, and `len` is what is left."""
    queue, model = Turns[Any, Any](max_batch), SlowTurns(max_batch)
    for number, size in enumerate([*steps, *[None] * 200]):
        if size is None:
            assert taken(queue) == model.take()
        else:
            queue.add(job([(number, place) for place in range(size)]))
            model.ring.append([(number, place) for place in range(size)])
        assert len(queue) == sum(map(len, model.ring))


class SlowLengths:
    """Lengths over plain lists. Each item has a turn: one more than that of the last run's first item, and one more for
    each item before it in its job. The line is sorted by turn and arrival.
    """

    def __init__(self, max_batch: int, max_tokens: int, window: int) -> None:
        self.limits = max_batch, max_tokens, window
        self.line: list[tuple[int, int, Any]] = []
        self.turn = self.arrivals = 0

    def add(self, items: list[Any]) -> None:
        for place, item in enumerate(items):
            self.line.append((self.turn + 1 + place, self.arrivals, item))
            self.arrivals += 1

    def take(self) -> list[Any]:
        max_batch, max_tokens, window = self.limits
        self.line.sort(key=lambda entry: entry[:2])
        if not self.line:
            return []
        first = self.line[0]
        self.turn = first[0]
        rest = sorted(self.line[1:window], key=lambda entry: (abs(entry[2][1] - first[2][1]), entry[:2]))
        chosen = [first]
        for entry in rest:
            padded = max(e[2][1] for e in [*chosen, entry]) * (len(chosen) + 1)
            sizes = [e[2][1] for e in [*chosen, entry]]
            if len(chosen) == max_batch or padded > max_tokens or max(sizes) > 2 * min(sizes):
                break
            chosen.append(entry)
        self.line = [entry for entry in self.line if entry not in chosen]
        return [item for _, _, item in sorted(chosen, key=lambda entry: entry[:2])]


sentences = st.lists(st.integers(1, 60), min_size=1, max_size=12)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    steps=st.lists(st.one_of(sentences, st.none()), max_size=30),
    max_batch=st.integers(1, 8),
    max_tokens=st.integers(1, 150),
    window=st.integers(1, 20),
)
def test_lengths_are_as_in_the_slow_model(
    steps: list[list[int] | None], max_batch: int, max_tokens: int, window: int
) -> None:
    """For any order of jobs and runs: every item is taken exactly once, as in the model above; the first in line goes
    with every run; no run is larger than allowed, in items or in padded tokens, but for one long item alone; nothing is
    padded to more than twice its length.
    """
    queue, model = Lengths[Any, Any](lambda item: item[1], max_batch, max_tokens, window), None
    model = SlowLengths(max_batch, max_tokens, window)
    added, ran = [], []
    for number, sizes in enumerate([*steps, *[None] * 400]):
        if sizes is None:
            first = min(model.line, default=None)
            batch = taken(queue)
            assert batch == model.take()
            assert first is None or batch[0] == first[2]
            assert len(batch) <= max_batch
            sizes = [length for _, length in batch]
            assert len(batch) <= 1 or max(sizes) * len(batch) <= max_tokens
            assert not batch or max(sizes) <= 2 * min(sizes)
            ran += batch
        else:
            items = [((number, place), length) for place, length in enumerate(sizes)]
            queue.add(job(items))
            model.add(items)
            added += items
        assert len(queue) == len(model.line)
    assert sorted(ran) == sorted(added)


def test_like_goes_with_like() -> None:
    """Sentences nearest in length to the first in line go with it, though others came before them."""
    queue = lengths(max_batch=3, max_tokens=1000)
    for name, length in [("a", 10), ("b", 90), ("c", 11), ("d", 91), ("e", 9), ("f", 92)]:
        queue.add(job([(name, length)]))
    assert [name for name, _ in taken(queue)] == ["a", "c", "e"]
    assert [name for name, _ in taken(queue)] == ["b", "d", "f"]


def test_a_run_is_as_long_as_its_padding_allows() -> None:
    """A run holds as many sentences as fit at the length of its longest, and one that fits nowhere goes alone."""
    queue = lengths(max_batch=10, max_tokens=100)
    for length in (20, 25, 26, 20, 500, 20):
        queue.add(job([("x", length)]))
    assert [length for _, length in taken(queue)] == [20, 25, 20, 20]
    assert [length for _, length in taken(queue)] == [26]
    assert [length for _, length in taken(queue)] == [500]


def test_one_long_sentence_does_not_hold_up_short_ones() -> None:
    """Short sentences do not share a run with a long one, whoever is first: it costs them its own run, no padding."""
    queue = lengths(max_batch=8, max_tokens=4096)
    for name, length in [("short", 8), ("long", 128), *[("short", 8)] * 12]:
        queue.add(job([(name, length)]))
    assert [taken(queue) for _ in range(3)] == [[("short", 8)] * 8, [("long", 128)], [("short", 8)] * 5]


def test_nothing_is_padded_to_more_than_twice_its_length() -> None:
    """Sentences share a run as long as the longest of them is not more than twice the shortest."""
    queue = lengths(max_batch=8, max_tokens=4096)
    for length in (30, 20, 41, 40, 19, 15, 10):
        queue.add(job([("x", length)]))
    assert [[length for _, length in taken(queue)] for _ in range(3)] == [[30, 20, 40], [41], [19, 15, 10]]


def test_beyond_the_window_nobody_is_looked_for() -> None:
    """Only those who stand near the front may go early: a later twin of the first in line waits for its turn."""
    queue = lengths(max_batch=2, max_tokens=1000, window=3)
    for name, length in [("a", 30), ("b", 60), ("c", 40), ("d", 30)]:
        queue.add(job([(name, length)]))
    assert [name for name, _ in taken(queue)] == ["a", "c"]
    assert [name for name, _ in taken(queue)] == ["b", "d"]


def test_the_line_is_fair_to_short_jobs() -> None:
    """A single sentence that comes after a list of a thousand of its own length is in the next run."""
    queue = lengths(max_batch=8, max_tokens=1000)
    queue.add(job([(f"long{i}", 10) for i in range(1000)]))
    for _ in range(5):
        taken(queue)
    queue.add(job([("late", 10)]))
    assert "late" in [name for name, _ in taken(queue)]


def test_the_line_is_fair_to_long_jobs() -> None:
    """A list goes on though newcomers, all alike and unlike it, keep the queue full for as long as it takes."""
    queue = lengths(max_batch=4, max_tokens=1000, window=8)
    queue.add(job([("list", 50)] * 20))
    missing, rounds = 20, 0
    while missing:
        rounds += 1
        assert rounds < 1000
        while len(queue) < 40:
            queue.add(job([("new", 10)]))
        missing -= taken(queue).count(("list", 50))
