"""The batcher: requests of any size share model runs, and nobody waits for company.

An idle backend is given what there is at once: all that one turn of the event loop has read. While every permit is
taken, what arrives collects, and the next run takes it. No timer and no polling: a run's end starts the next.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter
from typing import Any, Generic, Literal, Protocol, TypeAlias, TypeVar

from levi_serve.errors import DeadlineError, NotReadyError, OverloadedError
from levi_serve.pace import Pace

Item = TypeVar("Item")
Answer = TypeVar("Answer")

log = logging.getLogger("levi")

_LONGEST_RETRY = 60
_SHARE = 0.75
"""Of the time that a caller gives, the most that may be spent in the queue. Callers at the end of a longer one would be
answered too late, and in a lasting overload everybody stands at the end. The run itself comes on top.
"""
_SLICE_S = 0.025
"""So long runs follow one another before the loop reads new requests: in an overload it would otherwise read, and
refuse, many of them between any two runs.
"""
_COMPANY = 8
_PATIENCE_S = 0.001
"""Fewer items than `_COMPANY` wait so long for others while the core has other work: a run of one costs a third of what
a run of eight does.
"""
_SMOOTH = 0.2
"""Weight of the last run in the pace."""


Shed: TypeAlias = Callable[[Literal["full", "late", "gone"], int], None]
"""Hears why so many items were given up: the queue was full, their time was over, or their caller had gone."""


def _unheard(_reason: str, _items: int) -> None:
    pass


class Job(Generic[Item, Answer]):
    """One caller's items. `reply` is called once, with the answers in order or with what went wrong."""

    __slots__ = ("_reply", "_shed", "answers", "arrived", "deadline", "items", "missing")

    def __init__(
        self,
        items: Sequence[Item],
        deadline: float,
        reply: Callable[[list[Answer] | Exception], None],
        arrived: float,
        shed: Shed = _unheard,
    ) -> None:
        """Times are `time.perf_counter` seconds. `shed` hears of it if the job ends without answer or error."""
        self.items = items
        self.deadline = deadline
        self.arrived = arrived
        self.answers: list[Any] = [None] * len(items)
        self.missing = len(items)
        self._reply: Callable[[list[Answer] | Exception], None] | None = reply
        self._shed = shed

    @property
    def over(self) -> bool:
        """Answered, failed or cancelled: no run is to be spent on it."""
        return self._reply is None

    def end(self, result: list[Answer] | Exception) -> None:
        """Reply, unless that was done. A reply that fails must not take other callers' answers with it."""
        reply, self._reply = self._reply, None
        if reply is None:
            return
        if isinstance(result, DeadlineError):
            self._shed("late", len(self.items))
        try:
            reply(result)
        except Exception:
            log.exception("an answer could not be delivered")

    def cancel(self) -> None:
        """The caller has gone: reply to nobody."""
        if self._reply is not None:
            self._shed("gone", len(self.items))
        self._reply = None

    def deliver(self, place: int, answer: Answer | Exception) -> None:
        """Take one item's answer; one failed item fails its job, and no other's."""
        if isinstance(answer, Exception):
            self.end(answer)
            return
        self.answers[place] = answer
        self.missing -= 1
        if not self.missing:
            self.end(self.answers if perf_counter() <= self.deadline else DeadlineError())


class Queue(Protocol[Item, Answer]):
    """Who is next."""

    def __len__(self) -> int:
        """Items that wait; those of jobs that are over may be among them."""

    def add(self, job: Job[Item, Answer]) -> None:
        """Put a job's items behind the others."""

    def take(self) -> list[tuple[Job[Item, Answer], int]]:
        """The items of the next run: jobs and places in them. Jobs that are over are skipped."""


