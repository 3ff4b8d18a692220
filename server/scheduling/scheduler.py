"""One model's requests: which are taken, how they wait, and what their callers are told.

The event loop's side of `workers.py`: what is here runs on its thread alone, and shares with the worker threads what
`Workers.lock` guards. An entry carries its own reply, so nothing can be answered to the wrong caller, and an entry
whose caller has gone is simply taken out.
"""

import asyncio
import math
import time
from dataclasses import dataclass

from heed.bundle.packing import TokenSequence
from heed.server.engine.graphs import Answer
from heed.server.errors import DeadlineExceeded, Exhausted, InvalidArgument, Unavailable
from heed.server.scheduling.batching import BatchingPolicy
from heed.server.scheduling.model_queue import ModelQueue, Run
from heed.server.scheduling.priority_queue import LAST_LEVEL, QueueEntry, level_of
from heed.server.scheduling.workers import Workers

CLOSED = "the server is shutting down; call another one"
# A request is taken only if what is before it should be done after this share of its time: work differs from what is
# expected of it, and an answer that comes too late was computed for nobody.
SAFE = 0.75
SOONEST = 0.05  # seconds: nobody who was refused is asked back before


@dataclass(frozen=True)
class RequestResult:
    """The answers to a request's sequences, in order, and where the time went."""

    answers: list[Answer]
    queue_seconds: float  # until the last of them began
    compute_seconds: float  # from the first one's beginning to the last one's end


class Scheduler:
    """Owns the queue of one model."""

    def __init__(self, run: Run, strategy: BatchingPolicy, workers: Workers, max_tokens: int) -> None:
        """
        Args:
            workers: the threads that compute, shared with other models' schedulers.
            max_tokens: how many tokens may wait.
        """
        self._workers = workers
        self._max_tokens = max_tokens
        self._requests = 0  # that are not answered yet
        self._ended = asyncio.Event()  # something has come to its end
        self._lane = ModelQueue(run, strategy, self._ended.set)
        self._closed = False
        workers.join(self._lane)

    async def submit(
        self,
        sequences: list[TokenSequence],
        deadline: float = math.inf,
        outputs: frozenset[str] = frozenset(),
        priority: int = 0,
    ) -> RequestResult:
        """Waits for the answers to all sequences of one request.

        Args:
            deadline: on time.monotonic's clock.
            outputs: what of the graph's the answers must have; all if empty.
            priority: 1 is the most urgent; 0 is the default.

        Raises:
            InvalidArgument: the request is larger than the whole queue.
            Exhausted: there is no room now, or no time until the deadline.
            DeadlineExceeded: the deadline passed before the work began.
            Unavailable: the scheduler is closed.
        """
        self._admit(sequences, deadline, priority)
        loop, level = asyncio.get_running_loop(), level_of(priority)
        entries = [QueueEntry(sequence, outputs, deadline, loop.create_future(), level) for sequence in sequences]
        self._workers.put(self._lane.queue.add, entries)
        answers = await self._answers(entries)
        started = [entry.started for entry in entries]
        return RequestResult(
            answers,
            queue_seconds=max(started) - entries[0].arrived,
            compute_seconds=max(entry.finished for entry in entries) - min(started),
        )

    async def submit_spare(self, sequence: TokenSequence) -> Answer:
        """Waits for the answer to a sequence in no hurry: computed alone, once nothing waits and a thread is idle.

        Raises:
            Unavailable: the scheduler is closed.
        """
        self._check_open()
        entry = QueueEntry(sequence, frozenset(), math.inf, asyncio.get_running_loop().create_future())
        self._workers.put(self._lane.spare_later, [entry])
        (answer,) = await self._answers([entry])
        return answer

    async def _answers(self, entries: list[QueueEntry]) -> list[Answer]:
        self._requests += 1
        try:
            # A request of one row, as most are, does without what gathering costs.
            if len(entries) == 1:
                return [await entries[0].reply]
            return await asyncio.gather(*(entry.reply for entry in entries))
        except BaseException:  # the caller has gone, or one row failed: the other rows are not computed for nobody
            with self._workers.lock:
                for entry in entries:
                    self._lane.queue.remove(entry)
                    self._lane.spare.pop(entry, None)
            for entry in entries:
                entry.reply.cancel()
            raise
        finally:
            self._requests -= 1
            self._ended.set()

    @property
    def waiting_rows(self) -> int:
        with self._workers.lock:
            return self._lane.queue.rows

    @property
    def waiting_tokens(self) -> int:
        with self._workers.lock:
            return self._lane.queue.tokens

    async def close(self) -> None:
        """Takes nothing more, and returns when everything that was taken is answered, but for what is in no hurry.

        Other schedulers go on.
        """
        self._closed = True
        with self._workers.lock:
            spare = list(self._lane.spare)
            self._lane.spare.clear()
        for entry in spare:
            entry.fail(Unavailable(CLOSED, "draining"))
        while self._requests or self._lane.taken_tokens:
            self._ended.clear()
            await self._ended.wait()
        self._workers.leave(self._lane)

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable(CLOSED, "draining")

    def wait_seconds(self, priority: int = 0) -> float:
        """How long the threads will be busy with all models' work that goes before a request of this priority."""
        return self._workers.seconds_before(level_of(priority))

    def check_time(self, deadline: float, priority: int = 0) -> None:
        """Refuses what could not be answered in time. It needs nothing but the deadline: overload makes little work.

        Raises:
            DeadlineExceeded: the deadline has passed.
            Exhausted: it will have passed when all that is before the request is done.
            Unavailable: the scheduler is closed.
        """
        self._check_open()
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("the deadline had passed when the request arrived")
        if (wait := self.wait_seconds(priority)) > SAFE * left:
            raise Exhausted(
                f"too much is waiting: {wait:.2f} s of work, and the deadline is in {left:.2f} s",
                _retry_after(wait, left),
                "no_time",
            )

    def _admit(self, sequences: list[TokenSequence], deadline: float, priority: int) -> None:
        tokens = sum(map(len, sequences))
        self.check_time(deadline, priority)
        if tokens > self._max_tokens:
            raise InvalidArgument(
                f"the request has {tokens} tokens, more than the whole queue holds ({self._max_tokens}); "
                "send fewer rows at a time"
            )
        if (waiting := self.waiting_tokens) + tokens > self._max_tokens:
            raise Exhausted(
                f"the queue is full: {waiting} of {self._max_tokens} tokens wait, {tokens} more do not fit",
                self._until_free(waiting + tokens - self._max_tokens, waiting),
                "queue_full",
            )

    def _until_free(self, tokens: int, waiting: int) -> float:
        """Seconds until so many of those that wait are at work: all models go on side by side."""
        return max(SOONEST, self._workers.seconds_before(LAST_LEVEL) * tokens / waiting)


def _retry_after(wait: float, left: float) -> float:
    """Seconds until `wait` is SAFE for what is left by then, if nobody else comes; infinity if that is too late."""
    seconds = (wait - SAFE * left) / (1 - SAFE)
    return max(SOONEST, seconds) if seconds < left else math.inf
