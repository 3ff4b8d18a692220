"""One engine for all calls with many requests: computed together, answered in their order or as they are ready.

A caller who does not read answers delays nobody else and fills no memory: what the server holds of one stream is
bounded, and when the bound is reached nothing more is read from it.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from heed.server.errors import InvalidArgument, Unavailable

# Requests of one stream that are in the server at a time; the next ones wait in the connection. A request longer than
# this many bytes counts as several: its rows take many times what they have on the wire.
STREAM_REQUESTS, REQUEST_BYTES = 256, 512
# Bytes of answers, computed or about to be, that wait to be taken.
STREAM_ANSWERS = 2**24
ENDED = "the server is shutting down; what it had read is answered, send the rest to another one"

Request = TypeVar("Request")
Answer = TypeVar("Answer")


class WeightedSemaphore:
    """Bounds the sum of the weights that are held. It is for one task, which asks for one after the other."""

    def __init__(self, size: int) -> None:
        self._size = self._free = size
        self._released = asyncio.Event()

    async def acquire(self, weight: int) -> int:
        """Waits until the weight is free, and returns what it holds: at most the whole size, which is then alone."""
        weight = min(weight, self._size)
        while self._free < weight:
            self._released.clear()
            await self._released.wait()
        self._free -= weight
        return weight

    def release(self, weight: int) -> None:
        self._free += weight
        self._released.set()


class Ticket:
    """A request's turn, among the others of its stream, to hold memory for its answer."""

    def __init__(self, answers: WeightedSemaphore, before: "Ticket | None") -> None:
        self._answers = answers
        self._before = before.passed if before else None
        self._size = 0
        # Done when this request and all before it have been admitted, so that the next one may be.
        self.passed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def admit(self, size: int) -> None:
        """Waits until an answer of so many bytes may be computed. In the order of the requests: the answer of the first
        makes room for the others."""
        if self._before and not self._before.done():
            await asyncio.shield(self._before)  # others wait for it, too
        self._size = await self._answers.acquire(size)
        self.pass_turn()

    def pass_turn(self) -> None:
        """The next request may be admitted: this one was, or needs no room."""
        if self._before and not self._before.done():
            self._before.add_done_callback(lambda _: self.pass_turn())
        elif not self.passed.done():
            self.passed.set_result(None)

    def release(self) -> None:
        """The answer has been taken."""
        self._answers.release(self._size)


@dataclass(eq=False)
class _Job(Generic[Answer]):
    """A request on its way to its answer."""

    task: "asyncio.Task[Answer]"
    ticket: Ticket
    weight: int  # of the request
    key: str


