"""The batcher: requests of any size share model runs, and nobody waits for company.

An idle backend is given what there is at once; while it is busy, what arrives collects, and the next run takes it.
No timer and no polling: a run's end starts the next. The model runs in the batcher's one thread, off the event loop.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from levi_serve.errors import NotReadyError, OverloadedError

Item = TypeVar("Item")
Answer = TypeVar("Answer")

_LONGEST_RETRY = 60


@dataclass(eq=False)
class _Job(Generic[Item, Answer]):
    """One caller's items, answered when the last of them is."""

    items: Sequence[Item]
    future: asyncio.Future[list[Answer]]
    taken: int = 0
    """How many items have been given to a run."""
    answers: list[Answer] = field(default_factory=list)

    @property
    def left(self) -> int:
        return len(self.items) - self.taken

    def take(self, limit: int) -> Sequence[Item]:
        part = self.items[self.taken : self.taken + limit]
        self.taken += len(part)
        return part


class _Slice(NamedTuple, Generic[Item, Answer]):
    """One job's part of a run."""

    job: _Job[Item, Answer]
    items: Sequence[Item]


class Batcher(Generic[Item, Answer]):
    """Puts items of many callers into runs of at most `max_batch`."""

    def __init__(
        self,
        name: str,
        run: Callable[[Sequence[Item]], Sequence[Answer | Exception]],
        max_batch: int,
        max_queue: int,
        observe: Callable[[int, float], None],
    ) -> None:
        """`run` answers a batch in order, an exception standing for an item that failed alone; if it raises, all of its
        batch failed. At most `max_queue` items wait. `observe` hears of each run's size and duration [s].
        """
        self._run = run
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._observe = observe
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._jobs: deque[_Job[Item, Answer]] = deque()
        self._busy = False
        self._closing = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._pace = 0.0
        """Seconds per item of the last run."""
        self.waiting = 0
        """Items that no run has taken yet."""

    async def submit(self, items: Sequence[Item]) -> list[Answer]:
        """Answers to the items, in order. A caller that is cancelled costs no further run.

        Raises:
            OverloadedError: the queue has no room for them.
            NotReadyError: the batcher is closing.
            Exception: what the run raised for one of them; the others of this caller are then dropped.

        """
        if not items:
            return []
        if self._closing:
            raise NotReadyError("the model is being taken out of service")
        if self.waiting + len(items) > self._max_queue:
            raise OverloadedError(self.waiting, self._seconds_to_empty())
        job = _Job[Item, Answer](items, asyncio.get_running_loop().create_future())
        self._jobs.append(job)
        self.waiting += job.left
        self._dispatch()
        try:
            return await job.future
        finally:
            self._drop(job)

    async def close(self) -> None:
        """Refuse new items, answer those that wait, and end the thread."""
        self._closing = True
        await self._idle.wait()
        self._thread.shutdown()

    def _seconds_to_empty(self) -> int:
        return min(max(1, math.ceil(self.waiting * self._pace)), _LONGEST_RETRY)

    def _dispatch(self) -> None:
        if self._busy:
            return
        batch = self._take()
        if not batch:
            self._idle.set()
            return
        self._busy = True
        self._idle.clear()
        items = [item for part in batch for item in part.items]
        running = asyncio.get_running_loop().run_in_executor(self._thread, self._timed, items)
        running.add_done_callback(lambda done: self._finish(batch, len(items), done))

    def _take(self) -> list[_Slice[Item, Answer]]:
        """The next run's items. A job that has more goes to the back: jobs take turns."""
        batch: list[_Slice[Item, Answer]] = []
        room = self._max_batch
        while self._jobs and room:
            job = self._jobs.popleft()
            part = _Slice(job, job.take(room))
            room -= len(part.items)
            batch.append(part)
            if job.left:
                self._jobs.append(job)
        self.waiting -= self._max_batch - room
        return batch

    def _timed(self, items: Sequence[Item]) -> tuple[Sequence[Answer | Exception], float]:
        start = time.perf_counter()
        try:
            answers = self._run(items)
        except StopIteration as error:  # a future cannot carry it: its caller would wait for ever
            raise RuntimeError("the run ended early") from error
        if len(answers) != len(items):
            raise RuntimeError(f"{len(items)} items got {len(answers)} answers")
        return answers, time.perf_counter() - start

    def _finish(
        self,
        batch: Sequence[_Slice[Item, Answer]],
        size: int,
        done: asyncio.Future[tuple[Sequence[Answer | Exception], float]],
    ) -> None:
        self._busy = False
        error = done.exception()
        if error is not None:
            for job, _ in batch:
                self._fail(job, error)
            self._dispatch()
            return
        answers, seconds = done.result()
        self._pace = seconds / size
        start = 0
        for job, items in batch:
            self._deliver(job, answers[start : start + len(items)])
            start += len(items)
        self._dispatch()
        self._observe(size, seconds)

    def _deliver(self, job: _Job[Item, Answer], answers: Sequence[Answer | Exception]) -> None:
        for answer in answers:
            if isinstance(answer, Exception):
                self._fail(job, answer)
                return
            job.answers.append(answer)
        if len(job.answers) == len(job.items) and not job.future.done():
            job.future.set_result(job.answers)

    def _fail(self, job: _Job[Item, Answer], error: BaseException) -> None:
        self._drop(job)
        if not job.future.done():
            job.future.set_exception(error)

    def _drop(self, job: _Job[Item, Answer]) -> None:
        """Take a job that needs no more answers out of the queue, if it is still there."""
        if job.left:
            self._jobs.remove(job)
            self.waiting -= job.left
            job.taken = len(job.items)
