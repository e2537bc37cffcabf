"""Whom the monitor hears: each user once in a round, however often they ask."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import islice

from levi_serve.monitor.streams import ROUND

LONGEST = 32 * ROUND
"""Predictions after which a round ends even if they were for fewer than ROUND users."""


class Rounds:
    """One round after the other; they end by number, never by time."""

    def __init__(self) -> None:
        """Nobody has been heard."""
        self._heard: set[Hashable] = set()
        """Users of this round."""
        self._asked = 0
        """Predictions of this round."""

    def heard(self, users: Sequence[Hashable]) -> list[bool]:
        """Which of the next predictions, for these users [B], are evidence."""
        found: list[bool] = []
        heard, left = self._heard, iter(users)
        add = heard.add
        while (before := len(found)) < len(users):
            # No more than can complete the round.
            part = islice(left, min(ROUND - len(heard), LONGEST - self._asked))
            found += [user not in heard and not add(user) for user in part]
            self._asked += len(found) - before
            if len(heard) == ROUND or self._asked == LONGEST:
                heard.clear()
                self._asked = 0
        return found
