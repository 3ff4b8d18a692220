"""The order in which entries go, on a clock that the tests make."""

import asyncio
import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heed.server.scheduling.batching import OneByOne
from heed.server.scheduling.model_queue import (
    DEFAULT_LEVEL,
    LAST_LEVEL,
    LONGEST_WAIT,
    OVERDUE,
    ModelQueue,
    QueueEntry,
    level_of,
)
from tests.server.support import row


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Replies belong to one; it does not run."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def new_queue(loop: asyncio.AbstractEventLoop) -> ModelQueue:
    """Nothing is computed: the tests take entries out."""
    run: Any = None

    async def made() -> ModelQueue:
        return ModelQueue(run, OneByOne(), lambda: None)

    return loop.run_until_complete(made())


def test_one_is_the_most_urgent_and_zero_the_default() -> None:
    assert level_of(0) == DEFAULT_LEVEL
    assert [level_of(priority) for priority in (1, 2, LAST_LEVEL, LAST_LEVEL + 1, 2**64 - 1)] == [
        1, 2, LAST_LEVEL, LAST_LEVEL, LAST_LEVEL
    ]  # fmt: skip
    assert OVERDUE < 1 < DEFAULT_LEVEL < LAST_LEVEL


seconds = st.floats(0, 2 * LONGEST_WAIT)
# Arrivals: the time since the one before, a priority, tokens, and the time until the deadline. None: the next one goes.
events = st.lists(
    st.none() | st.tuples(seconds, st.integers(0, 12), st.integers(1, 5), st.just(math.inf) | seconds), max_size=40
)


@given(events=events, step=seconds)
def test_urgent_ones_go_first_but_none_waits_longer_than_the_bound_for_those_that_came_later(
    loop: asyncio.AbstractEventLoop, events: list[tuple[float, int, int, float] | None], step: float
) -> None:
    queue, waiting, now = new_queue(loop), list[QueueEntry](), 0.0
    for event in [*events, *[None] * len(events)]:  # all that is left goes at the end
        if event is not None:
            wait, priority, tokens, left = event
            now += wait
            waiting.append(
                QueueEntry(row(*range(tokens)), frozenset(), now + left, loop.create_future(), level_of(priority), now)
            )
            queue.add_entry(waiting[-1])
        else:
            now += step
            waiting = [entry for entry in waiting if entry.deadline > now]
            levels = {entry: entry.level for entry in waiting}
            went = queue.first_entries(1, now)
            assert len(went) == bool(waiting)
            for entry in went:
                overdue = [one for one in waiting if now - one.arrived > LONGEST_WAIT]
                if overdue:
                    assert entry.arrived == overdue[0].arrived
                else:
                    assert entry is sorted(waiting, key=levels.__getitem__)[0]
                queue.remove_entry(entry)
                waiting.remove(entry)
        for level in (0, 1, 5, LAST_LEVEL):  # those that expired may still be counted until somebody looks
            expected = sum(entry.tokens for entry in waiting if entry.level <= level)
            assert queue.tokens_ahead(level) >= expected
    assert not queue
    assert queue.waiting_tokens == 0


def test_first_gives_as_many_as_are_asked_for_in_their_order(loop: asyncio.AbstractEventLoop) -> None:
    queue = new_queue(loop)
    made = [
        QueueEntry(row(1), frozenset(), math.inf, loop.create_future(), level, arrived)
        for arrived, level in enumerate([10, 1, 20, 1, 10])
    ]
    for entry in made:
        queue.add_entry(entry)
    assert [made.index(entry) for entry in queue.first_entries(10, now=5)] == [1, 3, 0, 4, 2]
    assert [made.index(entry) for entry in queue.first_entries(3, now=5)] == [1, 3, 0]
    late = queue.first_entries(10, now=2.5 + LONGEST_WAIT)
    assert [made.index(entry) for entry in late] == [0, 1, 2, 3, 4]
    assert [entry.level for entry in late] == [OVERDUE, OVERDUE, OVERDUE, 1, 10]
    assert queue.tokens_ahead(OVERDUE) == 3


def test_a_deadline_is_noticed_soon_wherever_it_stands(loop: asyncio.AbstractEventLoop) -> None:
    queue = new_queue(loop)
    for priority, deadline in ((1, math.inf), (1, math.inf), (50, 2.0)):
        queue.add_entry(
            QueueEntry(row(1), frozenset(), deadline, loop.create_future(), level_of(priority), arrived=0.0)
        )
    for now in (0.0, 1.0, 2.0):
        assert len(queue.first_entries(1, now)) == 1
    assert queue.waiting_rows == 2


def test_those_whose_caller_has_gone_are_let_go(loop: asyncio.AbstractEventLoop) -> None:
    queue = new_queue(loop)
    gone, stays = (QueueEntry(row(1, 2), frozenset(), math.inf, loop.create_future()) for _ in range(2))
    queue.add_entry(gone)
    queue.add_entry(stays)
    gone.reply.cancel()
    assert queue.first_entries(10, now=stays.arrived) == [stays]
    assert queue.waiting_tokens == 2
    queue.remove_entry(gone)  # once more does no harm
    assert queue.waiting_tokens == 2
