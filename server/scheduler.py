"""One queue for each model: admits, waits, groups, and hands out the answers.

All state belongs to the event loop's thread; only `run` leaves it. There are no sleeps and no polling: work starts
when something arrives or a worker is done. An entry carries its own reply, so nothing can be answered to the wrong
caller, and an entry whose caller has gone is simply taken out.
"""

import asyncio
import math
import time
from collections.abc import Sequence as Many
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from bundle.packing import Sequence
from server.errors import DeadlineExceeded, Exhausted, InvalidArgument, Unavailable
from server.graphs import Answer

CLOSED = "the server is shutting down; call another one"
MEMORY = 8192  # tokens, over which a worker's pace is averaged
# A request is taken only if what is before it should be done after this share of its time: work differs from what is
# expected of it, and an answer that comes too late was computed for nobody.
SAFE = 0.75


@dataclass(eq=False)
class Entry:
    """One sequence in the queue."""

    sequence: Sequence
    outputs: frozenset[str]  # what of the graph's is asked for; all if empty
    deadline: float  # on time.monotonic's clock; infinity without one
    reply: asyncio.Future[Answer]
    arrived: float = field(default_factory=time.monotonic)
    started: float = math.nan
    finished: float = math.nan


@dataclass(frozen=True)
class Answered:
    """The answers to a request's sequences, in order, and where the time went."""

    answers: list[Answer]
    queue_seconds: float  # until the last of them began
    compute_seconds: float  # from the first one's beginning to the last one's end


class Run(Protocol):
    """Computes a group. Called from several threads."""

    def __call__(self, group: Many[Sequence], outputs: frozenset[str], alone: bool, /) -> list[Answer]:
        """
        Args:
            outputs: those that somebody in the group asks for; all if empty.
            alone: nothing else is running or waiting.
        """


class Strategy(Protocol):
    """How waiting entries become groups. Must take the oldest entry: that bounds everyone's wait."""

    @property
    def window(self) -> int:
        """How many of the oldest entries it wants to choose from."""

    def take(self, waiting: list[Entry], fair_tokens: int) -> list[Entry]:
        """The next group, out of the oldest entries in the order of arrival (at least one, at most `window`).

        `fair_tokens` is an idle worker's share of what waits: a larger group would leave other workers idle.
        """


class Alone:
    """One sequence at a time."""

    window = 1

    def take(self, waiting: list[Entry], fair_tokens: int) -> list[Entry]:
        return waiting[:1]

    def __str__(self) -> str:
        return "one by one"


@dataclass(frozen=True)
class Neighbours:
    """The oldest entry with those nearest to it in length, so that little padding is left inside attention."""

    max_tokens: int
    window: int = 32

    def take(self, waiting: list[Entry], fair_tokens: int) -> list[Entry]:
        oldest, *others = waiting
        length = len(oldest.sequence)
        room = min(self.max_tokens, fair_tokens) - length
        group = [oldest]
        for entry in sorted(others, key=lambda entry: abs(len(entry.sequence) - length)):
            if len(entry.sequence) > room:
                break
            group.append(entry)
            room -= len(entry.sequence)
        return group

    def __str__(self) -> str:
        return f"neighbours in length, up to {self.max_tokens} tokens"


class Pace:
    """How long a worker takes, judged by what it did last."""

    def __init__(self) -> None:
        self.seconds_per_token = 0.0  # until something is known

    def saw(self, tokens: int, seconds: float) -> None:
        """A worker took so long for so many tokens."""
        share = tokens / (tokens + MEMORY) if self.seconds_per_token else 1.0
        self.seconds_per_token += share * (seconds / tokens - self.seconds_per_token)


