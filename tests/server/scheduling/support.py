"""Schedulers without a model: what they are given to run doubles every id, so answers can be checked by eye."""

import asyncio
import gc
import math
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from heed.bundle.sequence_packing import Answer, TokenSequence
from heed.server.scheduling.batching import OneByOne
from heed.server.scheduling.model_queue import LAST_LEVEL, BatchingPolicy
from heed.server.scheduling.scheduler import RequestResult, Scheduler
from heed.server.scheduling.workers import Workers
from tests.server.support import row

BAD = 666  # a row with this id cannot be computed
PATIENCE = 60.0  # seconds; nothing here takes that long unless it hangs


class BadRow(Exception):
    pass


class Doubling:
    """Doubles ids. Notes every batch it computes, and holds its workers back while its gate is closed."""

    def __init__(self, *, gate_open: bool = True) -> None:
        self.batches: list[list[list[int]]] = []
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        if gate_open:
            self.gate.set()

    def __call__(self, rows: Sequence[TokenSequence], outputs: frozenset[str], exclusive: bool) -> list[Answer]:
        ids = [member.tokens["input_ids"].tolist() for member in rows]
        self.batches.append(ids)
        self.entered.release()
        assert self.gate.wait(PATIENCE)
        if any(BAD in member for member in ids):
            raise BadRow
        return [{"double": member.tokens["input_ids"] * 2} for member in rows]

    @property
    def computed(self) -> list[list[int]]:
        """Every row that was computed, in order."""
        return [ids for batch in self.batches for ids in batch]

    async def is_entered(self, times: int = 1) -> None:
        for _ in range(times):
            assert await asyncio.to_thread(self.entered.acquire, timeout=PATIENCE)


@asynccontextmanager
async def sharing(
    *runs: Doubling, policy: BatchingPolicy | None = None, threads: int = 1, max_tokens: int = 1000
) -> AsyncIterator[list[Scheduler]]:
    """A scheduler for each run. They are closed at the end, and must have left nothing behind then."""
    complaints: list[dict[str, Any]] = []
    gc.freeze()  # what was there before need not be looked through at the end
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    workers = Workers(threads)
    schedulers = [Scheduler(run, policy or OneByOne(), workers, max_tokens) for run in runs]
    try:
        async with asyncio.timeout(PATIENCE):
            yield schedulers
            for run in runs:
                run.gate.set()
            await asyncio.gather(*(scheduler.close() for scheduler in schedulers))
    finally:
        for run in runs:
            run.gate.set()
    assert [scheduler.waiting_tokens for scheduler in schedulers] == [0] * len(runs)
    assert workers.seconds_ahead(LAST_LEVEL) == 0
    workers.close()
    await asyncio.sleep(0)  # what had to be woken up is awake
    gc.collect()  # an error that nobody looked at complains when it is collected
    gc.unfreeze()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert complaints == []


@asynccontextmanager
async def scheduling(
    run: Doubling, policy: BatchingPolicy | None = None, *, workers: int = 1, max_tokens: int = 1000
) -> AsyncIterator[Scheduler]:
    """One scheduler with threads of its own."""
    async with sharing(run, policy=policy, threads=workers, max_tokens=max_tokens) as (scheduler,):
        yield scheduler


async def submit(
    scheduler: Scheduler,
    rows: Sequence[TokenSequence],
    deadline: float = math.inf,
    outputs: frozenset[str] = frozenset(),
    priority: int = 0,
) -> RequestResult:
    """Admits a request and waits for its answers."""
    return await scheduler.admit(deadline, priority).submit(rows, outputs)


async def blocked(scheduler: Scheduler, run: Doubling, workers: int = 1) -> list[asyncio.Task[RequestResult]]:
    """Every worker has a row of one token to compute, and is held back."""
    tasks = [asyncio.create_task(submit(scheduler, [row(0)])) for _ in range(workers)]
    await run.is_entered(workers)
    run.batches.clear()
    return tasks


async def waiting(
    scheduler: Scheduler, *rows: TokenSequence, deadline: float = math.inf, priority: int = 0
) -> asyncio.Task[RequestResult]:
    """A request that is in the queue."""
    task = asyncio.create_task(submit(scheduler, list(rows), deadline, priority=priority))
    await asyncio.sleep(0)
    assert not task.done()
    return task


async def cancel(task: asyncio.Task[RequestResult]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def doubles(answered: RequestResult) -> list[list[int]]:
    return [answer["double"].tolist() for answer in answered.answers]
