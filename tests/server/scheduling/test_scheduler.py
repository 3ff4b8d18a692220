"""The scheduler of one model."""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from heed.bundle.sequence_packing import Answer, TokenSequence
from heed.server.errors import DeadlineExceeded, Exhausted, InvalidArgument, Unavailable
from heed.server.scheduling.batching import OneByOne, SimilarLengths
from heed.server.scheduling.model_queue import (
    AVERAGED_TOKENS,
    BatchingPolicy,
    ModelQueue,
    QueueEntry,
    ThroughputEstimate,
)
from heed.server.scheduling.scheduler import RequestResult
from tests.server.scheduling.support import (
    BAD,
    PATIENCE,
    BadRow,
    Doubling,
    blocked,
    cancel,
    doubles,
    scheduling,
    submit,
    waiting,
)
from tests.server.support import row

STRATEGIES: list[BatchingPolicy] = [OneByOne(), SimilarLengths(8)]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
@pytest.mark.parametrize("workers", [1, 3])
async def test_answers_come_in_the_order_of_the_rows(strategy: BatchingPolicy, workers: int) -> None:
    async with scheduling(Doubling(), strategy, workers=workers) as scheduler:
        answered = await submit(scheduler, [row(1), row(2, 3, 4), row(5), row(6, 7), row(8)])
    assert doubles(answered) == [[2], [4, 6, 8], [10], [12, 14], [16]]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
async def test_everyone_gets_their_own_answers(strategy: BatchingPolicy) -> None:
    async with scheduling(Doubling(), strategy, workers=2) as scheduler:
        requests = [[row(*range(number, number + 1 + number % 4)), row(number)] for number in range(100)]
        answers = await asyncio.gather(*(submit(scheduler, rows) for rows in requests))
    for number, answered in enumerate(answers):
        ids = range(number, number + 1 + number % 4)
        assert doubles(answered) == [[2 * token for token in ids], [2 * number]]


async def test_a_request_that_does_not_fit_the_full_queue_is_refused_at_once() -> None:
    run = Doubling(gate_open=False)
    async with scheduling(run, max_tokens=5) as scheduler:
        tasks = await blocked(scheduler, run)
        tasks.append(await waiting(scheduler, row(1, 2, 3)))
        with pytest.raises(Exhausted, match="3 of 5 tokens wait, 3 more do not fit"):
            await submit(scheduler, [row(4, 5), row(6)])
        tasks.append(await waiting(scheduler, row(7, 8)))  # exactly full
        with pytest.raises(Exhausted, match="5 of 5 tokens wait, 1 more do not fit"):
            await submit(scheduler, [row(9)])
        run.gate.set()
        await asyncio.gather(*tasks)
    assert run.computed == [[1, 2, 3], [7, 8]]


async def test_the_queue_has_room_again_when_its_rows_are_at_work() -> None:
    run = Doubling(gate_open=False)
    async with scheduling(run, max_tokens=3) as scheduler:
        tasks = [asyncio.create_task(submit(scheduler, [row(1, 2, 3)]))]
        await run.is_entered()
        tasks.append(await waiting(scheduler, row(4, 5, 6)))
        run.gate.set()
        assert [doubles(answered) for answered in await asyncio.gather(*tasks)] == [[[2, 4, 6]], [[8, 10, 12]]]


async def test_a_request_larger_than_the_whole_queue_is_invalid_even_when_the_queue_is_empty() -> None:
    run = Doubling()
    async with scheduling(run, max_tokens=5) as scheduler:
        with pytest.raises(
            InvalidArgument, match=r"6 tokens and can never fit: the whole queue holds 5 .*; send fewer rows"
        ):
            await submit(scheduler, [row(1, 2, 3), row(4, 5, 6)])
    assert run.computed == []


