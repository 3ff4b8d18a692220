"""The rows that wait for one model, in the order in which they are computed.

More urgent rows go first, and among equals those that arrived first. Whatever its priority, a row that has waited for
longer than LONGEST_WAIT goes before all that have not. A row whose deadline passes is answered with an error soon,
wherever it stands in the queue.
"""

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, takewhile
from typing import Any, Protocol

from heed.server.errors import DeadlineExceeded

LONGEST_WAIT = 10.0  # seconds, after which no row that arrived later is computed first
SWEEP_SECONDS = 0.25  # between two looks at the deadlines of all rows, which cost time for each of them
OVERDUE, DEFAULT_LEVEL, LAST_LEVEL = 0, 10, 100
AVERAGED_TOKENS = 8192  # over which the throughput is averaged

Answer = Any  # what `Run` returns for a row; the scheduling does not look into it


class Row(Protocol):
    """One row of a request; its length is the number of its tokens."""

    def __len__(self) -> int: ...


class Run(Protocol):
    """Computes a batch. Called from several threads."""

    def __call__(self, rows: Sequence[Any], outputs: frozenset[str], exclusive: bool, /) -> list[Answer]:
        """
        Args:
            outputs: those that some row in the batch needs; all if empty.
            exclusive: nothing else runs or waits in the process.
        """


class BatchObserver(Protocol):
    """Is called for each batch, by the thread that computed it."""

    def batch_computed(self, lengths: list[int], seconds: float) -> None:
        """`lengths` are the rows' tokens."""

    def batch_failed(self) -> None: ...


def level_of(priority: int) -> int:
    """The level of a caller's priority: 1 is the most urgent, 0 the default. The last level holds all beyond it."""
    return min(priority or DEFAULT_LEVEL, LAST_LEVEL)


@dataclass(eq=False)
class QueueEntry:
    """One row in the queue, with the future that its answer is set on. Only the event loop's thread touches that."""

    row: Any  # a `Row`
    outputs: frozenset[str]  # the graph's outputs that this row needs; all if empty
    deadline: float  # on time.monotonic's clock; infinity without one
    reply: "asyncio.Future[Answer]"
    level: int = DEFAULT_LEVEL
    arrived: float = field(default_factory=time.monotonic)
    started: float = math.nan
    finished: float = math.nan

    def __post_init__(self) -> None:
        self.tokens = len(self.row)

    def is_pending(self, now: float) -> bool:
        """Whether the caller is still waiting, and the deadline has not passed."""
        return not self.reply.done() and self.deadline > now

    def set_answer(self, answer: Answer) -> None:
        if not self.reply.done():
            self.reply.set_result(answer)

    def set_error(self, error: Exception) -> None:
        if not self.reply.done():
            self.reply.set_exception(error)

    def expire(self) -> None:
        """Fails the row because its deadline has passed, or would pass before its answer. From any thread."""
        passed = self.deadline <= time.monotonic()
        error = DeadlineExceeded(
            f"the deadline {'passed' if passed else 'came too near for an answer'} while the request waited"
        )
        self.reply.get_loop().call_soon_threadsafe(self.set_error, error)


class ThroughputEstimate:
    """Seconds of one thread per token, averaged over the last AVERAGED_TOKENS tokens."""

    def __init__(self) -> None:
        self.seconds_per_token = 0.0  # until something is known
        self._averaged = 0  # tokens in the average

    def update(self, tokens: int, seconds: float, cores: int = 1) -> None:
        """Adds a run of so many tokens.

        A run on several cores does not say how long one thread takes beside others, but it is a bound: one thread
        takes at most `cores` times as long. The bound is used where it is below the estimate: if an estimate that is
        too high makes the admission refuse everything, no other run would correct it.
        """
        if cores > 1 and self.seconds_per_token:
            seconds *= cores
            if seconds >= self.seconds_per_token * tokens:
                return
        self._averaged = min(self._averaged, AVERAGED_TOKENS) + tokens
        self.seconds_per_token += tokens / self._averaged * (seconds / tokens - self.seconds_per_token)


class BatchingPolicy(Protocol):
    """Which waiting rows are computed together. It must take the first entry, which bounds the wait of every row."""

    @property
    def window(self) -> int:
        """How many of the next entries it chooses from."""

    def choose_batch(self, waiting: list[QueueEntry], fair_tokens: int) -> list[QueueEntry]:
        """The next batch.

        Args:
            waiting: the next entries in their order, at least one and at most `window`.
            fair_tokens: one thread's share of all work that waits or runs. A larger batch would leave threads idle.
        """


