"""Whom the monitor hears: each user once in a round, however often they ask."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

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

    def heard(self, users: Sequence[Hashable]) -> list[int]:
        """The places of those of the next predictions, for these users [B], that are evidence."""
        places: list[int] = []
        heard, at = self._heard, 0
        while at < len(users):
            # No more than can complete the round.
            end = min(len(users), at + ROUND - len(heard), at + LONGEST - self._asked)
            places += [i for i, user in enumerate(users[at:end], at) if not (user in heard or heard.add(user))]  # type: ignore[func-returns-value]
            self._asked += end - at
            if len(heard) == ROUND or self._asked == LONGEST:
                heard.clear()
                self._asked = 0
            at = end
        return places
