"""Connections whose request was refused. They are read again after a pause, so many at a time that refusing never takes
the core from answering: a client that was told when to come again, and comes at once, waits in its own socket.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from time import process_time

from levi_serve.live import Live

_PAUSE_S = 0.01
_AGAIN_A_SECOND = 1_500
"""So many are read again in a second of this process's CPU time. With thousands of connections a refusal costs 30 to
40 µs, as much as an answer: a twentieth of it all.
"""
_AGAIN = 10
"""So many at least after each pause, should the process wait for something else than the CPU."""


class TurnedAway:
    """Those of one process, in the order in which they were refused."""

    def __init__(self, live: Live) -> None:
        """Nobody has been refused yet; while that is so, it costs nothing."""
        self._live = live
        self._line: deque[Callable[[], None]] = deque()
        self._looking = False
        self._used = 0.0
        """CPU time [s] at the last look."""

    def add(self, again: Callable[[], None]) -> None:
        """Call `again` when it is time to read the connection again."""
        self._line.append(again)
        if not self._looking:
            self._looking = True
            self._used = process_time()
            asyncio.get_running_loop().call_later(_PAUSE_S, self._look)

    def _look(self) -> None:
        before, self._used = self._used, process_time()
        some = max(_AGAIN, int((self._used - before) * _AGAIN_A_SECOND))
        for _ in range(min(len(self._line), some) if self._overloaded() else len(self._line)):
            self._line.popleft()()
        self._looking = bool(self._line)
        if self._looking:
            asyncio.get_running_loop().call_later(_PAUSE_S, self._look)

    def _overloaded(self) -> bool:
        """If not, nobody is kept waiting any longer; nor is anybody by a server that is about to end."""
        service = self._live.service
        return service is not None and self._live.status != "draining" and service.engine.waiting > 0
