"""levi_serve.pace by hand."""

from __future__ import annotations

from levi_serve.pace import Pace


def test_by_hand() -> None:
    """The first observation counts alone, later ones by their weight, idle times not at all."""
    pace = Pace(0.25)
    pace.out(1, 100.0, more=True)
    assert pace.seconds == 0  # nothing is known of how long the first one took
    pace.out(4, 102.0, more=True)
    assert pace.seconds == 0.5
    pace.out(1, 104.5, more=False)
    assert pace.seconds == 0.5 + 0.25 * (2.5 - 0.5)
    pace.out(1, 900.0, more=True)  # nobody waited before it
    assert pace.seconds == 1.0
    pace.out(2, 904.0, more=False)
    assert pace.seconds == 1.0 + 0.25 * (2.0 - 1.0)
