"""Admission and the callers' side of the queue: which requests are taken, and how their callers get the answers.

This is the event loop's side of `workers.py`. It runs on the event loop's thread alone, and shares with the worker
threads what `Workers.lock` guards. An entry carries its own future, so no answer can reach another caller, and the
entries of a caller who has left are removed from the queue.
"""

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from heed.server.errors import DeadlineExceeded, Exhausted, InvalidArgument, Unavailable
from heed.server.scheduling.model_queue import (
    LAST_LEVEL,
    Answer,
    BatchingPolicy,
    BatchObserver,
    ModelQueue,
    QueueEntry,
    Row,
    Run,
    level_of,
)
from heed.server.scheduling.workers import Workers

CLOSED = "the server is shutting down; call another one"
# A request is admitted only if the work ahead of it should be done after this share of its time. Estimates are
# uncertain, and an answer that comes too late is wasted work.
ADMITTED_SHARE = 0.75
LEAST_RETRY_SECONDS = 0.05  # the earliest retry that a refused caller is given


@dataclass(frozen=True)
class RequestResult:
    """The answers to a request's rows, in their order, and where the time went."""

    answers: list[Answer]
    queue_seconds: float  # until the last row's computation began
    compute_seconds: float  # from the first row's beginning to the last row's end


class Admission:
    """The ticket of a request that was admitted in time. Its rows are submitted once they are known."""

    def __init__(self, scheduler: "Scheduler", deadline: float, level: int) -> None:
        self._scheduler = scheduler
        self._deadline = deadline
        self._level = level

    async def submit(self, rows: Sequence[Row], outputs: frozenset[str] = frozenset()) -> RequestResult:
        """Waits for the answers to all rows of the request.

        Args:
            outputs: the graph's outputs that the answers must have; all if empty.

        Raises:
            InvalidArgument: the request is larger than the whole queue.
            Exhausted: the queue has no room for it now.
            DeadlineExceeded: the deadline passed before the work began.
            Unavailable: the scheduler is closed.
        """
        loop = asyncio.get_running_loop()
        entries = [QueueEntry(row, outputs, self._deadline, loop.create_future(), self._level) for row in rows]
        answers = await self._scheduler.add_entries(entries)
        started = [entry.started for entry in entries]
        return RequestResult(
            answers,
            queue_seconds=max(started) - entries[0].arrived,
            compute_seconds=max(entry.finished for entry in entries) - min(started),
        )