class Stream(Generic[Request, Answer]):
    """One open stream."""

    def __init__(
        self,
        answer: Callable[[Request, Ticket], Coroutine[Any, Any, Answer]],
        write: Callable[[list[Answer]], Awaitable[None]],
        size_of: Callable[[Request], int],
        key_of: Callable[[Request], str] | None = None,
        message_bytes: int = 0,
    ) -> None:
        """
        Args:
            answer: asks its ticket to be admitted before it computes what is large. An exception that it raises ends
                the stream, after the answers before it were written.
            write: is given one answer, or as many as are ready and fit into a message.
            size_of: a request's bytes.
            key_of: a request's id, if answers are written as they are ready; else they keep the requests' order.
            message_bytes: of answers that are written together; a larger one is written alone.
        """
        self._answer, self._write = answer, write
        self._size_of, self._key_of, self._message_bytes = size_of, key_of, message_bytes
        self._requests = WeightedSemaphore(STREAM_REQUESTS)
        self._answers = WeightedSemaphore(STREAM_ANSWERS)
        self._last_ticket: Ticket | None = None
        self._open: dict[_Job[Answer], None] = {}  # whose answers are not to be written yet, in the requests' order
        self._ready: deque[_Job[Answer]] = deque()
        self._by_key: dict[str, _Job[Answer]] = {}
        self._reader: asyncio.Task[None] | None = None
        self._news = asyncio.Event()  # a job is ready, or the reader has ended

    async def serve(self, requests: AsyncIterator[Request]) -> None:
        """Returns when every request is answered. If the caller leaves, all are cancelled.

        Raises:
            InvalidArgument: two requests have the same key.
            Unavailable: `end` was called before all was read. What had been read is answered.
        """
        self._reader = asyncio.create_task(self._read(requests))
        self._reader.add_done_callback(lambda _: self._news.set())
        try:
            while jobs := await self._next_jobs():
                await self._write([job.task.result() for job in jobs])
                for job in jobs:
                    self._release(job)
            if self._reader.cancelled():  # by `end`: OK would say that all requests are answered
                raise Unavailable(ENDED, "draining")
            self._reader.result()  # raises what went wrong in the connection
        finally:
            await self._cancel_all()

    def end(self) -> None:
        """Reads nothing more."""
        if self._reader:
            self._reader.cancel()

    def cancel(self, key: str) -> None:
        """The caller no longer waits for this request."""
        if job := self._by_key.get(key):
            job.task.cancel()

    async def _read(self, requests: AsyncIterator[Request]) -> None:
        async for request in requests:
            key = self._key_of(request) if self._key_of else ""
            if key in self._by_key:
                raise InvalidArgument(f"a request came with the id of another that is under way: {key!r}")
            weight = await self._requests.acquire(1 + self._size_of(request) // REQUEST_BYTES)
            self._last_ticket = ticket = Ticket(self._answers, self._last_ticket)
            job = _Job(asyncio.create_task(self._answer(request, ticket)), ticket, weight, key)
            self._open[job] = None
            if self._key_of:
                self._by_key[key] = job
            job.task.add_done_callback(partial(self._task_done, job))

    def _task_done(self, job: _Job[Answer], _: "asyncio.Task[Answer]") -> None:
        job.ticket.pass_turn()  # it may not have been admitted
        if self._key_of is None:
            while self._open and (first := next(iter(self._open))).task.done():
                del self._open[first]
                self._ready.append(first)
        else:
            del self._open[job], self._by_key[job.key]
            if job.task.cancelled():
                self._release(job)
            else:
                self._ready.append(job)
        self._news.set()

    def _release(self, job: _Job[Answer]) -> None:
        job.ticket.release()
        self._requests.release(job.weight)

    async def _next_jobs(self) -> list[_Job[Answer]]:
        """Those whose answers go into the next message; none at the end."""
        while not self._ready:
            if not self._open and self._reader and self._reader.done():
                return []
            self._news.clear()
            await self._news.wait()
        jobs = [self._ready.popleft()]
        if self._message_bytes:
            size = _bytes_of(jobs[0])
            while self._ready and (size := size + _bytes_of(self._ready[0])) <= self._message_bytes:
                jobs.append(self._ready.popleft())
        return jobs

    async def _cancel_all(self) -> None:
        """Returns when nothing of the stream is left."""
        tasks: list[asyncio.Task[Any]] = [job.task for job in (*self._open, *self._ready)]
        if self._reader:
            tasks.append(self._reader)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _bytes_of(job: _Job[Any]) -> int:
    return int(job.task.result().ByteSize())


class Streams:
    """The open streams of a server, and the one place that ends them."""

    def __init__(self) -> None:
        self._open: set[Stream[Any, Any]] = set()
        self._ended = False

    async def serve(self, stream: Stream[Request, Answer], requests: AsyncIterator[Request]) -> None:
        """Returns when every request is answered. Raises: see `Stream.serve`."""
        if self._ended:
            raise Unavailable(ENDED, "draining")
        self._open.add(stream)
        try:
            await stream.serve(requests)
        finally:
            self._open.discard(stream)

    def end(self) -> None:
        """Streams read nothing more, and end with UNAVAILABLE when every request is answered; later ones at once."""
        self._ended = True
        for stream in self._open:
            stream.end()
