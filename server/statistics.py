"""What was asked of one model since it is served, and where the time went.

It costs a request some additions and five looks at the clock.
"""

import time
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from threading import Lock
from types import TracebackType

from bundle.packing import Sequence
from server.graphs import Answer
from server.lane import Run
from server.scheduler import Answered


@dataclass
class Duration:
    """How often something was done, and for how long altogether."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds


@dataclass
class Statistics:
    """All but `groups` belong to the event loop's thread."""

    success: Duration = field(default_factory=Duration)  # from arrival to answer
    fail: Duration = field(default_factory=Duration)  # refused, failed, or given up by the caller
    input: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    infer: Duration = field(default_factory=Duration)
    output: Duration = field(default_factory=Duration)
    rows: int = 0  # that were answered
    last_arrival: float = 0.0  # seconds since 1970; 0: nobody has come yet
    _groups: dict[int, Duration] = field(default_factory=dict)  # by rows
    _lock: Lock = field(default_factory=Lock)

    def asked(self) -> "Asked":
        """A request has come; the `with` ends when it is answered or not to be answered."""
        return Asked(self)

    def counted(self, run: Run) -> Run:
        """The same, and every group that is computed is counted, of whatever thread."""

        def run_and_count(group: Many[Sequence], outputs: frozenset[str], alone: bool, /) -> list[Answer]:
            started = time.monotonic()
            answers = run(group, outputs, alone)
            seconds = time.monotonic() - started
            with self._lock:
                self._groups.setdefault(len(group), Duration()).add(seconds)
            return answers

        return run_and_count

    @property
    def groups(self) -> dict[int, Duration]:
        """The groups that were computed, by how many rows they had."""
        with self._lock:
            return {rows: Duration(one.count, one.seconds) for rows, one in sorted(self._groups.items())}


class Asked:
    """One request, from its arrival to its end."""

    def __init__(self, statistics: Statistics) -> None:
        self._statistics = statistics
        self._arrived = self._prepared = self._answered = time.monotonic()
        self._answer: Answered | None = None

    def prepared(self) -> None:
        """It is read and checked, and its texts are tokens."""
        self._prepared = time.monotonic()

    def answered(self, answer: Answered) -> None:
        """All its rows are computed."""
        self._answered = time.monotonic()
        self._answer = answer

    def __enter__(self) -> "Asked":
        self._statistics.last_arrival = time.time()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        now, to = time.monotonic(), self._statistics
        if kind or self._answer is None:
            to.fail.add(now - self._arrived)
            return
        to.success.add(now - self._arrived)
        to.input.add(self._prepared - self._arrived)
        to.queue.add(self._answer.queue_seconds)
        to.infer.add(self._answer.compute_seconds)
        to.output.add(now - self._answered)
        to.rows += len(self._answer.answers)