async def test_a_cancelled_request_is_never_computed() -> None:
    run = Doubling(gate_open=False)
    async with scheduling(run) as scheduler:
        first = await blocked(scheduler, run)
        gone = await waiting(scheduler, row(1), row(2))
        stays = await waiting(scheduler, row(3))
        await cancel(gone)
        run.gate.set()
        await asyncio.gather(*first, stays)
    assert run.computed == [[3]]


async def test_a_cancelled_request_frees_its_tokens_at_once() -> None:
    run = Doubling(gate_open=False)
    async with scheduling(run, max_tokens=4) as scheduler:
        first = await blocked(scheduler, run)
        gone = await waiting(scheduler, row(1, 2), row(3, 4))
        with pytest.raises(Exhausted):
            await submit(scheduler, [row(5)])
        await cancel(gone)
        second = await waiting(scheduler, row(6, 7, 8, 9))  # the worker is still held back
        run.gate.set()
        await asyncio.gather(*first, second)
    assert run.computed == [[6, 7, 8, 9]]


@pytest.mark.parametrize("expired", [False, True])
async def test_requests_cancelled_just_as_a_worker_comes_free_are_not_computed(expired: bool) -> None:
    """The worker looks into the queue before the cancelled tasks have run again and taken their rows out."""
    run = Doubling(gate_open=False)
    async with scheduling(run) as scheduler:
        first = await blocked(scheduler, run)
        deadline = time.monotonic() + 0.02 if expired else math.inf
        gone = [await waiting(scheduler, row(number), deadline=deadline) for number in (1, 2)]
        stays = await waiting(scheduler, row(3))
        time.sleep(0.03)
        for task in gone:
            task.cancel()
        run.gate.set()
        time.sleep(0.05)  # the worker looks, and the loop has not run since
        await asyncio.gather(*first, stays)
        results = await asyncio.gather(*gone, return_exceptions=True)
        assert [type(result) for result in results] == [asyncio.CancelledError] * 2
    assert run.computed == [[3]]