class Batcher(Generic[Item, Answer]):
    """Puts items of many callers into runs."""

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Awaitable[Sequence[Answer | Exception]]],
        queue: Queue[Item, Answer],
        max_queue: int,
        observe: Callable[[int, float, float], None],
        permits: int = 1,
        shed: Shed = _unheard,
        patient: Callable[[], bool] = lambda: False,
    ) -> None:
        """`run` answers a batch in order, an exception standing for an item that failed alone; if it raises, all of its
        batch failed. It may wait: up to `permits` runs go on at once. At most `max_queue` items wait. `observe` hears
        of each run's size, of its duration [s] and of how long its oldest item had waited [s]; `shed` of items that
        nobody gets an answer to. While it is `patient`, since the core has other work to do, a few items wait for
        others before they become a run.
        """
        self._run = run
        self._queue = queue
        self._max_queue = max_queue
        self._observe = observe
        self._shed = shed
        self._patient = patient
        self._patience: asyncio.TimerHandle | None = None
        """What ends the wait for company."""
        self._free = permits
        self._workers: set[asyncio.Task[None]] = set()
        self._closing = False
        self._pace = Pace(_SMOOTH)
        """Of items, while there is a backlog."""
        self._running = 0
        """Items in runs."""
        self._began = 0.0
        """When the last run began."""
        self._took = 0.0
        """How long the last run that ended took [s]."""

    @property
    def waiting(self) -> int:
        """Items that no run has taken yet."""
        return len(self._queue)

    def put(
        self, items: Sequence[Item], deadline: float, reply: Callable[[list[Answer] | Exception], None]
    ) -> Job[Item, Answer]:
        """Queue items; `reply` hears of them later, never within this call. `deadline` is in `perf_counter` seconds.

        Raises:
            OverloadedError: as `admit`.
            NotReadyError: as `admit`.

        """
        now = perf_counter()
        self.admit(len(items), deadline, now)
        job = Job(items, deadline, reply, now, self._shed)
        self._queue.add(job)
        if self._free:
            if len(self._queue) >= _COMPANY or not self._patient():
                self._start()
            elif self._patience is None:
                self._patience = asyncio.get_running_loop().call_later(_PATIENCE_S, self._start)
        return job

    def crowded(self, count: int, deadline: float, now: float) -> int:
        """0 while there is room for so many items with this deadline; else they are shed, and it is the seconds until
        there may be room.
        """
        waiting = len(self._queue)
        seconds = waiting * self._pace.seconds
        if self._running:  # what is left of it: a backbone's run may take half of the time that a caller has
            seconds += max(0.0, self._running * self._pace.seconds - (now - self._began))
        needed = seconds / _SHARE + self._took if seconds else 0.0
        if waiting + count > self._max_queue or now < deadline < now + needed:
            self._shed("full", count)
            return min(max(1, math.ceil(seconds)), _LONGEST_RETRY)
        return 0

    def admit(self, count: int, deadline: float, now: float) -> None:
        """Whether `put` would take so many items at present.

        Raises:
            OverloadedError: the queue has no room for them, or is too long for their deadline.
            NotReadyError: the batcher is closing.

        """
        if self._closing:
            raise NotReadyError("the model is being taken out of service")
        if retry_after := self.crowded(count, deadline, now):
            raise OverloadedError(retry_after)

    async def submit(self, items: Sequence[Item], deadline: float = math.inf) -> list[Answer]:
        """Answers to the items, in order. A caller that is cancelled costs no further run.

        Raises:
            OverloadedError: as `admit`.
            DeadlineError: they were not there in time.
            NotReadyError: the batcher is closing.
            Exception: what the run raised for one of them; the others of this caller are then dropped.

        """
        if not items:
            return []
        future: asyncio.Future[list[Answer]] = asyncio.get_running_loop().create_future()

        def reply(result: list[Answer] | Exception) -> None:
            if future.done():
                return
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)

        job = self.put(items, deadline, reply)
        try:
            async with asyncio.timeout(None if deadline == math.inf else deadline - perf_counter()):
                return await future
        except TimeoutError:
            job.end(DeadlineError())
            raise DeadlineError from None
        finally:
            job.cancel()

    @property
    def busy(self) -> bool:
        """Whether a run goes on."""
        return self._running > 0

    async def close(self) -> None:
        """Refuse new items and answer those that wait."""
        self._closing = True
        self._start()
        while self._workers:
            await asyncio.wait(self._workers)

    def _start(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        if self._free:
            self._free -= 1
            worker = asyncio.get_running_loop().create_task(self._work())
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)

    async def _work(self) -> None:
        turn = perf_counter()
        try:
            while batch := self._queue.take():
                await self._once(batch)
                if len(self._queue) and perf_counter() - turn >= _SLICE_S:
                    await asyncio.sleep(0)  # the loop reads new requests and writes answers
                    turn = perf_counter()
        finally:
            self._free += 1

    async def _once(self, batch: Sequence[tuple[Job[Item, Answer], int]]) -> None:
        start = self._began = perf_counter()
        self._running += len(batch)
        try:
            answers = await self._run([job.items[place] for job, place in batch])
            if len(answers) != len(batch):
                raise RuntimeError(f"{len(batch)} items got {len(answers)} answers")
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the callers' to know
            for job, _ in batch:
                job.end(error)
            return
        finally:
            self._running -= len(batch)
        end = perf_counter()
        self._took = end - start
        self._pace.out(len(batch), end, more=len(self._queue) > 0)
        for (job, place), answer in zip(batch, answers, strict=True):
            job.deliver(place, answer)
        self._observe(len(batch), end - start, start - min(job.arrived for job, _ in batch))
