"""How much is watched: no more than the predictions a second that the time between false alarms is reckoned with."""

from __future__ import annotations


class Ration:
    """Fills up with time, to a second's worth. What is granted depends on when and how many are asked for, and on no
    prediction.
    """

    def __init__(self, rate: float, now: float) -> None:
        """`rate` predictions a second, from `now` [s] on."""
        self._rate = rate
        self._left = self._most = max(rate, 1.0)
        self._now = now

    def grants(self, count: int, now: float) -> bool:
        """Whether the next `count` predictions, asked for at `now` [s], are watched: all of a batch or none of it. What
        it takes too much the following ones lack.
        """
        self._left = min(self._most, self._left + (now - self._now) * self._rate)
        self._now = now
        if self._left <= 0:
            return False
        self._left -= count
        return True
