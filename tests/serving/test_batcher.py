"""levi_serve.batcher. The gate of `Gated` holds a run back until the test lets it go, so nothing depends on time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from levi_serve.batcher import Batcher
from levi_serve.errors import NotReadyError, OverloadedError


class Gated:
    """A run that waits for its gate, answers x with 10 x, and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.threads: set[str] = set()
        self.gate = threading.Semaphore(0)
        self.started = threading.Semaphore(0)

    def __call__(self, items: Sequence[int]) -> list[Any]:
        self.batches.append(list(items))
        self.threads.add(threading.current_thread().name)
        self.started.release()
        self.gate.acquire(timeout=10)
        return [10 * item for item in items]

    def open(self) -> None:
        self.gate.release(1000)


def batcher(run: Callable[[Sequence[Any]], Any], max_batch: int = 4, max_queue: int = 100) -> Batcher[Any, Any]:
    return Batcher("test", run, max_batch, max_queue, observe=lambda _size, _seconds: None)


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    """Run a scenario on a loop of its own; one that hangs fails."""

    async def limited() -> None:
        await asyncio.wait_for(scenario(), timeout=10)

    asyncio.run(limited())


async def turn() -> None:
    """Let every task reach its next wait."""
    for _ in range(3):
        await asyncio.sleep(0)


def test_idle_dispatches_at_once() -> None:
    """A single item does not wait for company: its run starts before the event loop turns once more."""

    async def scenario() -> None:
        run = Gated()
        lane = batcher(run)
        waiting = asyncio.ensure_future(lane.submit([1]))
        await asyncio.sleep(0)
        assert run.started.acquire(timeout=5)
        assert lane.waiting == 0
        run.open()
        assert await waiting == [10]
        await lane.close()

    play(scenario)


def test_busy_collects() -> None:
    """What arrives during a run forms the next one, in order of arrival and at most `max_batch` long."""

    async def scenario() -> None:
        run = Gated()
        lane = batcher(run)
        tasks = [asyncio.ensure_future(lane.submit([i])) for i in range(7)]
        await turn()
        assert lane.waiting == 6
        run.open()
        assert await asyncio.gather(*tasks) == [[10 * i] for i in range(7)]
        assert run.batches == [[0], [1, 2, 3, 4], [5, 6]]
        await lane.close()

    play(scenario)


def test_runs_are_off_the_event_loop() -> None:
    """Every run happens in the batcher's own thread, and in no other."""

    async def scenario() -> None:
        run = Gated()
        run.open()
        lane = batcher(run)
        for i in range(3):
            await lane.submit([i])
        assert run.threads == {"test_0"}
        await lane.close()

    play(scenario)


def test_a_long_request_does_not_hold_up_short_ones() -> None:
    """A request takes turns with those behind it: a short one waits for one run of a long one, not for all of them."""

    async def scenario() -> None:
        run = Gated()
        lane = batcher(run)
        long = asyncio.ensure_future(lane.submit(list(range(14))))
        short = asyncio.ensure_future(lane.submit([77]))
        await turn()
        run.open()
        assert await long == [10 * i for i in range(14)]
        assert await short == [770]
        assert run.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [77, 8, 9, 10], [11, 12, 13]]
        await lane.close()

    play(scenario)


def test_full_queue_refuses() -> None:
    """Beyond `max_queue` waiting items a request is refused at once, and accepted again when the queue has emptied."""

    async def scenario() -> None:
        run = Gated()
        lane = batcher(run, max_batch=1, max_queue=2)
        tasks = [asyncio.ensure_future(lane.submit([i])) for i in range(3)]
        await turn()
        with pytest.raises(OverloadedError) as caught:
            await lane.submit([9])
        assert caught.value.retry_after >= 1
        run.open()
        await asyncio.gather(*tasks)
        assert await lane.submit([9]) == [90]
        await lane.close()

    play(scenario)


def test_cancelled_callers_are_skipped() -> None:
    """A caller that gives up before its run costs nothing; its neighbours, earlier and later, get their answers."""

    async def scenario() -> None:
        run = Gated()
        lane = batcher(run)
        busy, before, gone, after = (asyncio.ensure_future(lane.submit([i, i])) for i in (1, 2, 3, 4))
        await turn()
        gone.cancel()
        await turn()
        assert lane.waiting == 4
        run.open()
        assert await asyncio.gather(busy, before, after) == [[10, 10], [20, 20], [40, 40]]
        assert gone.cancelled()
        assert run.batches == [[1, 1], [2, 2, 4, 4]]
        await lane.close()

    play(scenario)


def test_cancelled_during_its_run() -> None:
    """A caller that gives up while its items are in the model takes none of its neighbours with it."""

    async def scenario() -> None:
        run = Gated()
        lane = batcher(run)
        gone = asyncio.ensure_future(lane.submit(list(range(6))))
        await turn()
        gone.cancel()
        stays = asyncio.ensure_future(lane.submit([8]))
        await turn()
        assert lane.waiting == 1
        run.open()
        assert await stays == [80]
        assert run.batches == [[0, 1, 2, 3], [8]]
        await lane.close()

    play(scenario)


