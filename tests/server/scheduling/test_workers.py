"""Several models on the same threads."""

import asyncio
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heed.bundle.sequence_packing import Answer, TokenSequence
from heed.server.errors import DeadlineExceeded, Exhausted, Unavailable
from heed.server.scheduling.batching import SimilarLengths
from heed.server.scheduling.model_queue import QueueEntry
from heed.server.scheduling.scheduler import RequestResult, Scheduler
from heed.server.scheduling.workers import Workers
from tests.server.scheduling.support import BAD, BadRow, Doubling, blocked, doubles, sharing, submit, waiting
from tests.server.support import row


class Named(Doubling):
    """Notes its name beside those of all others, group by group."""

    def __init__(self, name: str, log: list[str], *, gate_open: bool = True) -> None:
        super().__init__(gate_open=gate_open)
        self.name = name
        self.log = log

    def __call__(self, rows: Sequence[TokenSequence], outputs: frozenset[str], exclusive: bool) -> list[Answer]:
        self.log.append(self.name)
        return super().__call__(rows, outputs, exclusive)


async def test_what_came_first_goes_first_whichever_model_it_is_for() -> None:
    log: list[str] = []
    a, b, c = Named("a", log, gate_open=False), Named("b", log), Named("c", log)
    async with sharing(a, b, c) as (first, second, third):
        tasks = await blocked(first, a)
        for scheduler in (second, third, first, first, third, second):
            tasks.append(await waiting(scheduler, row(1)))
        a.gate.set()
        await asyncio.gather(*tasks)
    assert log == ["a", "b", "c", "a", "a", "c", "b"]


async def test_what_is_urgent_goes_first_whichever_model_it_is_for() -> None:
    log: list[str] = []
    a, b = Named("a", log, gate_open=False), Named("b", log)
    async with sharing(a, b) as (first, second):
        tasks = await blocked(first, a)
        for number, (scheduler, priority) in enumerate([(first, 20), (first, 0), (second, 2), (second, 0), (first, 1)]):
            tasks.append(await waiting(scheduler, row(number + 1), priority=priority))
        a.gate.set()
        await asyncio.gather(*tasks)
    assert log == ["a", "a", "b", "a", "b", "a"]
    assert (a.computed, b.computed) == ([[5], [2], [1]], [[3], [4]])


async def test_a_group_takes_less_urgent_rows_only_where_urgent_ones_leave_room() -> None:
    run = Doubling(gate_open=False)
    async with sharing(run, policy=SimilarLengths(8)) as (scheduler,):
        tasks = await blocked(scheduler, run)
        for ids, priority in [((1, 1), 0), ((2, 2), 0), ((3, 3, 3, 3, 3), 1), ((4,), 1)]:
            tasks.append(await waiting(scheduler, row(*ids), priority=priority))
        run.gate.set()
        await asyncio.gather(*tasks)
    assert run.batches == [[[3, 3, 3, 3, 3], [4], [1, 1]], [[2, 2]]]


