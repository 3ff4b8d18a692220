"""What waits for one model, in the order in which it shall go.

More urgent entries go first, and among equals those that came first. Whatever its urgency, an entry that has waited for
longer than LONGEST_WAIT goes before all that have not. One whose deadline passes is told so soon, wherever it stands.
"""

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, takewhile

from heed.bundle.packing import TokenSequence
from heed.server.engine.graphs import Answer
from heed.server.errors import DeadlineExceeded

LONGEST_WAIT = 10.0  # seconds, after which nothing that came later goes first
LOOK_SECONDS = 0.25  # between two looks at all deadlines: they cost time for each entry
OVERDUE, DEFAULT_LEVEL, LAST_LEVEL = 0, 10, 100


def level_of(priority: int) -> int:
    """The level of a caller's priority: 1 is the most urgent, 0 the default. All beyond the last level are in it."""
    return min(priority or DEFAULT_LEVEL, LAST_LEVEL)


@dataclass(eq=False)
class QueueEntry:
    """One sequence in the queue. Its reply is touched by the event loop's thread alone."""

    sequence: TokenSequence
    outputs: frozenset[str]  # what of the graph's is asked for; all if empty
    deadline: float  # on time.monotonic's clock; infinity without one
    reply: asyncio.Future[Answer]
    level: int = DEFAULT_LEVEL
    arrived: float = field(default_factory=time.monotonic)
    started: float = math.nan
    finished: float = math.nan

    def is_wanted(self, now: float) -> bool:
        """Whether its caller is still there, and in time."""
        return not self.reply.done() and self.deadline > now

    def answer(self, answer: Answer) -> None:
        if not self.reply.done():
            self.reply.set_result(answer)

    def fail(self, error: Exception) -> None:
        if not self.reply.done():
            self.reply.set_exception(error)

    def expire(self) -> None:
        """Tells the caller, if there is one still, that the time is up, or would be before the answer. From any
        thread."""
        passed = self.deadline <= time.monotonic()
        error = DeadlineExceeded(
            f"the deadline {'passed' if passed else 'came too near for an answer'} while the request waited"
        )
        self.reply.get_loop().call_soon_threadsafe(self.fail, error)


class PriorityQueue:
    """Entries by level, and in each level in the order of arrival. Whoever calls holds a lock."""

    def __init__(self) -> None:
        self._levels: defaultdict[int, dict[QueueEntry, None]] = defaultdict(dict)
        self._tokens: defaultdict[int, int] = defaultdict(int)
        self._next_look = 0.0

    def add(self, entry: QueueEntry) -> None:
        self._levels[entry.level][entry] = None
        self._tokens[entry.level] += len(entry.sequence)

    def remove(self, entry: QueueEntry) -> None:
        """Takes it out, if it is in."""
        level = self._levels[entry.level]
        if entry in level:
            del level[entry]
            self._tokens[entry.level] -= len(entry.sequence)

    def __bool__(self) -> bool:
        return any(self._levels.values())

    @property
    def rows(self) -> int:
        return sum(map(len, self._levels.values()))

    @property
    def tokens(self) -> int:
        return self.tokens_before(LAST_LEVEL)

    def tokens_before(self, level: int) -> int:
        """Of all that goes before what now comes at this level."""
        return sum([tokens for at, tokens in self._tokens.items() if at <= level])

    def first(self, count: int, now: float) -> list[QueueEntry]:
        """Those that go next, in their order; entries that nobody wants any more are let go."""
        self._promote(now)
        every = now >= self._next_look
        if every:
            self._next_look = now + LOOK_SECONDS
        wanted: list[QueueEntry] = []
        unwanted: list[QueueEntry] = []
        for entry in self._in_order():
            (wanted if entry.is_wanted(now) else unwanted).append(entry)
            if len(wanted) == count and not every:
                break
        for entry in unwanted:
            self.remove(entry)
            entry.expire()
        return wanted[:count]

    def _in_order(self) -> Iterator[QueueEntry]:
        return chain.from_iterable(self._levels[level] for level in sorted(self._levels))

    def _promote(self, now: float) -> None:
        """What has waited for too long is put before all other levels. Those put there before came before."""
        late = [
            entry
            for level, entries in self._levels.items()
            if level != OVERDUE
            for entry in takewhile(lambda entry: entry.arrived < now - LONGEST_WAIT, entries)
        ]
        for entry in sorted(late, key=lambda entry: entry.arrived):
            self.remove(entry)
            entry.level = OVERDUE
            self.add(entry)