class ModelQueue:
    """The entries by level, and in each level in the order of arrival. The caller holds `Workers.lock`."""

    def __init__(
        self,
        run: Run,
        policy: BatchingPolicy,
        on_batch_end: Callable[[], None],
        observers: Sequence[BatchObserver] = (),
    ) -> None:
        """Made in the event loop, which calls `on_batch_end` after each batch."""
        self.loop = asyncio.get_running_loop()
        self.run = run
        self.observers = observers
        self.on_batch_end = on_batch_end
        self.throughput = ThroughputEstimate()
        self.computing_tokens = 0  # in batches that are computed, or that wait to be computed again in halves
        self._policy = policy
        self._levels: defaultdict[int, dict[QueueEntry, None]] = defaultdict(dict)
        self._tokens: defaultdict[int, int] = defaultdict(int)
        self._background: dict[QueueEntry, None] = {}
        self._next_sweep = 0.0

    def add_entry(self, entry: QueueEntry) -> None:
        self._levels[entry.level][entry] = None
        self._tokens[entry.level] += entry.tokens

    def add_background_entry(self, entry: QueueEntry) -> None:
        """It is computed alone, when nothing else waits."""
        self._background[entry] = None

    def remove_entry(self, entry: QueueEntry) -> None:
        """Does nothing if the entry is not in the queue."""
        level = self._levels[entry.level]
        if entry in level:
            del level[entry]
            self._tokens[entry.level] -= entry.tokens
        self._background.pop(entry, None)

    def clear_background(self) -> list[QueueEntry]:
        """Removes the background entries and returns them."""
        entries = list(self._background)
        self._background.clear()
        return entries

    def __bool__(self) -> bool:
        """Whether anything waits, background entries aside."""
        return any(self._levels.values())

    @property
    def waiting_rows(self) -> int:
        return sum(map(len, self._levels.values()))

    @property
    def waiting_tokens(self) -> int:
        return sum(self._tokens.values())

    def tokens_ahead(self, level: int) -> int:
        """Waiting tokens that are computed before an entry that arrives now at this level."""
        return sum([tokens for at, tokens in self._tokens.items() if at <= level])

    def seconds_ahead(self, level: int) -> float:
        """Estimated single-thread seconds of work at or above this level, what is being computed included."""
        return (self.tokens_ahead(level) + self.computing_tokens) * self.throughput.seconds_per_token

    @property
    def total_seconds(self) -> float:
        """Estimated single-thread seconds of all work."""
        return self.seconds_ahead(LAST_LEVEL)

    def next_urgency(self, now: float) -> tuple[float, float] | None:
        """Level and arrival of the entry that is computed next, if there is one. Background entries come last."""
        for entry in self.first_entries(1, now):
            return entry.level, entry.arrived
        for entry in self._background:
            return math.inf, entry.arrived
        return None

    def pop_batch(self, now: float, fair_tokens: int) -> list[QueueEntry]:
        """Removes the next batch from the queue. It is empty if all callers have left since `next_urgency`."""
        waiting = self.first_entries(self._policy.window, now)
        batch = self._policy.choose_batch(waiting, fair_tokens) if waiting else [*islice(self._background, 1)]
        for entry in batch:
            self.remove_entry(entry)
        return batch

    def first_entries(self, count: int, now: float) -> list[QueueEntry]:
        """The next entries in their order. Entries on the way that are no longer pending are removed."""
        self._promote_overdue(now)
        sweep = now >= self._next_sweep
        if sweep:
            self._next_sweep = now + SWEEP_SECONDS
        pending: list[QueueEntry] = []
        expired: list[QueueEntry] = []
        for entry in self._in_order():
            (pending if entry.is_pending(now) else expired).append(entry)
            if len(pending) == count and not sweep:
                break
        for entry in expired:
            self.remove_entry(entry)
            entry.expire()
        return pending[:count]

    def _in_order(self) -> Iterator[QueueEntry]:
        return chain.from_iterable(self._levels[level] for level in sorted(self._levels))

    def _promote_overdue(self, now: float) -> None:
        """Moves what has waited for too long before all other levels, in the order of arrival."""
        overdue = [
            entry
            for level, entries in self._levels.items()
            if level != OVERDUE
            for entry in takewhile(lambda entry: entry.arrived < now - LONGEST_WAIT, entries)
        ]
        for entry in sorted(overdue, key=lambda entry: entry.arrived):
            self.remove_entry(entry)
            entry.level = OVERDUE
            self.add_entry(entry)
