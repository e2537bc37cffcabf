"""Two orders in which a batcher may take what waits: by turns, or by the length of sentences."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from itertools import count
from time import perf_counter
from typing import Any, Generic

from levi_serve.batcher import Answer, Item, Job
from levi_serve.errors import DeadlineError


_ALIKE = 2
"""No sentence is padded to more than so many times its length: beside a long one, a short one would cost as much."""


class Turns(Generic[Item, Answer]):
    """First come, first served, in runs of at most `max_batch` items; a job that has more goes to the back, so that a
    long list holds up nobody for longer than one run.
    """

    def __init__(self, max_batch: int) -> None:
        """An empty queue."""
        self._max_batch = max_batch
        self._jobs: deque[tuple[Job[Item, Answer], int]] = deque()
        """Jobs, and how many of their items have been taken."""
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def add(self, job: Job[Item, Answer]) -> None:
        """Put it at the back."""
        self._jobs.append((job, 0))
        self._waiting += len(job.items)

    def take(self) -> list[tuple[Job[Item, Answer], int]]:
        """From the front."""
        batch: list[tuple[Job[Item, Answer], int]] = []
        now = perf_counter()
        while self._jobs and len(batch) < self._max_batch:
            job, taken = self._jobs.popleft()
            left = len(job.items) - taken
            if not _alive(job, now):
                self._waiting -= left
                continue
            size = min(left, self._max_batch - len(batch))
            batch += [(job, taken)] if size == 1 else [(job, place) for place in range(taken, taken + size)]
            self._waiting -= size
            if size < left:
                self._jobs.append((job, taken + size))
        return batch


class Lengths(Generic[Item, Answer]):
    """Runs of sentences of similar length, at most `max_tokens` with their padding.

    The item that is first in line is always taken, and those among the next `window` that are nearest to it in length
    go with it: nobody waits longer than the line before him. The line is fair: the k-th item of a job stands where the
    k-th item of any job that came at the same time does.
    """

    def __init__(self, length: Callable[[Item], int], max_batch: int, max_tokens: int, window: int) -> None:
        """`length` counts an item's tokens."""
        self._length = length
        self._max_batch = max_batch
        self._max_tokens = max_tokens
        self._window = window
        self._line: list[tuple[int, int, int, Job[Item, Answer], int]] = []
        """A heap of (turn, arrival, length, job, place)."""
        self._turn = 0
        self._arrivals = count()

    def __len__(self) -> int:
        return len(self._line)

    def add(self, job: Job[Item, Answer]) -> None:
        """Its first item stands in the next turn, the second in the one after it, … In the present turn newcomers
        would stand before every item of a later one, for as long as they keep coming.
        """
        for place, item in enumerate(job.items):
            heapq.heappush(self._line, (self._turn + 1 + place, next(self._arrivals), self._length(item), job, place))

    def take(self) -> list[tuple[Job[Item, Answer], int]]:
        """The first in line and its like."""
        now = perf_counter()
        near: list[Any] = []
        while self._line and len(near) < self._window:
            entry = heapq.heappop(self._line)
            if _alive(entry[3], now):
                near.append(entry)
        if not near:
            return []
        first = near[0]
        self._turn = first[0]
        near.sort(key=lambda entry: (abs(entry[2] - first[2]), entry[:2]))
        chosen, shortest, longest = 0, first[2], first[2]
        for entry in near[: self._max_batch]:
            shortest, longest = min(shortest, entry[2]), max(longest, entry[2])
            if chosen and (longest * (chosen + 1) > self._max_tokens or longest > _ALIKE * shortest):
                break
            chosen += 1
        for entry in near[chosen:]:
            heapq.heappush(self._line, entry)
        return [(job, place) for _, _, _, job, place in sorted(near[:chosen], key=lambda entry: entry[:2])]


def _alive(job: Job[Any, Any], now: float) -> bool:
    """Whether a job still wants its answer; one whose time is over is told so."""
    if now > job.deadline:
        job.end(DeadlineError())
    return not job.over
