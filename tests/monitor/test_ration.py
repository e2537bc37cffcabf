"""levi_serve.monitor.ration: how much is watched."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from levi_serve.monitor.ration import Ration


def test_by_hand() -> None:
    """Ten a second: a second's worth at once, then nothing until the debt of the last batch is paid."""
    ration = Ration(10.0, 5.0)
    assert [ration.grants(6, 5.0), ration.grants(6, 5.0), ration.grants(1, 5.0)] == [True, True, False]
    assert [ration.grants(1, 5.15), ration.grants(1, 5.25), ration.grants(1, 5.25)] == [False, True, False]
    assert [ration.grants(9, 100.0), ration.grants(1, 100.0), ration.grants(1, 100.0)] == [True, True, False]


def test_one_now_and_then() -> None:
    """Less than one a second still lets one through, and then as much less."""
    ration = Ration(0.01, 0.0)
    assert [ration.grants(1, t) for t in (0.0, 0.0, 50.0, 99.0, 101.0)] == [True, False, True, False, True]


@given(
    rate=st.floats(0.5, 2000),
    asked=st.lists(st.tuples(st.integers(1, 100), st.floats(0, 0.5)), min_size=1, max_size=200),
)
def test_never_more_than_the_rate(rate: float, asked: list[tuple[int, float]]) -> None:
    """Over any time from the start: a second's worth, what time brings, and the rest of one batch."""
    ration, now, granted = Ration(rate, 0.0), 0.0, 0
    for count, pause in asked:
        now += pause
        granted += count * ration.grants(count, now)
        assert granted <= max(rate, 1.0) + rate * now + 100
    assert granted >= min(sum(count for count, _ in asked), 1)
