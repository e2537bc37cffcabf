"""levi_serve.lists by hand: how many lists may be under way follows from how fast they come out."""

from __future__ import annotations

import math

import pytest

from levi_serve import lists
from levi_serve.lists import Lists


def test_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten come in, and one is answered every 5 ms: the eight left take 40 ms, half of a caller's time."""
    times = iter([100.0, 100.005])
    monkeypatch.setattr(lists, "perf_counter", lambda: next(times))
    some = Lists()
    for _ in range(10):
        assert some.crowded(1.0, 0.0) == 0  # nothing is known of their pace
        some.begin()
    some.end()
    some.end()
    assert some.crowded(102.079, 102.0) == 1
    assert some.crowded(102.081, 102.0) == 0
    assert some.crowded(math.inf, 102.0) == 0
    assert some.crowded(101.0, 102.0) == 0  # late already: that is told otherwise
    for _ in range(7):
        some.begin()
    assert some.crowded(math.inf, 102.0) == 0  # fifteen are few
    some.begin()
    assert some.crowded(math.inf, 102.0) == 1  # sixteen: 160 ms


def test_idle_times_are_no_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """One list after the other says nothing of how fast many come out."""
    monkeypatch.setattr(lists, "perf_counter", iter(range(0, 1000, 100)).__next__)
    some = Lists()
    for _ in range(5):
        some.begin()
        some.end()
    some.begin()
    assert some.crowded(1e-9, 0.0) == 0
