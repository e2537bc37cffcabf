"""How fast things come out while there is always a next one."""

from __future__ import annotations


class Pace:
    """Smoothed seconds a piece, whatever else the process does meanwhile included."""

    def __init__(self, weight: float) -> None:
        """`weight` in 0 … 1 is that of the newest observation; the first one counts alone."""
        self.seconds = 0.0
        """Seconds a piece; 0 until it is known."""
        self._weight = weight
        self._since: float | None = None
        """When the last ones came out, if they left others behind."""

    def out(self, count: int, now: float, more: bool) -> None:
        """`count` pieces came out, `now` in `perf_counter` seconds; whether `more` wait. Idle times are no pace."""
        if self._since is not None:
            self.seconds += ((now - self._since) / count - self.seconds) * (self._weight if self.seconds else 1.0)
        self._since = now if more else None