async def test_a_request_cancelled_while_a_thread_forms_its_group_costs_no_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A caller who leaves takes no lock: the thread has seen that something waits, and then nothing does."""
    run = Doubling()
    async with scheduling(run) as scheduler:
        workers = scheduler._workers
        seen, gone, share = threading.Event(), threading.Event(), workers._fair_tokens

        def share_later(queue: ModelQueue) -> int:
            seen.set()
            assert gone.wait(PATIENCE)
            return share(queue)

        monkeypatch.setattr(workers, "_fair_tokens", share_later)
        task = asyncio.create_task(submit(scheduler, [row(1)]))
        while not seen.is_set():
            await asyncio.sleep(0)
        task.cancel()
        gone.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(5):
            assert doubles(await submit(scheduler, [row(2)])) == [[4]]
    assert run.computed == [[2]]


async def test_a_thread_that_fails_for_a_reason_of_ours_is_seen_and_replaced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with scheduling(Doubling()) as scheduler:
        failing = iter([ZeroDivisionError("a defect")])
        take = scheduler._workers._pop_batch

        def take_or_fail(now: float) -> Any:
            for error in failing:
                raise error
            return take(now)

        monkeypatch.setattr(scheduler._workers, "_pop_batch", take_or_fail)
        first = asyncio.create_task(submit(scheduler, [row(1)]))
        while "a defect" not in caplog.text:
            await asyncio.sleep(0.001)
        assert doubles(await submit(scheduler, [row(2)])) == [[4]]
        assert doubles(await first) == [[2]]


async def test_a_request_cancelled_while_it_is_computed_hurts_nobody() -> None:
    run = Doubling(gate_open=False)
    async with scheduling(run) as scheduler:
        gone = asyncio.create_task(submit(scheduler, [row(1)]))
        await run.is_entered()
        stays = await waiting(scheduler, row(2))
        await cancel(gone)
        run.gate.set()
        assert doubles(await stays) == [[4]]


async def test_a_request_that_waits_past_its_deadline_is_never_computed() -> None:
    run = Doubling(gate_open=False)
    async with scheduling(run) as scheduler:
        first = await blocked(scheduler, run)
        late = await waiting(scheduler, row(1), row(2), deadline=time.monotonic() + 0.02)
        stays = await waiting(scheduler, row(3), deadline=time.monotonic() + PATIENCE)
        await asyncio.sleep(0.03)
        run.gate.set()
        with pytest.raises(DeadlineExceeded, match="while the request waited"):
            await late
        await asyncio.gather(*first, stays)
    assert run.computed == [[3]]


async def test_expired_requests_give_their_room_back() -> None:
    run = Doubling(gate_open=False)
    async with scheduling(run, max_tokens=4) as scheduler:
        first = await blocked(scheduler, run)
        late = await waiting(scheduler, row(1, 2, 3, 4), deadline=time.monotonic() + 0.02)
        await asyncio.sleep(0.03)
        run.gate.set()
        with pytest.raises(DeadlineExceeded):
            await late
        await asyncio.gather(*first)
        assert doubles(await submit(scheduler, [row(5, 6, 7, 8)])) == [[10, 12, 14, 16]]


async def test_more_expired_requests_than_the_window_holds_do_not_hide_those_that_wait() -> None:
    run = Doubling(gate_open=False)
    async with scheduling(run, SimilarLengths(8)) as scheduler:
        first = await blocked(scheduler, run)
        soon = time.monotonic() + 0.05
        late = [await waiting(scheduler, row(1), deadline=soon) for _ in range(SimilarLengths(8).window + 5)]
        stays = await waiting(scheduler, row(2))
        await asyncio.sleep(soon + 0.01 - time.monotonic())
        run.gate.set()
        await asyncio.gather(*first, stays)
        results = await asyncio.gather(*late, return_exceptions=True)
        assert {type(result) for result in results} == {DeadlineExceeded}
    assert run.computed == [[2]]


async def test_a_deadline_that_has_passed_already_is_refused_at_once() -> None:
    run = Doubling()
    async with scheduling(run) as scheduler:
        with pytest.raises(DeadlineExceeded, match="when the request arrived"):
            await submit(scheduler, [row(1)], deadline=time.monotonic() - 1)
    assert run.computed == []


async def test_in_a_group_that_fails_only_the_bad_one_fails() -> None:
    run = Doubling(gate_open=False)
    async with scheduling(run, SimilarLengths(100)) as scheduler:
        first = await blocked(scheduler, run)
        tasks = [await waiting(scheduler, row(number)) for number in (1, 2, BAD, 4, 5, 6, 7)]
        run.gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*first)
    assert run.batches[0] == [[1], [2], [BAD], [4], [5], [6], [7]]
    assert isinstance(results.pop(2), BadRow)
    assert [doubles(result) for result in results if isinstance(result, RequestResult)] == [
        [[2]], [[4]], [[8]], [[10]], [[12]], [[14]]
    ]  # fmt: skip


async def test_several_bad_ones_in_a_group_fail_and_no_other() -> None:
    run = Doubling(gate_open=False)
    async with scheduling(run, SimilarLengths(100), workers=2) as scheduler:
        first = await blocked(scheduler, run, workers=2)
        numbers = [BAD, 1, 2, BAD, BAD, 3, 4, BAD]
        tasks = [await waiting(scheduler, row(number)) for number in numbers]
        run.gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*first)
    for number, result in zip(numbers, results, strict=True):
        if number == BAD:
            assert isinstance(result, BadRow)
        else:
            assert isinstance(result, RequestResult)
            assert doubles(result) == [[2 * number]]


async def test_one_bad_row_fails_its_request_and_no_other_request() -> None:
    run = Doubling(gate_open=False)
    async with scheduling(run, SimilarLengths(100)) as scheduler:
        first = await blocked(scheduler, run)
        bad = await waiting(scheduler, row(1), row(BAD), row(2))
        good = await waiting(scheduler, row(3), row(4))
        run.gate.set()
        with pytest.raises(BadRow):
            await bad
        assert doubles(await good) == [[6], [8]]
        await asyncio.gather(*first)


async def test_two_bad_rows_in_one_request_leave_no_error_that_nobody_looked_at() -> None:
    async with scheduling(Doubling(), workers=2) as scheduler:
        with pytest.raises(BadRow):
            await submit(scheduler, [row(BAD), row(BAD), row(BAD)])
        assert doubles(await submit(scheduler, [row(1)])) == [[2]]


async def test_the_rest_of_a_request_that_failed_frees_its_tokens_and_is_not_computed() -> None:
    class Holding(Doubling):
        """Fails first, and is then held back."""

        failed = False

        def __call__(self, rows: Sequence[TokenSequence], outputs: frozenset[str], exclusive: bool) -> list[Answer]:
            if not self.failed:
                self.failed = True
                raise BadRow
            return super().__call__(rows, outputs, exclusive)

    run = Holding(gate_open=False)
    async with scheduling(run, max_tokens=20) as scheduler:
        with pytest.raises(BadRow):
            await submit(scheduler, [row(number) for number in range(20)])
        task = await waiting(scheduler, *(row(number) for number in range(100, 120)))
        run.gate.set()
        assert len(doubles(await task)) == 20
    assert len([ids for ids in run.computed if ids[0] < 100]) <= 1  # the thread was quicker than the caller


async def test_a_closed_scheduler_is_unavailable() -> None:
    async with scheduling(Doubling()) as scheduler:
        await scheduler.close()
        with pytest.raises(Unavailable, match="shutting down"):
            await submit(scheduler, [row(1)])


async def test_close_waits_for_what_is_at_work_and_for_what_waits() -> None:
    run = Doubling(gate_open=False)
    async with scheduling(run, workers=2) as scheduler:
        tasks = await blocked(scheduler, run, workers=2)
        tasks += [await waiting(scheduler, row(number)) for number in range(1, 6)]
        closing = asyncio.create_task(scheduler.close())
        await asyncio.sleep(0.05)
        assert not closing.done()
        run.gate.set()
        await closing
        assert all(task.done() for task in tasks)
        assert [doubles(task.result()) for task in tasks[2:]] == [[[2]], [[4]], [[6]], [[8]], [[10]]]


async def test_the_oldest_row_is_in_every_next_group() -> None:
    run = Doubling(gate_open=False)
    async with scheduling(run, SimilarLengths(24)) as scheduler:
        tasks = await blocked(scheduler, run)
        lengths = [20, 1, 7, 3, 19, 2, 2, 11, 1, 24, 6, 5, 1, 18, 3] * 4
        for number, length in enumerate(lengths, 1):
            tasks.append(await waiting(scheduler, row(*[number] * length)))
        run.gate.set()
        await asyncio.gather(*tasks)
    left = list(range(1, len(lengths) + 1))
    for group in run.batches:
        numbers = [ids[0] for ids in group]
        assert left[0] in numbers
        left = [number for number in left if number not in numbers]
    assert left == []
    assert len(run.batches) < len(lengths) / 2  # and groups were made


async def test_a_long_row_does_not_starve_under_a_stream_of_short_ones_that_never_runs_dry() -> None:
    loop = asyncio.get_running_loop()
    tasks: list[asyncio.Task[RequestResult]] = []

    class Fed(Doubling):
        """For every group it computes, more rows have come when it is done than a group takes."""

        def __call__(self, rows: Sequence[TokenSequence], outputs: frozenset[str], exclusive: bool) -> list[Answer]:
            if len(self.batches) < 30:
                loop.call_soon_threadsafe(submit_short_ones)
            return super().__call__(rows, outputs, exclusive)

    def submit_short_ones() -> None:
        tasks.extend(asyncio.create_task(submit(scheduler, [row(1)])) for _ in range(10))

    run = Fed(gate_open=False)
    async with scheduling(run, SimilarLengths(8)) as scheduler:
        tasks += await blocked(scheduler, run)
        tasks += [await waiting(scheduler, row(1)) for _ in range(5)]
        long = await waiting(scheduler, row(*range(30)))
        run.gate.set()
        await long
        while unanswered := [task for task in tasks if not task.done()]:
            await asyncio.gather(*unanswered)
    place = next(place for place, group in enumerate(run.batches) if list(range(30)) in group)
    assert place <= 5  # at most one group for each of the five that came before it


def entry(length: int) -> QueueEntry:
    return QueueEntry(row(*range(length)), frozenset(), math.inf, asyncio.get_running_loop().create_future())


async def taken(lengths: list[int], max_tokens: int, fair_tokens: int = 1000) -> list[int]:
    """The lengths of the rows that `SimilarLengths` takes out of a queue, in the queue's order."""
    queue = [entry(length) for length in lengths]
    group = SimilarLengths(max_tokens).choose_batch(queue, fair_tokens)
    assert group[0] is queue[0]
    assert len({id(member) for member in group}) == len(group)
    return [member.tokens for member in sorted(group, key=queue.index)]