class Scheduler:
    """Owns the queue of one model."""

    def __init__(self, run: Run, strategy: Strategy, workers: int, max_tokens: int) -> None:
        """
        Args:
            workers: how many groups are computed at a time.
            max_tokens: how many tokens may wait.
        """
        self._run = run
        self._strategy = strategy
        self._max_tokens = max_tokens
        self._workers = self._idle = workers
        self._pace = Pace()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="heed-worker")
        self._waiting: dict[Entry, None] = {}  # in the order of arrival
        self._tokens = 0  # of the entries that wait
        self._running_tokens = 0
        self._spare: dict[Entry, None] = {}  # what is in no hurry
        self._running: set[asyncio.Task[None]] = set()
        self._closed = False

    async def submit(
        self, sequences: list[Sequence], deadline: float = math.inf, outputs: frozenset[str] = frozenset()
    ) -> Answered:
        """Waits for the answers to all sequences of one request.

        Args:
            deadline: on time.monotonic's clock.
            outputs: what of the graph's the answers must have; all if empty.

        Raises:
            InvalidArgument: the request is larger than the whole queue.
            Exhausted: there is no room now, or no time until the deadline.
            DeadlineExceeded: the deadline passed before the work began.
            Unavailable: the scheduler is closed.
        """
        self._admit(sequences, deadline)
        loop = asyncio.get_running_loop()
        entries = [Entry(sequence, outputs, deadline, loop.create_future()) for sequence in sequences]
        for entry in entries:
            self._waiting[entry] = None
            self._tokens += len(entry.sequence)
        self._dispatch()
        try:
            replies = [entry.reply for entry in entries]
            # A request of one row, as most are, does without what gathering costs.
            answers = [await replies[0]] if len(replies) == 1 else await asyncio.gather(*replies)
        finally:  # the caller has gone, or one row failed: the other rows are not computed for nobody
            for entry in entries:
                self._forget(entry)
        started = [entry.started for entry in entries]
        return Answered(
            answers,
            queue_seconds=max(started) - entries[0].arrived,
            compute_seconds=max(entry.finished for entry in entries) - min(started),
        )

    async def submit_spare(self, sequence: Sequence) -> Answer:
        """Waits for the answer to a sequence in no hurry: computed alone, once nothing waits and a worker is idle.

        Raises:
            Unavailable: the scheduler is closed.
        """
        self._check_open()
        entry = Entry(sequence, frozenset(), math.inf, asyncio.get_running_loop().create_future())
        self._spare[entry] = None
        self._dispatch()
        try:
            return await entry.reply
        finally:
            self._spare.pop(entry, None)

    @property
    def waiting_rows(self) -> int:
        return len(self._waiting)

    @property
    def waiting_tokens(self) -> int:
        return self._tokens

    async def close(self) -> None:
        """Takes nothing more, and returns when everything that was taken is answered, but for what is in no hurry."""
        self._closed = True
        for entry in self._spare:
            if not entry.reply.done():
                entry.reply.set_exception(Unavailable(CLOSED, "draining"))
        self._spare.clear()
        while self._running:
            await asyncio.wait(self._running)
        self._pool.shutdown()

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable(CLOSED, "draining")

    @property
    def wait_seconds(self) -> float:
        """How long the workers will be busy with what is here already."""
        return (self._tokens + self._running_tokens) * self._pace.seconds_per_token / self._workers

    def check_time(self, deadline: float) -> None:
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
        if (wait := self.wait_seconds) > SAFE * left:
            raise Exhausted(
                f"too much is waiting: {wait:.2f} s of work, and the deadline is in {left:.2f} s", "no_time"
            )

    def _admit(self, sequences: list[Sequence], deadline: float) -> None:
        tokens = sum(map(len, sequences))
        self.check_time(deadline)
        if tokens > self._max_tokens:
            raise InvalidArgument(
                f"the request has {tokens} tokens, more than the whole queue holds ({self._max_tokens}); "
                "send fewer rows at a time"
            )
        if self._tokens + tokens > self._max_tokens:
            raise Exhausted(
                f"the queue is full: {self._tokens} of {self._max_tokens} tokens wait, {tokens} more do not fit",
                "queue_full",
            )

    def _forget(self, entry: Entry) -> None:
        if entry in self._waiting:
            del self._waiting[entry]
            self._tokens -= len(entry.sequence)

    def _oldest(self) -> list[Entry]:
        """The first entries that are still wanted, in the order of arrival; the others are let go."""
        now = time.monotonic()
        wanted: list[Entry] = []
        unwanted: list[Entry] = []
        for entry in self._waiting:
            # A reply that is done: its caller has gone and has not run again yet.
            (unwanted if entry.reply.done() or entry.deadline <= now else wanted).append(entry)
            if len(wanted) == self._strategy.window:
                break
        for entry in unwanted:
            self._forget(entry)
            if not entry.reply.done():
                entry.reply.set_exception(DeadlineExceeded("the deadline passed while the request waited"))
        return wanted

    def _dispatch(self) -> None:
        """Gives work to idle workers."""
        while self._idle and (oldest := self._oldest()):
            group = self._strategy.take(oldest, fair_tokens=math.ceil(self._tokens / self._idle))
            for entry in group:
                self._forget(entry)
            self._start(group)
        if self._idle and self._spare:  # nothing waits
            entry = next(iter(self._spare))
            del self._spare[entry]
            self._start([entry])

    def _start(self, group: list[Entry]) -> None:
        self._idle -= 1
        task = asyncio.get_running_loop().create_task(self._work(group))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _work(self, group: list[Entry]) -> None:
        tokens = sum(len(entry.sequence) for entry in group)
        self._running_tokens += tokens
        try:
            await self._answer(group)
        finally:
            self._running_tokens -= tokens
            self._idle += 1
            self._dispatch()

    async def _answer(self, group: list[Entry]) -> None:
        """Computes a group. If that fails it is halved until only what fails alone has failed."""
        started = time.monotonic()
        loop = asyncio.get_running_loop()
        try:
            sequences = [entry.sequence for entry in group]
            alone = self._idle == self._workers - 1 and not self._waiting
            answers = await loop.run_in_executor(self._pool, self._run, sequences, _outputs_of(group), alone)
        except Exception as error:
            if len(group) > 1:
                middle = len(group) // 2
                await self._answer(group[:middle])
                await self._answer(group[middle:])
            elif not group[0].reply.done():
                group[0].reply.set_exception(error)
            return
        finished = time.monotonic()
        self._pace.saw(sum(len(entry.sequence) for entry in group), finished - started)
        for entry, answer in zip(group, answers, strict=True):
            entry.started, entry.finished = started, finished
            if not entry.reply.done():
                entry.reply.set_result(answer)


def _outputs_of(group: list[Entry]) -> frozenset[str]:
    """What somebody asks for; all if somebody asks for all."""
    if not all(entry.outputs for entry in group):
        return frozenset()
    return frozenset().union(*(entry.outputs for entry in group))
