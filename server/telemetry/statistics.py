"""What was asked of one model since it is served, and where the time went."""

import time
from collections import defaultdict
from dataclasses import dataclass, field
from threading import Lock

from heed.server.telemetry.request_trace import RequestTrace, Stage


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
    stages: defaultdict[Stage, Duration] = field(default_factory=lambda: defaultdict(Duration))  # of what was answered
    rows: int = 0  # that were answered
    last_arrival: float = 0.0  # seconds since 1970; 0: nobody has come yet
    _groups: dict[int, Duration] = field(default_factory=dict)  # by rows
    _lock: Lock = field(default_factory=Lock)

    def ended(self, record: RequestTrace) -> None:
        """A request came to its end."""
        if record.code == "OK" and not record.rows:
            return  # it wanted no more than a tokenizer
        self.last_arrival = time.time() - record.seconds
        if record.code != "OK":
            return self.fail.add(record.seconds)
        self.success.add(record.seconds)
        for stage, begun, ended in record.stages():
            self.stages[stage].add(ended - begun)
        self.rows += record.rows

    def computed(self, lengths: list[int], seconds: float) -> None:
        """See `Observer`."""
        with self._lock:
            self._groups.setdefault(len(lengths), Duration()).add(seconds)

    def failed(self) -> None:
        """A group that failed is halved; its requests count when they end."""

    @property
    def groups(self) -> dict[int, Duration]:
        """The groups that were computed, by how many rows they had."""
        with self._lock:
            return {rows: Duration(one.count, one.seconds) for rows, one in sorted(self._groups.items())}
