"""What the threads know of one model: what waits for it, how that is grouped and computed, and how long it takes."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from heed.bundle.packing import TokenSequence
from heed.server.engine.graphs import Answer
from heed.server.scheduling.batching import BatchingPolicy
from heed.server.scheduling.priority_queue import PriorityQueue, QueueEntry

MEMORY = 8192  # tokens, over which a thread's pace is averaged


class Run(Protocol):
    """Computes a group. Called from several threads."""

    def __call__(self, group: Sequence[TokenSequence], outputs: frozenset[str], alone: bool, /) -> list[Answer]:
        """
        Args:
            outputs: those that somebody in the group asks for; all if empty.
            alone: nothing else is running or waiting in the process.
        """


class Observer(Protocol):
    """Is told of each group, by the thread that computed it."""

    def computed(self, lengths: list[int], seconds: float) -> None:
        """`lengths` are the rows' tokens."""

    def failed(self) -> None: ...


def observed(run: Run, *observers: Observer) -> Run:
    """The same, and the observers are told of every group."""

    def run_and_tell(group: Sequence[TokenSequence], outputs: frozenset[str], alone: bool, /) -> list[Answer]:
        started = time.monotonic()
        try:
            answers = run(group, outputs, alone)
        except Exception:
            for observer in observers:
                observer.failed()
            raise
        lengths, seconds = [len(row) for row in group], time.monotonic() - started
        for observer in observers:
            observer.computed(lengths, seconds)
        return answers

    return run_and_tell


class ThroughputEstimate:
    """How long a thread takes, judged by what it did last."""

    def __init__(self) -> None:
        self.seconds_per_token = 0.0  # until something is known
        self._known = 0  # tokens that it is judged by

    def saw(self, tokens: int, seconds: float, cores: int = 1) -> None:
        """A thread took so long for so many tokens.

        A run that had several cores does not tell what a thread takes beside others, only that it is not more than so
        many times as long. That is learned if it is less than expected: where all that would run beside another is
        refused, nothing else shows that the expectation is wrong.
        """
        if cores > 1 and self.seconds_per_token:
            seconds *= cores
            if seconds >= self.seconds_per_token * tokens:
                return
        self._known = min(self._known, MEMORY) + tokens
        self.seconds_per_token += tokens / self._known * (seconds / tokens - self.seconds_per_token)


class ModelQueue:
    """One model's side of the workers. Whoever calls holds their lock."""

    def __init__(self, run: Run, strategy: BatchingPolicy, ended: Callable[[], None]) -> None:
        """Made by the event loop, which calls `ended` after each group."""
        self.loop = asyncio.get_running_loop()
        self.run = run
        self.strategy = strategy
        self.ended = ended
        self.queue = PriorityQueue()
        self.spare: dict[QueueEntry, None] = {}  # what is in no hurry
        self.pace = ThroughputEstimate()
        self.taken_tokens = 0  # at work, or of a group that is being halved

    @property
    def tokens(self) -> int:
        """Waiting and under way."""
        return self.queue.tokens + self.taken_tokens

    def seconds_before(self, level: int) -> float:
        """Of one thread, for what is at work and all that goes before what now comes at this level."""
        return (self.queue.tokens_before(level) + self.taken_tokens) * self.pace.seconds_per_token

    def spare_later(self, entry: QueueEntry) -> None:
        """It is in no hurry."""
        self.spare[entry] = None

    def turn(self, now: float) -> tuple[float, float] | None:
        """Level and arrival of what goes next here, if anything waits. What is in no hurry is less urgent than all."""
        for entry in self.queue.first(1, now):
            return entry.level, entry.arrived
        for entry in self.spare:
            return math.inf, entry.arrived
        return None

    def take(self, now: float, fair_tokens: int) -> "Batch":
        """What goes next, with what suits it; nothing if all that waited has been left by its callers since `turn`."""
        waiting = self.queue.first(self.strategy.window, now)
        group = Batch(self, self.strategy.take(waiting, fair_tokens) if waiting else [*islice(self.spare, 1)])
        for entry in group.entries:
            self.queue.remove(entry)
            self.spare.pop(entry, None)
        self.taken_tokens += group.tokens
        return group


@dataclass
class Batch:
    """What one thread computes at a time."""

    lane: ModelQueue
    entries: list[QueueEntry]

    def __post_init__(self) -> None:
        self.taken_tokens = self.tokens  # also of entries that are let go of later

    @property
    def tokens(self) -> int:
        return sum(len(entry.sequence) for entry in self.entries)

    def compute(self, alone: bool) -> list[Answer] | Exception:
        """The answers to those entries that are wanted still: a half has waited again. What would come too late is let
        go while others could use the time."""
        started = time.monotonic()
        self._let_go(started, started if alone else started + self.tokens * self.lane.pace.seconds_per_token)
        if not self.entries:
            return []
        try:
            answers = self.lane.run([entry.sequence for entry in self.entries], self._outputs(), alone)
        except Exception as error:
            return error
        finished = time.monotonic()
        for entry in self.entries:
            entry.started, entry.finished = started, finished
        return answers

    def _let_go(self, now: float, ready: float) -> None:
        """Those whose answers nobody will want by the time that they are ready. One is tried whatever is expected:
        nothing else would show that the expectation is wrong."""
        wanted = [entry for entry in self.entries if entry.is_wanted(now)]
        kept = [entry for entry in wanted if entry.is_wanted(ready)] or wanted[:1]
        for entry in set(self.entries) - set(kept):
            entry.expire()
        self.entries = kept

    def _outputs(self) -> frozenset[str]:
        """What somebody asks for; all if somebody asks for all."""
        if not all(entry.outputs for entry in self.entries):
            return frozenset()
        return frozenset().union(*(entry.outputs for entry in self.entries))

    def halves(self) -> list["Batch"]:
        """To find out which of several entries fails."""
        middle = len(self.entries) // 2
        return [Batch(self.lane, self.entries[:middle]), Batch(self.lane, self.entries[middle:])]

    def tell(self, outcome: list[Answer] | Exception) -> None:
        """Hands out the answers, or the error of an entry that fails alone. From any thread."""
        self.lane.loop.call_soon_threadsafe(self._tell, outcome)

    def _tell(self, outcome: list[Answer] | Exception) -> None:
        if not isinstance(outcome, Exception):
            for entry, answer in zip(self.entries, outcome, strict=True):
                entry.answer(answer)
        elif len(self.entries) == 1:
            self.entries[0].fail(outcome)
        self.lane.ended()
