"""levi_serve.batcher. Runs wait for a gate that tests open, clocks are set by hand: nothing depends on time."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from time import perf_counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from levi_serve import batcher as batcher_module
from levi_serve import queues as queues_module
from levi_serve.batcher import Batcher
from levi_serve.errors import DeadlineError, NotReadyError, OverloadedError
from levi_serve.queues import Turns


class Gated:
    """A run that waits for its gate, answers x with 10 x, and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Semaphore(0)

    async def __call__(self, items: Sequence[int]) -> list[Any]:
        self.batches.append(list(items))
        await self.gate.acquire()
        return [10 * item for item in items]

    def open(self) -> None:
        for _ in range(1000):
            self.gate.release()


def batcher(
    run: Callable[[Sequence[Any]], Any], max_batch: int = 4, max_queue: int = 100, permits: int = 1, **more: Any
) -> Batcher[Any, Any]:
    return Batcher(run, Turns(max_batch), max_queue, lambda _size, _seconds, _waited: None, permits, **more)


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    """Run a scenario on a loop of its own; one that hangs fails, as does one that leaves an error unheard."""
    unheard: list[dict[str, Any]] = []

    async def limited() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
        await asyncio.wait_for(scenario(), timeout=10)

    asyncio.run(limited())
    assert unheard == []


async def turn() -> None:
    """Let every task reach its next wait."""
    for _ in range(4):
        await asyncio.sleep(0)