class Slow(Doubling):
    """Takes some seconds for every token."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def __call__(self, rows: Sequence[TokenSequence], outputs: frozenset[str], exclusive: bool) -> list[Answer]:
        answers = super().__call__(rows, outputs, exclusive)
        time.sleep(self.seconds * sum(map(len, rows)))
        return answers


async def test_a_wait_counts_what_all_models_have_before_it_each_at_its_own_pace() -> None:
    slow, quick = Slow(0.2), Slow(0.01)
    async with sharing(slow, quick) as (first, second):
        await asyncio.gather(submit(first, [row(1)]), submit(second, [row(*range(20))]))
        assert first.wait_seconds() == second.wait_seconds() == 0
        slow.gate.clear()
        tasks = [asyncio.create_task(submit(first, [row(1)]))]  # at work
        await slow.is_entered(2)
        tasks.append(await waiting(first, row(1, 2), priority=1))
        tasks.append(await waiting(second, row(*range(30)), priority=5))
        tasks.append(await waiting(first, row(1, 2, 3, 4), priority=0))
        tasks.append(await waiting(second, row(*range(10)), priority=90))
        waits = [second.wait_seconds(priority) for priority in (1, 4, 5, 0, 90)]
        slow_pace, quick_pace = first._queue.throughput.seconds_per_token, second._queue.throughput.seconds_per_token
        assert slow_pace > 0.19
        assert quick_pace > 0.009
        assert waits == pytest.approx(
            [
                3 * slow_pace,
                3 * slow_pace,
                3 * slow_pace + 30 * quick_pace,
                7 * slow_pace + 30 * quick_pace,
                7 * slow_pace + 40 * quick_pace,
            ]
        )
        deadline = time.monotonic() + waits[2] / 0.5
        with pytest.raises(Exhausted):  # with all the others before it, its time would not do
            await submit(second, [row(1)], time.monotonic() + waits[4], priority=90)
        tasks.append(await waiting(second, row(1), deadline=deadline, priority=1))
        slow.gate.set()
        await asyncio.gather(*tasks)


async def test_two_threads_halve_the_wait() -> None:
    run = Slow(0.05)
    async with sharing(run, threads=2) as (scheduler,):
        await submit(scheduler, [row(1)])
        run.gate.clear()
        task = asyncio.create_task(submit(scheduler, [row(1), row(2), row(3, 4)]))
        await run.is_entered(3)
        assert scheduler.wait_seconds() == pytest.approx(4 * scheduler._queue.throughput.seconds_per_token / 2)
        run.gate.set()
        await task


async def test_an_idle_thread_takes_its_share_of_what_waits_for_all_models() -> None:
    workers = Workers(2)
    first, second = (Scheduler(Doubling(), SimilarLengths(1000), workers, 1000)._queue for _ in range(2))
    for queue in (first, second):
        for _ in range(4):
            queue.add_entry(QueueEntry(row(1, 1), frozenset(), math.inf, asyncio.get_running_loop().create_future()))
    assert workers._fair_tokens(first) == 4  # nothing is known of the other model's pace
    first.throughput.seconds_per_token = second.throughput.seconds_per_token = 0.1
    assert workers._fair_tokens(first) == 8  # both threads have work without halving it
    first.throughput.seconds_per_token = 0.3
    assert workers._fair_tokens(first) == 6  # of 3.2 seconds 1.6, and a bit
    assert workers._fair_tokens(second) == 16
    workers.close()


async def test_what_is_under_way_counts_so_that_threads_share_the_work_evenly() -> None:
    """Else the first one that is free would take all that waits, and the other one next to nothing when it is done."""
    workers = Workers(2)
    queue = Scheduler(Doubling(), SimilarLengths(1000), workers, 1000)._queue
    for _ in range(12):
        queue.add_entry(QueueEntry(row(1), frozenset(), math.inf, asyncio.get_running_loop().create_future()))
    queue.computing_tokens = 4
    assert workers._fair_tokens(queue) == 8
    queue.computing_tokens = 40  # long work elsewhere: this thread may take all that waits
    assert workers._fair_tokens(queue) > 12
    workers.close()


async def test_only_what_has_the_process_to_itself_is_told_so() -> None:
    told: list[tuple[int, bool]] = []

    class Noting(Doubling):
        def __call__(self, rows: Sequence[TokenSequence], outputs: frozenset[str], exclusive: bool) -> list[Answer]:
            told.append((int(rows[0].tokens["input_ids"][0]), exclusive))
            return super().__call__(rows, outputs, exclusive)

    a, b = Noting(gate_open=False), Noting()
    async with sharing(a, b) as (first, second):
        tasks = [asyncio.create_task(submit(first, [row(1)]))]
        await a.is_entered()
        tasks += [await waiting(second, row(2)), await waiting(first, row(3))]
        a.gate.set()
        await asyncio.gather(*tasks)
    assert told == [(1, True), (2, False), (3, True)]


async def test_what_is_in_no_hurry_lets_every_model_go_first() -> None:
    log: list[str] = []
    a, b = Named("a", log, gate_open=False), Named("b", log)
    async with sharing(a, b) as (first, second):
        tasks = await blocked(first, a)
        spare = asyncio.create_task(first.submit_background(row(7)))
        await asyncio.sleep(0)
        tasks += [await waiting(second, row(number), priority=100) for number in range(3)]
        a.gate.set()
        await asyncio.gather(*tasks, spare)
    assert log == ["a", "b", "b", "b", "a"]


async def test_halving_a_group_that_fails_never_takes_two_turns_while_others_wait() -> None:
    log: list[str] = []
    bad, good = Named("bad", log, gate_open=False), Named("good", log)
    async with sharing(bad, good) as (first, second):
        # One group of eight that all fail: 15 turns in all.
        first._queue._policy = SimilarLengths(8)
        start = await blocked(first, bad)
        failing = [await waiting(first, row(BAD)) for _ in range(8)]
        waits = [await waiting(second, row(number)) for number in range(20)]
        own = await waiting(first, *(row(1) for _ in range(8)))
        bad.gate.set()
        results = await asyncio.gather(*failing, return_exceptions=True)
        assert {type(result) for result in results} == {BadRow}
        assert len(doubles(await own)) == 8
        await asyncio.gather(*start, *waits)
    turns = [(name, len(list(same))) for name, same in groupby(log[2:])]  # after the blocked one and the whole group
    assert max(count for name, count in turns if name == "bad") == 1
    assert bad.batches[:3] == [[[BAD]] * 8, [[BAD]] * 4, [[BAD]] * 4]


async def test_of_a_group_that_failed_those_who_left_are_not_tried_again() -> None:
    other, run = Doubling(gate_open=False), Doubling(gate_open=False)
    async with sharing(other, run, policy=SimilarLengths(8)) as (first, second):
        start = await blocked(first, other)
        good, gone, bad = [await waiting(second, row(number)) for number in (1, 2, BAD)]
        other.gate.set()
        await run.is_entered()  # the three of them
        gone.cancel()
        await asyncio.wait({gone})
        run.gate.set()
        assert doubles(await good) == [[2]]
        with pytest.raises(BadRow):
            await bad
        await asyncio.gather(*start)
    assert run.batches[0] == [[1], [2], [BAD]]
    assert sorted(run.batches[1:]) == [[[1]], [[BAD]]]


async def test_of_a_request_that_failed_no_row_is_tried_again() -> None:
    first_of_all, run, between = Doubling(gate_open=False), Doubling(), Doubling(gate_open=False)
    async with sharing(first_of_all, run, between, policy=SimilarLengths(8)) as (first, second, third):
        tasks = await blocked(first, first_of_all)
        bad = await waiting(second, row(BAD), row(1))
        tasks.append(await waiting(third, row(2)))
        first_of_all.gate.set()
        with pytest.raises(BadRow):  # while the thread is held back with the third model's row
            await bad
        between.gate.set()
        await asyncio.gather(*tasks)
    assert run.batches == [[[BAD], [1]], [[BAD]]]


async def test_one_models_failures_and_slowness_reach_no_other_models_requests() -> None:
    bad, slow, good = Doubling(), Slow(0.001), Doubling()
    async with sharing(bad, slow, good, policy=SimilarLengths(8), threads=2) as (first, second, third):
        failing = [asyncio.create_task(submit(first, [row(BAD), row(BAD)])) for _ in range(30)]
        lasting = [asyncio.create_task(submit(second, [row(*range(5))])) for _ in range(30)]
        answers = await asyncio.gather(*(submit(third, [row(number)]) for number in range(100)))
        assert [doubles(answered) for answered in answers] == [[[2 * number]] for number in range(100)]
        assert {type(result) for result in await asyncio.gather(*failing, return_exceptions=True)} == {BadRow}
        assert all(len(answered.answers) == 1 for answered in await asyncio.gather(*lasting))


async def test_closing_one_of_two_under_load_loses_nothing_and_the_other_goes_on() -> None:
    a, b = Slow(0.0005), Slow(0.0005)
    async with sharing(a, b, policy=SimilarLengths(4), threads=2) as (first, second):
        tasks = [asyncio.create_task(submit(one, [row(n)])) for n in range(200) for one in (first, second)]
        await asyncio.sleep(0)
        closing = asyncio.create_task(first.close())
        later = [asyncio.create_task(submit(second, [row(n)])) for n in range(200, 300)]
        await closing
        assert all(task.done() for task in tasks[::2])
        with pytest.raises(Unavailable):
            await submit(first, [row(1)])
        for number, task in enumerate(tasks):
            assert doubles(await task) == [[2 * (number // 2)]]
        assert [doubles(answered)[0][0] for answered in await asyncio.gather(*later)] == list(range(400, 600, 2))
        assert first._queue not in second._workers._queues


async def test_closing_ends_though_the_callers_of_what_is_at_work_have_gone() -> None:
    run = Doubling(gate_open=False)
    async with sharing(run) as (scheduler,):
        gone = asyncio.create_task(submit(scheduler, [row(1)]))
        await run.is_entered()
        gone.cancel()
        closing = asyncio.create_task(scheduler.close())
        await asyncio.wait({gone})
        assert not closing.done()  # the model is still in use
        run.gate.set()
        await closing


@dataclass(frozen=True)
class Arrival:
    """A request, and what becomes of its caller."""

    model: int
    lengths: tuple[int, ...]
    priority: int
    bad: bool
    left: float  # seconds until its deadline
    leaves: bool
    pauses: bool  # before the next one comes


arrivals = st.lists(
    st.builds(
        Arrival,
        model=st.integers(0, 2),
        lengths=st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple),
        priority=st.integers(0, 12),
        bad=st.integers(0, 9).map(lambda number: number == 0),
        left=st.sampled_from([math.inf, math.inf, 0.0005, 0.01]),
        leaves=st.integers(0, 5).map(lambda number: number == 0),
        pauses=st.booleans(),
    ),
    max_size=60,
)


class Counted(Doubling):
    """Counts how many run at a time, of all models together."""

    lock = threading.Lock()
    running = most = 0

    def __call__(self, rows: Sequence[TokenSequence], outputs: frozenset[str], exclusive: bool) -> list[Answer]:
        with Counted.lock:
            Counted.running += 1
            Counted.most = max(Counted.most, Counted.running)
        try:
            return super().__call__(rows, outputs, exclusive)
        finally:
            with Counted.lock:
                Counted.running -= 1


@settings(max_examples=30, deadline=None)
@given(arrivals=arrivals, threads=st.integers(1, 3))
def test_whatever_comes_every_request_ends_once_and_nothing_is_left(arrivals: list[Arrival], threads: int) -> None:
    asyncio.run(traffic(arrivals, threads))


async def traffic(arrivals: list[Arrival], threads: int) -> None:
    Counted.most = 0
    runs = [Counted() for _ in range(3)]
    async with sharing(*runs, policy=SimilarLengths(8), threads=threads) as schedulers:  # which looks at what is left
        tasks: list[asyncio.Task[RequestResult]] = []
        for number, one in enumerate(arrivals):
            rows = [row(*[1000 * (number + 1) + at] * length) for at, length in enumerate(one.lengths)]
            if one.bad:
                rows[-1] = row(BAD)
            deadline = time.monotonic() + one.left
            tasks.append(asyncio.create_task(submit(schedulers[one.model], rows, deadline, priority=one.priority)))
            if one.pauses:
                await asyncio.sleep(0)
            if one.leaves:
                tasks[-1].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for number, (one, result) in enumerate(zip(arrivals, results, strict=True)):
        if isinstance(result, RequestResult):
            assert not one.bad
            assert doubles(result) == [
                [2 * (1000 * (number + 1) + at)] * length for at, length in enumerate(one.lengths)
            ]
        elif isinstance(result, BadRow):
            assert one.bad
        elif isinstance(result, asyncio.CancelledError):
            assert one.leaves
        else:
            assert isinstance(result, DeadlineExceeded | Exhausted)
            assert one.left < math.inf
    assert Counted.most <= threads
    for place, run in enumerate(runs):
        groups = [ids for ids in run.batches if not any(BAD in member for member in ids)]
        good = [tuple(member) for ids in groups for member in ids]
        assert len(good) == len(set(good))  # nothing is computed twice, but in a group that failed
        assert all(arrivals[member[0] // 1000 - 1].model == place for member in good)
