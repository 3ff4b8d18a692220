"""The threads of a process, shared by all its models: what each computes next, and how.

All queues and their counters have one lock. The event loop holds it while it adds entries, a thread while it takes its
next batch: so a thread that has finished goes on at once, whatever the event loop is doing. Nothing sleeps and nothing
polls: idle threads wait in their pool until entries come.
"""

import logging
import math
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor

from heed.server.scheduling.model_queue import Answer, ModelQueue, QueueEntry

log = logging.getLogger("heed.workers")


class Batch:
    """The rows that one thread computes together."""

    def __init__(self, queue: ModelQueue, entries: list[QueueEntry]) -> None:
        self.queue = queue
        self.entries = entries
        self.tokens = sum([entry.tokens for entry in entries])
        self.counted_tokens = self.tokens  # in `ModelQueue.computing_tokens`, those of expired entries included

    def compute(self, exclusive: bool) -> list[Answer] | Exception:
        """The answers to the entries that are still pending (half of a batch that failed has waited again).

        Args:
            exclusive: nothing else runs or waits in the process.
        """
        started = time.monotonic()
        self._expire_late(started, exclusive)
        if not self.entries:
            return []
        try:
            answers = self.queue.run([entry.row for entry in self.entries], self._outputs(), exclusive)
        except Exception as error:
            for observer in self.queue.observers:
                observer.batch_failed()
            return error
        finished = time.monotonic()
        for entry in self.entries:
            entry.started, entry.finished = started, finished
        lengths = [entry.tokens for entry in self.entries]
        for observer in self.queue.observers:
            observer.batch_computed(lengths, finished - started)
        return answers

    def _expire_late(self, now: float, exclusive: bool) -> None:
        """Fails the entries whose answers would come too late, if others could use the time.

        One is computed whatever is expected: nothing else would correct an expectation that is wrong.
        """
        ready = now if exclusive else now + self.tokens * self.queue.throughput.seconds_per_token
        pending = [entry for entry in self.entries if entry.is_pending(now)]
        kept = [entry for entry in pending if entry.is_pending(ready)] or pending[:1]
        if len(kept) == len(self.entries):
            return
        for entry in set(self.entries) - set(kept):
            entry.expire()
        self.entries = kept
        self.tokens = sum([entry.tokens for entry in kept])

    def _outputs(self) -> frozenset[str]:
        """The outputs that some row needs; all (empty) if one needs all."""
        if not all(entry.outputs for entry in self.entries):
            return frozenset()
        return frozenset().union(*(entry.outputs for entry in self.entries))

    def split(self) -> list["Batch"]:
        """Two halves, to find out which of several rows fails."""
        middle = len(self.entries) // 2
        return [Batch(self.queue, self.entries[:middle]), Batch(self.queue, self.entries[middle:])]

    def deliver(self, outcome: list[Answer] | Exception) -> None:
        """Hands out the answers, or the error of a row that fails alone. From any thread."""
        self.queue.loop.call_soon_threadsafe(self._resolve, outcome)

    def _resolve(self, outcome: list[Answer] | Exception) -> None:
        if not isinstance(outcome, Exception):
            for entry, answer in zip(self.entries, outcome, strict=True):
                entry.set_answer(answer)
        elif len(self.entries) == 1:
            self.entries[0].set_error(outcome)
        self.queue.on_batch_end()