async def test_neighbours_takes_the_rows_nearest_in_length() -> None:
    assert await taken([10, 30, 11, 2, 9, 10], max_tokens=40) == [10, 11, 9, 10]
    assert await taken([10, 30, 11, 2, 9, 10], max_tokens=20) == [10, 10]


async def test_neighbours_stays_within_its_tokens() -> None:
    assert await taken([10, 10, 10], max_tokens=30) == [10, 10, 10]
    assert await taken([10, 10, 10], max_tokens=29) == [10, 10]
    assert await taken([10, 10, 10], max_tokens=19) == [10]


async def test_neighbours_takes_a_row_larger_than_its_tokens_alone() -> None:
    assert await taken([50, 1, 50], max_tokens=20) == [50]


async def test_neighbours_leaves_idle_workers_their_share() -> None:
    assert await taken([10, 10, 10, 10], max_tokens=100, fair_tokens=20) == [10, 10]


async def test_rows_that_come_at_once_are_shared_by_idle_workers() -> None:
    run = Doubling(gate_open=False)
    async with scheduling(run, SimilarLengths(1000), workers=2) as scheduler:
        task = asyncio.create_task(submit(scheduler, [row(number, number) for number in range(8)]))
        await run.is_entered(2)  # both workers are at work at the same time
        run.gate.set()
        await task
    assert sorted(map(len, run.batches)) == [4, 4]


