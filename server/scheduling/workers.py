"""The threads of a process, shared by all its models, and whose turn it is on them.

The queues and their counters have one lock: the event loop holds it while it puts something in, a thread while it forms
its next group. So a thread that is done goes on at once, whatever the event loop is doing. Nothing sleeps and nothing
polls: idle threads wait in their pool until something comes.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from heed.server.engine.graphs import Answer
from heed.server.scheduling.model_queue import Batch, ModelQueue
from heed.server.scheduling.priority_queue import QueueEntry

log = logging.getLogger("heed.workers")


class Workers:
    """One budget of threads. What is most urgent goes next, and among equals what came first, for whichever model."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.lock = threading.Lock()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="heed-worker")
        self._lanes: dict[ModelQueue, None] = {}
        self._awake = 0  # threads that compute or look for work
        self._computing = 0
        self._halves: deque[Batch] = deque()  # of groups that failed
        self._half_was_last = False

    def join(self, lane: ModelQueue) -> None:
        with self.lock:
            self._lanes[lane] = None

    def leave(self, lane: ModelQueue) -> None:
        """Nothing waits there any more."""
        with self.lock:
            self._lanes.pop(lane, None)

    def close(self) -> None:
        """Ends the threads when they have done what waits."""
        self._pool.shutdown()

    def seconds_before(self, level: int) -> float:
        """Until all that goes before what now comes at this level is done, for all models together."""
        with self.lock:
            return sum([lane.seconds_before(level) for lane in self._lanes]) / self.threads

    def put(self, add: Callable[[QueueEntry], None], entries: list[QueueEntry]) -> None:
        """Adds what has come to its lane; as many idle threads look for work."""
        with self.lock:
            for entry in entries:
                add(entry)
            count = self._awaken(len(entries))
        self._start(count)

    def _awaken(self, wanted: int) -> int:
        """How many threads are to start, of so many that could be of use."""
        count = min(wanted, self.threads - self._awake)
        self._awake += count
        return count

    def _start(self, count: int) -> None:
        for _ in range(count):
            self._pool.submit(self._work)

    def _work(self) -> None:
        """On a thread: one group after the other, until nothing waits."""
        try:
            since = time.monotonic()
            while group := self._next():
                alone = self._is_alone()
                outcome = group.compute(alone)
                now = time.monotonic()
                self._end(group, outcome, alone, now - since)
                since = now
                group.tell(outcome)
        except Exception:  # a defect of ours: it shall be seen, and what comes next shall find a thread
            log.exception("a thread that computes groups failed")
            with self.lock:
                self._awake -= 1

    def _next(self) -> Batch | None:
        with self.lock:
            group = self._take(time.monotonic())
            if group:
                self._computing += 1
            else:
                self._awake -= 1
            return group

    def _take(self, now: float) -> Batch | None:
        turns = [(turn, lane) for lane in self._lanes if (turn := lane.turn(now))]
        urgency, lane = min(turns, key=lambda pair: pair[0], default=((math.inf, math.inf), None))
        # Halves take every other turn, so that however much of a group fails, nothing else waits for all of it.
        if self._halves and (urgency[0] == math.inf or not self._half_was_last):
            self._half_was_last = True
            return self._halves.popleft()
        self._half_was_last = False
        return lane.take(now, self._fair_tokens(lane)) if lane else None

    def _fair_tokens(self, lane: ModelQueue) -> int:
        """One thread's share of all work, waiting and under way, in tokens of this model."""
        pace = lane.pace.seconds_per_token
        others = sum(other.tokens * other.pace.seconds_per_token for other in self._lanes if other is not lane)
        return math.ceil((lane.tokens + (others / pace if pace else 0)) / self.threads)

    def _is_alone(self) -> bool:
        """Whether nothing else is running or waiting."""
        with self.lock:
            return self._computing == 1 and not self._halves and not any(lane.queue for lane in self._lanes)

    def _end(self, group: Batch, outcome: list[Answer] | Exception, alone: bool, seconds: float) -> None:
        """Before anybody is told: a caller who has the answer finds nothing of it at work.

        `seconds` are the thread's since the group before, so that what lies between groups counts as well.
        """
        failed = isinstance(outcome, Exception)
        halves = group.halves() if failed and len(group.entries) > 1 else []
        with self.lock:
            self._computing -= 1
            self._halves += halves
            group.lane.taken_tokens += sum(half.taken_tokens for half in halves) - group.taken_tokens
            if group.entries and not failed:
                group.lane.pace.saw(group.tokens, seconds, self.threads if alone else 1)
            count = self._awaken(len(halves))
        self._start(count)
