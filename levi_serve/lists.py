"""Lists that are under way, from their head to their answer. Reading, checking and writing a list takes longer than the
model does, and no queue of the engine shows it: how many may be under way follows from how fast they come out.
"""

from __future__ import annotations

import math
from time import perf_counter

from levi_serve.pace import Pace

_SHARE = 0.5
"""The part of a caller's time that those before may take; the rest is for what the estimate does not see."""
_FEW = 16
"""So many may be under way whatever they take, if their callers have the time."""
_LONGEST_S = 0.1
"""What more than a few wait at most, whatever time they have: more of them would only find the queue full."""
_SMOOTH = 0.05
"""Weight of the newest list in the pace: they come out several at a time."""


class Lists:
    """Those of one process."""

    def __init__(self) -> None:
        """Nothing is under way."""
        self._under_way = 0
        self._pace = Pace(_SMOOTH)

    def crowded(self, deadline: float, now: float) -> int:
        """0 if a list that comes now is likely to be answered by its deadline [`perf_counter` seconds] and soon; else
        the seconds until one may be.
        """
        seconds = self._under_way * self._pace.seconds / _SHARE
        longest = deadline - now if self._under_way < _FEW else min(deadline - now, _LONGEST_S)
        return max(1, math.ceil(seconds)) if deadline - now > 0 and seconds > longest else 0

    def begin(self) -> None:
        """One was let in."""
        self._under_way += 1

    def end(self) -> None:
        """One was answered, or its client has gone."""
        self._under_way -= 1
        self._pace.out(1, perf_counter(), more=self._under_way > 0)