@pytest.mark.parametrize("error", [ValueError("bad"), StopIteration(), MemoryError()])
def test_a_failed_run_reaches_everyone_in_it(error: Exception) -> None:
    """When a run raises, each of its callers gets an error, whatever its type, and the next run works."""

    async def scenario() -> None:
        fail = [True]
        gated = Gated()

        def run(items: Sequence[int]) -> list[int]:
            answers = gated(items)
            if len(items) > 1 and fail.pop():
                raise error
            return answers

        lane = batcher(run)
        first, *others = (asyncio.ensure_future(lane.submit([i])) for i in range(4))
        await turn()
        gated.open()
        assert await first == [0]
        failed = await asyncio.gather(*others, return_exceptions=True)
        assert all(isinstance(f, RuntimeError if isinstance(error, StopIteration) else type(error)) for f in failed)
        assert await lane.submit([5]) == [50]
        await lane.close()

    play(scenario)


def test_a_wrong_number_of_answers_is_an_error() -> None:
    """A run that loses an answer fails its callers instead of leaving one waiting for ever."""

    async def scenario() -> None:
        lane = batcher(lambda items: items[1:])
        with pytest.raises(RuntimeError, match="1 items got 0 answers"):
            await lane.submit([1])
        await lane.close()

    play(scenario)


def test_closing_answers_what_waits() -> None:
    """Closing refuses new items and answers all accepted ones."""

    async def scenario() -> None:
        run = Gated()
        lane = batcher(run)
        tasks = [asyncio.ensure_future(lane.submit([i])) for i in range(6)]
        await turn()
        closing = asyncio.ensure_future(lane.close())
        await turn()
        with pytest.raises(NotReadyError):
            await lane.submit([9])
        assert not closing.done()
        run.open()
        await closing
        assert await asyncio.gather(*tasks) == [[10 * i] for i in range(6)]

    play(scenario)


def test_observes_size_and_duration() -> None:
    """Every run reports how many items it had and how long it took."""

    async def scenario() -> None:
        seen: list[tuple[int, float]] = []
        lane = Batcher[int, int]("test", lambda items: items, 4, 100, lambda *run: seen.append(run))
        await lane.submit([1, 2, 3])
        assert [size for size, _ in seen] == [3]
        assert 0 <= seen[0][1] < 5
        await lane.close()

    play(scenario)


class BatchError(Exception):
    """A whole run failed."""


class ItemError(Exception):
    """One item failed."""


job = st.fixed_dictionaries(
    {
        "size": st.integers(0, 9),
        "bad": st.booleans(),
        "poison": st.sampled_from([False] * 5 + [True]),
        "pause": st.integers(0, 3),
        "cancel_after": st.sampled_from([None, None, 0, 1, 2, 5]),
    }
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(jobs=st.lists(job, max_size=12), max_batch=st.integers(1, 5))
def test_everyone_gets_exactly_their_own_answers(jobs: list[dict[str, Any]], max_batch: int) -> None:
    """Under random sizes, arrivals, failures and cancellations: each caller that stays gets the answers to its own
    items in order, or an error that it or a neighbour in its run caused; nothing runs twice or is left waiting.
    """

    async def scenario() -> None:
        batches: list[list[tuple[int, int]]] = []

        def run(items: Sequence[tuple[int, int]]) -> list[Any]:
            batches.append(list(items))
            if any(jobs[number]["poison"] for number, _ in items):
                raise BatchError
            return [ItemError() if jobs[n]["bad"] and place == 0 else (n, place, "answer") for n, place in items]

        lane = batcher(run, max_batch, max_queue=1000)

        async def caller(number: int) -> Any:
            for _ in range(jobs[number]["pause"]):
                await asyncio.sleep(0)
            return await lane.submit([(number, place) for place in range(jobs[number]["size"])])

        async def canceller(task: asyncio.Task[Any], turns: int) -> None:
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()

        tasks = [asyncio.ensure_future(caller(number)) for number in range(len(jobs))]
        cancellers = [
            canceller(t, j["cancel_after"]) for t, j in zip(tasks, jobs, strict=True) if j["cancel_after"] is not None
        ]
        outcomes = await asyncio.gather(*tasks, *cancellers, return_exceptions=True)
        await lane.close()

        ran = [item for batch in batches for item in batch]
        assert len(ran) == len(set(ran))
        assert all(1 <= len(batch) <= max_batch for batch in batches)
        assert lane.waiting == 0
        for number, (outcome, plan) in enumerate(zip(outcomes, jobs, strict=False)):
            shared = {n for batch in batches for n, _ in batch if number in {m for m, _ in batch}}
            if isinstance(outcome, asyncio.CancelledError):
                assert plan["cancel_after"] is not None
            elif isinstance(outcome, BatchError):
                assert any(jobs[n]["poison"] for n in shared)
            elif isinstance(outcome, ItemError):
                assert plan["bad"]
            else:
                assert outcome == [(number, place, "answer") for place in range(plan["size"])]
                assert not plan["size"] or not (plan["bad"] or plan["poison"])

    play(scenario)