class Scheduler:
    """Owns the queue of one model."""

    def __init__(
        self,
        run: Run,
        policy: BatchingPolicy,
        workers: Workers,
        max_tokens: int,
        observers: Sequence[BatchObserver] = (),
    ) -> None:
        """
        Args:
            workers: the threads that compute, shared with other models' schedulers.
            max_tokens: how many tokens may wait.
            observers: are called for each batch.
        """
        self._workers = workers
        self._max_tokens = max_tokens
        self._unanswered = 0  # requests
        self._progress = asyncio.Event()  # a request or a batch has ended
        self._queue = ModelQueue(run, policy, self._progress.set, observers)
        self._closed = False
        workers.add_queue(self._queue)

    def admit(self, deadline: float = math.inf, priority: int = 0) -> Admission:
        """Admits a request that can be answered in time. Its rows need not be known: overload costs little work.

        Args:
            deadline: on time.monotonic's clock.
            priority: 1 is the most urgent; 0 is the default.

        Raises:
            DeadlineExceeded: the deadline has passed.
            Exhausted: it will have passed when the work ahead of the request is done.
            Unavailable: the scheduler is closed.
        """
        self._check_open()
        level = level_of(priority)
        seconds_left = deadline - time.monotonic()
        if seconds_left <= 0:
            raise DeadlineExceeded("the deadline had passed when the request arrived")
        if (wait := self._workers.seconds_ahead(level)) > ADMITTED_SHARE * seconds_left:
            raise Exhausted(
                f"too much is waiting: {wait:.2f} s of work, and the deadline is in {seconds_left:.2f} s",
                _retry_after(wait, seconds_left),
                "no_time",
            )
        return Admission(self, deadline, level)

    async def add_entries(self, entries: list[QueueEntry]) -> list[Answer]:
        """Waits for the answers of a request. Raises: see `Admission.submit`."""
        self._check_open()
        tokens = sum([entry.tokens for entry in entries])
        if tokens > self._max_tokens:
            instead = "send fewer rows at a time" if len(entries) > 1 else "the server takes no row of this length"
            raise InvalidArgument(
                f"the request has {tokens} tokens and can never fit: the whole queue holds {self._max_tokens} "
                f"(--max-queue-tokens); {instead}",
                "too_large",
            )
        with self._workers.lock:
            self._check_room_locked(tokens)
            for entry in entries:
                self._queue.add_entry(entry)
            threads = self._workers.reserve_threads_locked(len(entries))
        self._workers.start_threads(threads)
        return await self._answers(entries)

    async def submit_background(self, row: Row) -> Answer:
        """Waits for the answer to a row that has time: it is computed alone, once nothing waits and a thread is idle.

        Raises:
            Unavailable: the scheduler is closed.
        """
        self._check_open()
        entry = QueueEntry(row, frozenset(), math.inf, asyncio.get_running_loop().create_future())
        with self._workers.lock:
            self._queue.add_background_entry(entry)
            threads = self._workers.reserve_threads_locked(1)
        self._workers.start_threads(threads)
        (answer,) = await self._answers([entry])
        return answer

    async def _answers(self, entries: list[QueueEntry]) -> list[Answer]:
        self._unanswered += 1
        try:
            # A request of one row, as most are, does without what gathering costs.
            if len(entries) == 1:
                return [await entries[0].reply]
            return await asyncio.gather(*(entry.reply for entry in entries))
        except BaseException:  # the caller has left, or one row failed: the other rows are not computed
            with self._workers.lock:
                for entry in entries:
                    self._queue.remove_entry(entry)
            for entry in entries:
                entry.reply.cancel()
            raise
        finally:
            self._unanswered -= 1
            self._progress.set()

    @property
    def waiting_rows(self) -> int:
        with self._workers.lock:
            return self._queue.waiting_rows

    @property
    def waiting_tokens(self) -> int:
        with self._workers.lock:
            return self._queue.waiting_tokens

    async def close(self) -> None:
        """Admits nothing more, and returns when every request is answered, background rows aside.

        Other schedulers go on.
        """
        self._closed = True
        with self._workers.lock:
            background = self._queue.clear_background()
        for entry in background:
            entry.set_error(Unavailable(CLOSED, "draining"))
        while self._unanswered or self._queue.computing_tokens:
            self._progress.clear()
            await self._progress.wait()
        self._workers.remove_queue(self._queue)

    def wait_seconds(self, priority: int = 0) -> float:
        """How long the threads are busy with all models' work at or above this priority."""
        return self._workers.seconds_ahead(level_of(priority))

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable(CLOSED, "draining")

    def _check_room_locked(self, tokens: int) -> None:
        if (waiting := self._queue.waiting_tokens) + tokens > self._max_tokens:
            excess = waiting + tokens - self._max_tokens
            # All models go on side by side: so this share of all that waits is computed before there is room.
            seconds = self._workers.seconds_ahead_locked(LAST_LEVEL) * excess / waiting
            raise Exhausted(
                f"the queue is full: {waiting} of {self._max_tokens} tokens wait, {tokens} more do not fit",
                max(LEAST_RETRY_SECONDS, seconds),
                "queue_full",
            )


def _retry_after(wait: float, seconds_left: float) -> float:
    """Seconds until `wait` is ADMITTED_SHARE of the time left by then, if no other request arrives; infinity if that is
    too late."""
    seconds = (wait - ADMITTED_SHARE * seconds_left) / (1 - ADMITTED_SHARE)
    return max(LEAST_RETRY_SECONDS, seconds) if seconds < seconds_left else math.inf