async def test_alone_computes_one_row_at_a_time() -> None:
    run = Doubling()
    async with scheduling(run, OneByOne()) as scheduler:
        await submit(scheduler, [row(1), row(2), row(3)])
    assert run.batches == [[[1]], [[2]], [[3]]]


async def test_times_tell_waiting_from_computing() -> None:
    run = Doubling(gate_open=False)
    async with scheduling(run) as scheduler:
        first = await blocked(scheduler, run)
        second = await waiting(scheduler, row(1))
        await asyncio.sleep(0.05)
        run.gate.set()
        computed, waited = await asyncio.gather(*first, second)
    assert computed.compute_seconds > 0.04 > computed.queue_seconds >= 0
    assert waited.queue_seconds > 0.04 > waited.compute_seconds > 0


async def test_random_traffic_is_answered_whole_and_never_mixed_up() -> None:
    """Requests of every kind at once: good, bad, cancelled and expired."""
    run = Doubling()
    kinds: list[Callable[[int], list[TokenSequence]]] = [
        lambda n: [row(n)],
        lambda n: [row(n, n + 1), row(n + 2)],
        lambda n: [row(*range(n, n + 9))],
        lambda n: [row(n), row(BAD)],
    ]
    async with scheduling(run, SimilarLengths(16), workers=3, max_tokens=10_000) as scheduler:
        tasks = []
        for number in range(0, 2000, 10):
            deadline = time.monotonic() + 0.001 if number % 7 == 0 else math.inf
            tasks.append(asyncio.create_task(submit(scheduler, kinds[number // 10 % 4](number), deadline)))
            if number % 30 == 0:
                await asyncio.sleep(0)
            if number % 11 == 0:
                tasks[-1].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for index, result in enumerate(results):
        number = index * 10
        if isinstance(result, RequestResult):
            wanted = [(sequence.tokens["input_ids"] * 2).tolist() for sequence in kinds[index % 4](number)]
            assert doubles(result) == wanted
        elif isinstance(result, BadRow):
            assert index % 4 == 3
        elif isinstance(result, DeadlineExceeded | Exhausted):
            assert number % 7 == 0
        else:
            assert isinstance(result, asyncio.CancelledError)
            assert number % 11 == 0
    answered = sum(isinstance(result, RequestResult) for result in results)
    assert answered > 100


# What is in no hurry


async def test_what_is_in_no_hurry_is_computed_when_nothing_waits() -> None:
    run = Doubling()
    async with scheduling(run) as scheduler:
        answer = await scheduler.submit_background(row(2, 3))
    assert answer["double"].tolist() == [4, 6]


async def test_what_is_in_no_hurry_lets_everybody_go_first_and_goes_alone() -> None:
    run = Doubling(gate_open=False)
    async with scheduling(run, SimilarLengths(100)) as scheduler:
        first = asyncio.create_task(submit(scheduler, [row(1)]))
        await run.is_entered()
        spare = [asyncio.create_task(scheduler.submit_background(row(7 + number))) for number in range(2)]
        await asyncio.sleep(0)
        later = asyncio.create_task(submit(scheduler, [row(2), row(3)]))
        await asyncio.sleep(0)
        run.gate.set()
        await asyncio.gather(first, later, *spare)
    assert run.batches == [[[1]], [[2], [3]], [[7]], [[8]]]


async def test_what_is_in_no_hurry_takes_no_room_in_the_queue() -> None:
    run = Doubling(gate_open=False)
    async with scheduling(run, max_tokens=2) as scheduler:
        first = asyncio.create_task(submit(scheduler, [row(1)]))
        await run.is_entered()
        spare = asyncio.create_task(scheduler.submit_background(row(7, 8, 9)))
        await asyncio.sleep(0)
        assert scheduler.waiting_tokens == 0
        second = asyncio.create_task(submit(scheduler, [row(2, 3)]))
        await asyncio.sleep(0)
        assert scheduler.waiting_tokens == 2
        run.gate.set()
        await asyncio.gather(first, second, spare)


async def test_what_is_in_no_hurry_is_let_go_when_its_caller_leaves_or_all_is_closed() -> None:
    run = Doubling(gate_open=False)
    async with scheduling(run) as scheduler:
        first = asyncio.create_task(submit(scheduler, [row(1)]))
        await run.is_entered()
        left, kept = (asyncio.create_task(scheduler.submit_background(row(number))) for number in (7, 8))
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.wait({left})
        closing = asyncio.create_task(scheduler.close())
        await asyncio.sleep(0)
        run.gate.set()
        with pytest.raises(Unavailable):
            await kept
        await asyncio.gather(first, closing)
        with pytest.raises(Unavailable):
            await scheduler.submit_background(row(9))
    assert run.computed == [[1]]


async def test_what_is_in_no_hurry_may_fail() -> None:
    run = Doubling()
    async with scheduling(run) as scheduler:
        with pytest.raises(BadRow):
            await scheduler.submit_background(row(BAD))
        assert (await submit(scheduler, [row(2)])).answers[0]["double"].tolist() == [4]


class Slow(Doubling):
    """Takes a tenth of a second for every token."""

    def __call__(self, rows: Sequence[TokenSequence], outputs: frozenset[str], exclusive: bool) -> list[Answer]:
        time.sleep(0.1 * sum(map(len, rows)))
        return super().__call__(rows, outputs, exclusive)


async def test_a_request_that_could_not_be_answered_in_time_is_refused_at_once() -> None:
    async with scheduling(Slow()) as scheduler:
        await submit(scheduler, [row(1)])  # now its pace is known
        tasks = [await waiting(scheduler, row(1, 2, 3)), await waiting(scheduler, row(4, 5, 6))]
        assert scheduler.wait_seconds() == pytest.approx(0.6, abs=0.3)
        before = time.monotonic()
        with pytest.raises(Exhausted, match=r"too much is waiting: 0\.\d+ s of work, and the deadline is in 0\.\d+ s"):
            await submit(scheduler, [row(7)], deadline=before + 0.3)
        assert time.monotonic() - before < 0.1
        tasks.append(asyncio.create_task(submit(scheduler, [row(8)], deadline=before + 5)))
        await asyncio.gather(*tasks)
        assert scheduler.wait_seconds() == 0


async def test_an_idle_server_tries_whatever_time_is_left() -> None:
    """What is expected may be wrong: a request is refused for what others have in the queue, not for its own work."""
    async with scheduling(Slow()) as scheduler:
        await submit(scheduler, [row(1)])
        answered = await submit(scheduler, [row(2)], deadline=time.monotonic() + 0.05)
    assert doubles(answered) == [[4]]


async def test_what_would_come_too_late_is_not_computed_while_others_could_use_the_time() -> None:
    run = Doubling(gate_open=False)
    async with scheduling(run, SimilarLengths(8)) as scheduler:
        first = await blocked(scheduler, run)
        soon, later = time.monotonic() + 5, time.monotonic() + 50
        late = await waiting(scheduler, row(1, 1), deadline=soon)
        stays = [await waiting(scheduler, row(number, 2), deadline=later) for number in (2, 3)]
        scheduler._queue.throughput.update(AVERAGED_TOKENS, AVERAGED_TOKENS * 1.0)  # a group of six tokens
        stays.append(await waiting(scheduler, row(4, 4, 4)))  # another group's, which could use the time
        run.gate.set()
        with pytest.raises(DeadlineExceeded, match="came too near for an answer while the request waited"):
            await late
        await asyncio.gather(*first, *stays)
    assert run.batches == [[[2, 2], [3, 2]], [[4, 4, 4]]]


async def test_one_request_is_tried_whatever_is_expected() -> None:
    """Otherwise nothing would be computed any more, and so nothing would show that the expectation is wrong."""
    run = Doubling(gate_open=False)
    async with scheduling(run, SimilarLengths(4)) as scheduler:
        first = await blocked(scheduler, run)
        deadline = time.monotonic() + PATIENCE
        tasks = [await waiting(scheduler, row(number, number), deadline=deadline) for number in range(1, 5)]
        scheduler._queue.throughput.update(AVERAGED_TOKENS, AVERAGED_TOKENS * 1000.0)
        run.gate.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*first)
    assert run.batches[0] == [[1, 1]]
    assert isinstance(outcomes[1], DeadlineExceeded)
    assert scheduler._queue.throughput.seconds_per_token < 1000.0


async def test_what_had_the_machine_to_itself_teaches_the_pace_only_if_nothing_else_has() -> None:
    async with scheduling(Slow(), workers=2) as scheduler:
        await submit(scheduler, [row(1)])
        pace = scheduler._queue.throughput.seconds_per_token
        await submit(scheduler, [row(1)])
        assert scheduler._queue.throughput.seconds_per_token == pace
        await submit(scheduler, [row(1), row(2)])
        assert scheduler._queue.throughput.seconds_per_token != pace


async def test_a_pace_that_a_stall_has_left_behind_does_not_refuse_for_ever() -> None:
    """What is refused leaves the others alone, and they alone can show that the expectation is wrong."""
    async with scheduling(Slow(), workers=2) as scheduler:
        scheduler._queue.throughput.update(1, 6.0)
        for _ in range(20):
            both = (submit(scheduler, [row(1)], time.monotonic() + 2) for _ in range(2))
            outcomes = await asyncio.gather(*both, return_exceptions=True)
            if not any(isinstance(outcome, Exhausted) for outcome in outcomes):
                return
    raise AssertionError("one of two is refused again and again, and a thread is idle")


def test_a_run_on_all_cores_bounds_the_pace_of_one() -> None:
    pace = ThroughputEstimate()
    pace.update(10, 10.0)
    pace.update(10, 6.0, cores=2)  # up to 12 on one
    assert pace.seconds_per_token == 1.0
    pace.update(10, 2.0, cores=2)  # 4 at most
    assert pace.seconds_per_token == pytest.approx(0.7)


def test_a_pace_follows_what_workers_do_and_forgets_what_they_did_long_ago() -> None:
    pace = ThroughputEstimate()
    pace.update(10, 10.0)
    assert pace.seconds_per_token == 1.0
    pace.update(990, 9.9 - 0.01)  # the first group was slow, and counts for its size and no more
    assert pace.seconds_per_token == pytest.approx(0.02, rel=0.01)
    for _ in range(100):
        pace.update(AVERAGED_TOKENS // 10, AVERAGED_TOKENS // 10 * 0.5)
    assert pace.seconds_per_token == pytest.approx(0.5, rel=0.01)


async def test_a_group_computes_what_its_members_ask_for() -> None:
    asked: list[frozenset[str]] = []

    class Noting(Doubling):
        def __call__(self, rows: Sequence[TokenSequence], outputs: frozenset[str], exclusive: bool) -> list[Answer]:
            asked.append(outputs)
            return super().__call__(rows, outputs, exclusive)

    run = Noting(gate_open=False)
    async with scheduling(run, SimilarLengths(4)) as scheduler:
        tasks = await blocked(scheduler, run)
        for number, names in enumerate(["ab", "bc", "b", "b", "a", ""]):
            tasks.append(asyncio.create_task(submit(scheduler, [row(number, number)], outputs=frozenset(names))))
        await asyncio.sleep(0)
        run.gate.set()
        await asyncio.gather(*tasks)
    assert asked[1:] == [frozenset("abc"), frozenset("b"), frozenset()]  # the last one asks for all


async def test_only_a_request_with_nothing_beside_it_has_the_machine_to_itself() -> None:
    told: list[tuple[list[int], bool]] = []

    class Noting(Doubling):
        def __call__(self, rows: Sequence[TokenSequence], outputs: frozenset[str], exclusive: bool) -> list[Answer]:
            told.append((rows[0].tokens["input_ids"].tolist(), exclusive))
            return super().__call__(rows, outputs, exclusive)

    run = Noting(gate_open=False)
    async with scheduling(run, workers=2) as scheduler:
        tasks = [asyncio.create_task(submit(scheduler, [row(1)]))]
        await run.is_entered()
        tasks.append(asyncio.create_task(submit(scheduler, [row(2)])))  # beside the first
        await run.is_entered()
        run.gate.set()
        await asyncio.gather(*tasks)
        await submit(scheduler, [row(4)])
        run.gate.clear()
        tasks.append(asyncio.create_task(submit(scheduler, [row(5), row(6)])))  # two groups here, side by side
        await run.is_entered(3)
        run.gate.set()
        await asyncio.gather(*tasks)
    assert {tuple(ids): alone for ids, alone in told} == {
        (1,): True,
        (2,): False,
        (4,): True,
        (5,): False,
        (6,): False,
    }