class Workers:
    """One pool of threads. The most urgent row of all models is computed next, and among equals the first to arrive."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.lock = threading.Lock()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="heed-worker")
        self._queues: dict[ModelQueue, None] = {}
        self._active = 0  # threads that compute or look for a batch
        self._computing = 0
        self._halves: deque[Batch] = deque()  # of batches that failed
        self._half_was_last = False

    def add_queue(self, queue: ModelQueue) -> None:
        with self.lock:
            self._queues[queue] = None

    def remove_queue(self, queue: ModelQueue) -> None:
        """Nothing waits in it any more."""
        with self.lock:
            self._queues.pop(queue, None)

    def close(self) -> None:
        """Ends the threads when they have computed what waits."""
        self._pool.shutdown()

    def seconds_ahead(self, level: int) -> float:
        """Seconds until all work at or above this level is done, that of all models together."""
        with self.lock:
            return self.seconds_ahead_locked(level)

    def seconds_ahead_locked(self, level: int) -> float:
        """The same, for a caller who holds the lock."""
        return sum([queue.seconds_ahead(level) for queue in self._queues]) / self.threads

    def reserve_threads_locked(self, needed: int) -> int:
        """Counts up to `needed` idle threads as active, and returns how many. The caller holds the lock, and
        calls `start_threads` when it has released it."""
        count = min(needed, self.threads - self._active)
        self._active += count
        return count

    def start_threads(self, count: int) -> None:
        for _ in range(count):
            self._pool.submit(self._work)

    def _work(self) -> None:
        """On a thread: one batch after the other, until nothing waits."""
        try:
            since = time.monotonic()
            while batch := self._next_batch():
                exclusive = self._is_exclusive()
                outcome = batch.compute(exclusive)
                now = time.monotonic()
                self._end_batch(batch, outcome, exclusive, now - since)
                since = now
                batch.deliver(outcome)
        except Exception:  # a defect of ours: it is logged, and what comes next finds a thread
            log.exception("a thread that computes batches failed")
            with self.lock:
                self._active -= 1

    def _next_batch(self) -> Batch | None:
        with self.lock:
            batch = self._pop_batch(time.monotonic())
            if batch:
                self._computing += 1
            else:
                self._active -= 1
            return batch

    def _pop_batch(self, now: float) -> Batch | None:
        queue = self._most_urgent_queue(now)
        # Halves take every other turn, so that however much of a batch fails, nothing else waits for all of it.
        if self._halves and (queue is None or not self._half_was_last):
            self._half_was_last = True
            return self._halves.popleft()
        self._half_was_last = False
        if queue is None:
            return None
        batch = Batch(queue, queue.pop_batch(now, self._fair_tokens(queue)))
        queue.computing_tokens += batch.tokens
        return batch

    def _most_urgent_queue(self, now: float) -> ModelQueue | None:
        waiting = [(urgency, queue) for queue in self._queues if (urgency := queue.next_urgency(now))]
        urgency, queue = min(waiting, key=lambda pair: pair[0], default=((math.inf, math.inf), None))
        return None if self._halves and urgency[0] == math.inf else queue  # background work goes after halves, too

    def _fair_tokens(self, queue: ModelQueue) -> int:
        """One thread's share of all work, waiting or computed now, in tokens of this model."""
        pace = queue.throughput.seconds_per_token
        others = sum(other.total_seconds for other in self._queues if other is not queue)
        tokens = queue.waiting_tokens + queue.computing_tokens
        return math.ceil((tokens + (others / pace if pace else 0)) / self.threads)

    def _is_exclusive(self) -> bool:
        """Whether nothing else is computed or waits."""
        with self.lock:
            return self._computing == 1 and not self._halves and not any(self._queues)

    def _end_batch(self, batch: Batch, outcome: list[Answer] | Exception, exclusive: bool, seconds: float) -> None:
        """Before the answers are delivered: a caller who has one finds nothing of it counted as work.

        Args:
            seconds: of this thread since its last batch, so that what lies between batches is included.
        """
        failed = isinstance(outcome, Exception)
        halves = batch.split() if failed and len(batch.entries) > 1 else []
        queue = batch.queue
        with self.lock:
            self._computing -= 1
            self._halves += halves
            queue.computing_tokens += sum(half.counted_tokens for half in halves) - batch.counted_tokens
            if batch.entries and not failed:
                queue.throughput.update(batch.tokens, seconds, self.threads if exclusive else 1)
            count = self.reserve_threads_locked(len(halves))
        self.start_threads(count)