class Clock:
    """The time that batcher and queue see."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        for module in (batcher_module, queues_module):
            monkeypatch.setattr(module, "perf_counter", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_idle_dispatches_at_once() -> None:
    """Items do not wait for company: their run starts before the event loop has turned once more, with all that was
    put within the turn.
    """

    async def scenario() -> None:
        run = Gated()
        lane = batcher(run)
        replies: list[Any] = []
        for i in range(3):
            lane.put([i], math.inf, replies.append)
        assert (run.batches, replies) == ([], [])  # never within the call
        await asyncio.sleep(0)
        assert run.batches == [[0, 1, 2]]
        assert lane.waiting == 0
        run.open()
        await lane.close()
        assert replies == [[0], [10], [20]]

    play(scenario)


def test_busy_collects() -> None:
    """What arrives during a run forms the next one, in order of arrival and at most `max_batch` long."""

    async def scenario() -> None:
        run = Gated()
        lane = batcher(run)
        first = asyncio.ensure_future(lane.submit([0]))
        await turn()
        tasks = [asyncio.ensure_future(lane.submit([i])) for i in range(1, 7)]
        await turn()
        assert lane.waiting == 6
        run.open()
        assert await asyncio.gather(first, *tasks) == [[10 * i] for i in range(7)]
        assert run.batches == [[0], [1, 2, 3, 4], [5, 6]]
        await lane.close()

    play(scenario)


@pytest.mark.parametrize("permits", [1, 2, 3])
def test_as_many_runs_at_once_as_there_are_permits(permits: int) -> None:
    """While one run waits for something else others go on, up to the number of permits; then what arrives collects."""

    async def scenario() -> None:
        run = Gated()
        lane = batcher(run, permits=permits)
        tasks = []
        for i in range(5):
            tasks.append(asyncio.ensure_future(lane.submit([i])))
            await turn()
        assert run.batches == [[i] for i in range(permits)]
        assert lane.waiting == 5 - permits
        run.gate.release()
        await turn()
        assert run.batches[permits:] == [list(range(permits, 5))]
        run.open()
        assert await asyncio.gather(*tasks) == [[10 * i] for i in range(5)]
        await lane.close()

    play(scenario)


def test_many_items_use_all_permits() -> None:
    """What one turn brings is spread over the permits in whole runs, not kept for the first."""

    async def scenario() -> None:
        run = Gated()
        lane = batcher(run, permits=3)
        tasks = [asyncio.ensure_future(lane.submit([i] * 4)) for i in range(4)]
        await turn()
        assert run.batches == [[0] * 4, [1] * 4, [2] * 4]
        run.open()
        assert await asyncio.gather(*tasks) == [[10 * i] * 4 for i in range(4)]
        await lane.close()

    play(scenario)


def test_a_put_right_after_a_run_ended() -> None:
    """A run that has just ended is no reason to wait: what is put before its task is cleared away starts at once, also
    from within a reply, and also where runs never give way to the loop.
    """

    async def scenario() -> None:
        async def run(items: Sequence[int]) -> list[int]:
            return [10 * item for item in items]

        lane = batcher(run)
        replies: list[Any] = []

        def again(answers: Any) -> None:
            replies.append(answers)
            if answers[0] < 100:
                lane.put([answers[0]], math.inf, again)

        lane.put([1], math.inf, again)
        for i in range(50):
            await asyncio.sleep(0)
            lane.put([i + 1000], math.inf, replies.append)
        await turn()
        assert sorted(replies) == sorted([[10], [100], *([10 * (i + 1000)] for i in range(50))])
        await lane.close()

    play(scenario)


def test_idle_costs_nothing() -> None:
    """A batcher that has answered all has no task, no timer and no thread."""

    async def scenario() -> None:
        threads = threading.active_count()
        run = Gated()
        run.open()
        lane = batcher(run, permits=4)
        await asyncio.gather(*(lane.submit([i] * 9, perf_counter() + 60) for i in range(5)))
        await turn()
        assert asyncio.all_tasks() == scenario_tasks
        timers = {handle for handle in asyncio.get_running_loop()._scheduled if not handle.cancelled()}
        assert timers == scenario_timers
        assert threading.active_count() == threads

    async def around() -> None:
        nonlocal scenario_tasks, scenario_timers
        scenario_tasks = asyncio.all_tasks()
        scenario_timers = set(asyncio.get_running_loop()._scheduled)
        await scenario()

    scenario_tasks: set[Any] = set()
    scenario_timers: set[Any] = set()
    play(around)


def test_a_long_request_does_not_hold_up_short_ones() -> None:
    """A request takes turns with those behind it: a short one waits for one run of a long one, not for all of them."""

    async def scenario() -> None:
        run = Gated()
        lane = batcher(run)
        long = asyncio.ensure_future(lane.submit(list(range(14))))
        await turn()
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
        busy = asyncio.ensure_future(lane.submit([0]))
        await turn()
        tasks = [asyncio.ensure_future(lane.submit([i])) for i in (1, 2)]
        await turn()
        with pytest.raises(OverloadedError) as caught:
            await lane.submit([9])
        assert caught.value.retry_after == 1
        with pytest.raises(OverloadedError):
            lane.put([9], math.inf, print)
        run.open()
        await asyncio.gather(busy, *tasks)
        with pytest.raises(OverloadedError):
            await lane.submit([7, 8, 9])
        assert await lane.submit([8, 9]) == [80, 90]
        await lane.close()

    play(scenario)


def test_retry_after_is_the_time_to_empty_the_queue(clock: Clock) -> None:
    """As long as the waiting items take at the pace of the last runs, in whole seconds, at most a minute."""

    async def scenario() -> None:
        async def run(items: Sequence[int]) -> Sequence[int]:
            clock.now += 2.5 * len(items)
            await asyncio.sleep(0)
            return items

        lane = batcher(run, max_batch=2, max_queue=100)
        for size, expected in ((3, 8), (40, 60)):
            await lane.submit([0] * 4)
            gate = asyncio.ensure_future(lane.submit([0] * size))
            await asyncio.sleep(0)
            with pytest.raises(OverloadedError) as caught:
                lane.put([9] * 100, math.inf, print)
            assert caught.value.retry_after == expected
            await gate
        await lane.close()

    play(scenario)


def test_a_queue_too_long_for_the_deadline_refuses(clock: Clock) -> None:
    """Three quarters of what a caller gives beside his own run may be spent waiting; who gives more is accepted, who
    is late is told.
    """

    async def scenario() -> None:
        async def run(items: Sequence[int]) -> Sequence[int]:
            clock.now += 2.5 * len(items)
            await asyncio.sleep(0)
            return items

        lane = batcher(run, max_batch=2)
        assert lane.put([0], clock.now + 1e-6, print)  # nothing waits: no time is too short
        await lane.submit([0] * 4)
        replies: list[Any] = []
        for _ in range(6):
            lane.put([0], math.inf, replies.append)
        await asyncio.sleep(0)  # two of six are taken: four take 10 s; the last run took 2.5 s
        with pytest.raises(OverloadedError):
            lane.put([1], clock.now + 15.8, print)
        lane.put([2], clock.now + 15.9, replies.append)
        lane.put([3], clock.now - 1, replies.append)
        await lane.close()
        assert replies[:6] == [[0]] * 6
        assert any(reply == [2] for reply in replies)
        assert any(isinstance(reply, DeadlineError) for reply in replies)

    play(scenario)


def test_what_runs_counts_until_it_has_ended(clock: Clock) -> None:
    """Two items run for 5 s: who gives less than that, his own share and a run is refused, and later he is not."""

    async def scenario() -> None:
        gate = asyncio.Event()

        async def run(items: Sequence[int]) -> Sequence[int]:
            if 9 in items:
                await gate.wait()
            clock.now += 2.5 * len(items)
            return items

        lane = batcher(run, max_batch=2)
        await lane.submit([0] * 6)  # the pace is known
        long = asyncio.ensure_future(lane.submit([9, 9]))
        await turn()
        assert lane.busy
        with pytest.raises(OverloadedError):
            lane.put([1], clock.now + 11.6, print)
        lane.put([1], clock.now + 11.7, print)
        clock.now += 4
        assert lane.crowded(0, clock.now + 9.6, clock.now) > 0  # one waits, and 1 s of the run is left: 3.5 s
        assert lane.crowded(0, clock.now + 9.7, clock.now) == 0
        gate.set()
        await long
        await lane.close()

    play(scenario)


def test_patience(clock: Clock) -> None:
    """While it is patient a lane waits a moment for a run of eight; the eighth item begins it at once. Then not."""
    batches: list[int] = []
    busy = True

    async def scenario() -> None:
        nonlocal busy

        async def run(items: Sequence[int]) -> Sequence[int]:
            batches.append(len(items))
            return items

        lane = batcher(run, max_batch=64, patient=lambda: busy)
        for _ in range(7):
            lane.put([0], math.inf, print)
        await turn()
        assert batches == []
        lane.put([0], math.inf, print)
        await turn()
        assert batches == [8]
        lane.put([0], math.inf, print)
        while len(batches) == 1:  # a millisecond
            await asyncio.sleep(0)
        lane.put([0], math.inf, print)
        await lane.close()  # nothing is forgotten
        assert batches == [8, 1, 1]

        busy = False
        lane = batcher(run, max_batch=64, patient=lambda: busy)
        lane.put([0], math.inf, print)
        await turn()
        assert batches == [8, 1, 1, 1]
        await lane.close()

    play(scenario)


def test_a_lasting_overload_keeps_the_lane_at_work(clock: Clock) -> None:
    """Three times as many callers as can be served: those who are accepted are answered in time, and nearly no run is
    spent on others. Without refusals by deadline everyone would wait until just after his own.
    """

    async def scenario() -> None:
        replies: list[Any] = []

        async def run(items: Sequence[int]) -> Sequence[int]:
            for _ in range(24):  # in the time that it takes for 8 items, 24 more come
                clock.now += 0.25 / 24
                if clock.now < end:
                    with suppress(OverloadedError):
                        lane.put([1], clock.now + 2.0, replies.append)
            await asyncio.sleep(0)
            return items

        end = clock.now + 100
        lane = batcher(run, max_batch=8, max_queue=2000)
        await lane.submit([1])
        while lane.waiting:
            await asyncio.sleep(0)
        await lane.close()
        good = sum(reply == [1] for reply in replies)
        late = sum(isinstance(reply, DeadlineError) for reply in replies)
        assert good >= 0.95 * 8 * 100 / 0.25
        assert late <= 0.01 * good

    play(scenario)


def test_cancelled_callers_are_skipped() -> None:
    """A caller that gives up before its run costs nothing; its neighbours, earlier and later, get their answers."""

    async def scenario() -> None:
        run = Gated()
        lane = batcher(run)
        busy = asyncio.ensure_future(lane.submit([1, 1]))
        await turn()
        before, gone, after = (asyncio.ensure_future(lane.submit([i, i])) for i in (2, 3, 4))
        silent: list[Any] = []
        lane.put([5], math.inf, silent.append).cancel()
        await turn()
        gone.cancel()
        await turn()
        run.open()
        assert await asyncio.gather(busy, before, after) == [[10, 10], [20, 20], [40, 40]]
        assert gone.cancelled()
        assert run.batches == [[1, 1], [2, 2, 4, 4]]
        assert silent == []
        assert lane.waiting == 0
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
        run.open()
        assert await stays == [80]
        assert run.batches == [[0, 1, 2, 3], [8]]
        assert lane.waiting == 0
        await lane.close()

    play(scenario)


@pytest.mark.parametrize("error", [ValueError("bad"), StopIteration(), MemoryError()])
def test_a_failed_run_reaches_everyone_in_it(error: Exception) -> None:
    """When a run raises, each of its callers gets an error, whatever its type, and the next run works."""

    async def scenario() -> None:
        fail = [True]
        gated = Gated()

        async def run(items: Sequence[int]) -> list[int]:
            answers = await gated(items)
            if len(items) > 1 and fail.pop():
                raise error
            return answers

        lane = batcher(run)
        first = asyncio.ensure_future(lane.submit([0]))
        await turn()
        others = [asyncio.ensure_future(lane.submit([i])) for i in range(1, 4)]
        await turn()
        gated.open()
        assert await first == [0]
        failed = await asyncio.gather(*others, return_exceptions=True)
        assert all(isinstance(f, RuntimeError if isinstance(error, StopIteration) else type(error)) for f in failed)
        assert await lane.submit([5]) == [50]
        await lane.close()

    play(scenario)


def test_a_failed_item_fails_its_caller_alone() -> None:
    """One item's exception is its job's answer, once; the others of that job are not run any more, neighbours are."""

    async def scenario() -> None:
        ran: list[int] = []

        async def run(items: Sequence[int]) -> list[Any]:
            ran.extend(items)
            return [ValueError(str(item)) if item < 0 else item for item in items]

        lane = batcher(run)
        replies: dict[str, list[Any]] = {"bad": [], "good": []}
        lane.put([1, -2, -3, 4, 5, 6], math.inf, replies["bad"].append)
        lane.put([7, 8], math.inf, replies["good"].append)
        await turn()
        assert [str(error) for error in replies["bad"]] == ["-2"]
        assert replies["good"] == [[7, 8]]
        assert ran == [1, -2, -3, 4, 7, 8]
        await lane.close()

    play(scenario)


def test_a_wrong_number_of_answers_is_an_error() -> None:
    """A run that loses an answer fails its callers instead of leaving one waiting for ever."""

    async def scenario() -> None:
        async def run(items: Sequence[int]) -> Sequence[int]:
            return items[1:]

        lane = batcher(run)
        with pytest.raises(RuntimeError, match="1 items got 0 answers"):
            await lane.submit([1])
        await lane.close()

    play(scenario)


def test_a_reply_that_fails_is_nobody_elses_loss(caplog: pytest.LogCaptureFixture) -> None:
    """A reply that raises is logged; the others of its run and all later ones are answered, and it is not called again.
    That holds for an answer, for an error and for a deadline.
    """

    async def scenario() -> None:
        async def run(items: Sequence[int]) -> list[Any]:
            if 0 in items:
                raise ValueError
            return list(items)

        calls: list[Any] = []

        def broken(result: Any) -> None:
            calls.append(result)
            raise KeyError("broken reply")

        lane = batcher(run)
        replies: list[Any] = []
        lane.put([1], math.inf, broken)
        lane.put([2], math.inf, replies.append)
        await turn()
        lane.put([3], -1.0, broken)
        lane.put([4], math.inf, replies.append)
        await turn()
        lane.put([0], math.inf, broken)
        lane.put([5], math.inf, replies.append)
        await turn()
        lane.put([6], math.inf, replies.append)
        await lane.close()
        assert [type(call) for call in calls] == [list, DeadlineError, ValueError]
        assert [reply if isinstance(reply, list) else type(reply) for reply in replies] == [[2], [4], ValueError, [6]]

    play(scenario)
    assert [record.message for record in caplog.records] == ["an answer could not be delivered"] * 3
    assert "broken reply" in caplog.text


def test_past_its_deadline_nothing_is_run(clock: Clock) -> None:
    """A job whose time is over before its turn comes is told so once, and costs no run; at its deadline it has time."""

    async def scenario() -> None:
        run = Gated()
        lane = batcher(run)
        replies: list[Any] = []
        lane.put([1], math.inf, replies.append)
        await turn()
        lane.put([2, 2], clock.now + 5, replies.append)
        lane.put([3], clock.now + 6, replies.append)
        lane.put([4], clock.now + 7, replies.append)
        clock.now += 6
        run.open()
        await lane.close()
        assert run.batches == [[1], [3, 4]]
        assert [reply if isinstance(reply, list) else type(reply) for reply in replies] == [
            [10],
            DeadlineError,
            [30],
            [40],
        ]

    play(scenario)


def test_no_answer_after_the_deadline(clock: Clock) -> None:
    """An answer that a run brings too late is a DeadlineError, for those whose time is over and for no one else."""

    async def scenario() -> None:
        run = Gated()
        lane = batcher(run)
        replies: list[Any] = []
        for i, seconds in enumerate((1.0, 2.0, 3.0, math.inf)):
            lane.put([i], clock.now + seconds, replies.append)
        await turn()
        clock.now += 2
        run.open()
        await lane.close()
        assert run.batches == [[0, 1, 2, 3]]
        assert isinstance(replies[0], DeadlineError)
        assert replies[1:] == [[10], [20], [30]]

    play(scenario)


def test_the_deadline_interrupts_the_wait() -> None:
    """`submit` ends at its deadline though the run goes on, and what of it still waits is not run."""

    async def scenario() -> None:
        run = Gated()
        lane = batcher(run)
        with pytest.raises(DeadlineError):
            await lane.submit([1, 2, 3, 4, 5, 6], perf_counter() + 0.05)
        run.open()
        await lane.close()
        assert run.batches == [[1, 2, 3, 4]]

    play(scenario)


def test_a_deadline_that_has_passed_costs_no_run() -> None:
    """`submit` of a request that came too late raises and runs nothing."""

    async def scenario() -> None:
        run = Gated()
        lane = batcher(run)
        for deadline in (perf_counter() - 1, 0.0, -math.inf):
            with pytest.raises(DeadlineError):
                await lane.submit([1], deadline)
        await turn()
        assert run.batches == []
        assert await lane.submit([], deadline=0.0) == []
        await lane.close()

    play(scenario)


def test_closing_answers_what_waits() -> None:
    """Closing refuses new items and answers all accepted ones."""

    async def scenario() -> None:
        run = Gated()
        lane = batcher(run, permits=2)
        tasks = [asyncio.ensure_future(lane.submit([i] * 3)) for i in range(6)]
        await turn()
        closing = asyncio.ensure_future(lane.close())
        await turn()
        with pytest.raises(NotReadyError):
            await lane.submit([9])
        assert not closing.done()
        run.gate.release()
        await turn()
        assert not closing.done()
        run.open()
        await closing
        assert await asyncio.gather(*tasks) == [[10 * i] * 3 for i in range(6)]
        await lane.close()

    play(scenario)


def test_observes_size_duration_and_wait(clock: Clock) -> None:
    """Every run reports how many items it had, how long it took and how long its oldest item had waited; a run that
    failed reports nothing.
    """

    async def scenario() -> None:
        seen: list[tuple[int, float, float]] = []

        async def run(items: Sequence[int]) -> Sequence[int]:
            clock.now += 3
            await asyncio.sleep(0)
            if 9 in items:
                raise ValueError("nine")
            return items

        lane = Batcher[int, int](run, Turns(4), 100, lambda *run: seen.append(run))
        long = asyncio.ensure_future(lane.submit([1, 2, 3, 4, 5, 6, 7, 8, 0]))
        await asyncio.sleep(0)
        clock.now += 1
        lane.put([0], math.inf, lambda _: None)
        await long
        with pytest.raises(ValueError, match="nine"):
            await lane.submit([9])
        await lane.close()
        # the third run has the late item before the last of the long list, which is older
        assert seen == [(4, 3.0, 1.0), (4, 3.0, 4.0), (2, 3.0, 7.0)]

    play(scenario)


def test_what_is_shed(clock: Clock) -> None:
    """Each item that nobody gets an answer to is reported once with the reason: no room, no time before its run or
    after it, or a caller that has gone. What is answered or fails is not shed.
    """

    async def scenario() -> None:
        shed: list[tuple[str, int]] = []
        run = Gated()
        lane = Batcher[int, int](run, Turns(4), 5, lambda *_: None, shed=lambda *told: shed.append(told))
        first = lane.put([1, 2], clock.now + 10, lambda _: None)
        await turn()
        lane.put([3, 4], clock.now + 5, lambda _: None)
        gone = lane.put([5, 6, 7], math.inf, lambda _: None)
        with pytest.raises(OverloadedError):
            lane.put([8], math.inf, lambda _: None)
        gone.cancel()
        gone.cancel()
        assert shed == [("full", 1), ("gone", 3)]
        clock.now += 11
        run.open()
        await turn()
        first.cancel()
        assert shed[2:] == [("late", 2), ("late", 2)]
        assert await lane.submit([10]) == [100]
        assert len(shed) == 4
        await lane.close()

    play(scenario)


def test_a_caller_that_leaves_is_shed() -> None:
    """A cancelled `submit` reports its items as gone; one whose time is over while it waits, as late."""

    async def scenario() -> None:
        shed: list[tuple[str, int]] = []
        run = Gated()
        lane = Batcher[int, int](run, Turns(4), 5, lambda *_: None, shed=lambda *told: shed.append(told))
        leaving = asyncio.ensure_future(lane.submit([1, 2, 3]))
        await turn()
        leaving.cancel()
        await turn()
        assert shed == [("gone", 3)]
        with pytest.raises(DeadlineError):
            await lane.submit([4, 5], perf_counter() + 0.01)
        assert shed == [("gone", 3), ("late", 2)]
        run.open()
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
        "late": st.sampled_from([False] * 5 + [True]),
        "pause": st.integers(0, 6),
        "cancel_after": st.sampled_from([None, None, 0, 1, 2, 5]),
    }
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    jobs=st.lists(job, max_size=12),
    max_batch=st.integers(1, 5),
    permits=st.integers(1, 4),
    waits=st.lists(st.integers(0, 3), min_size=1, max_size=5),
)
def test_everyone_gets_exactly_their_own_answers(
    jobs: list[dict[str, Any]], max_batch: int, permits: int, waits: list[int]
) -> None:
    """Under random sizes, arrivals, failures, cancellations and lengths of runs: each caller that stays gets the
    answers to its own items in order, or an error that it or a neighbour in its run caused; nothing runs twice, too
    late or on too many permits, and nobody is left waiting.
    """

    async def scenario() -> None:
        batches: list[list[tuple[int, int]]] = []
        running = 0

        async def run(items: Sequence[tuple[int, int]]) -> list[Any]:
            nonlocal running
            running += 1
            assert running <= permits
            batches.append(list(items))
            for _ in range(waits[len(batches) % len(waits)]):
                await asyncio.sleep(0)
            running -= 1
            if any(jobs[number]["poison"] for number, _ in items):
                raise BatchError
            return [ItemError() if jobs[n]["bad"] and place == 0 else (n, place, "answer") for n, place in items]

        lane = batcher(run, max_batch, max_queue=1000, permits=permits)

        async def caller(number: int) -> Any:
            for _ in range(jobs[number]["pause"]):
                await asyncio.sleep(0)
            deadline = 0.0 if jobs[number]["late"] else math.inf
            return await lane.submit([(number, place) for place in range(jobs[number]["size"])], deadline)

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
            assert not (plan["late"] and shared)
            if isinstance(outcome, asyncio.CancelledError):
                assert plan["cancel_after"] is not None
            elif isinstance(outcome, DeadlineError):
                assert plan["late"]
            elif isinstance(outcome, BatchError):
                assert any(jobs[n]["poison"] for n in shared)
            elif isinstance(outcome, ItemError):
                assert plan["bad"]
            else:
                assert outcome == [(number, place, "answer") for place in range(plan["size"])]
                assert not plan["size"] or not (plan["bad"] or plan["poison"] or plan["late"])

    play(scenario)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    steps=st.lists(st.integers(0, 3), min_size=1, max_size=40),
    permits=st.integers(1, 4),
    waits=st.lists(st.integers(0, 2), min_size=1, max_size=4),
)
def test_no_wake_up_is_lost(steps: list[int], permits: int, waits: list[int]) -> None:
    """However puts (that many a turn) and ends of runs (after that many turns) fall together, every job is answered
    without a further put to wake the batcher, and the permits are all there again.
    """

    async def scenario() -> None:
        runs = 0

        async def run(items: Sequence[int]) -> Sequence[int]:
            nonlocal runs
            runs += 1
            for _ in range(waits[runs % len(waits)]):
                await asyncio.sleep(0)
            return items

        lane = batcher(run, max_batch=2, max_queue=1000, permits=permits)
        replies: list[Any] = []
        for puts in steps:
            for _ in range(puts):
                lane.put([1], math.inf, replies.append)
            await asyncio.sleep(0)
        for _ in range(10 * sum(steps)):
            await asyncio.sleep(0)
        assert replies == [[1]] * sum(steps)
        assert lane._free == permits
        assert not lane._workers

    play(scenario)
