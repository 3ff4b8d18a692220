"""Many requests on one call: computed together, answered in their order.

Who does not read his answers holds up nobody else, and fills no memory: what is in the server of one stream is bounded,
and when that is full nothing more is read from him.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

# How many requests of one stream are in the server at a time; the next ones wait in the connection. One counts as
# several if it is longer than this many bytes: rows take many times what they have on the wire.
STREAM_REQUESTS, REQUEST_BYTES = 256, 512
# Bytes of answers, computed or about to be, that wait to be taken.
STREAM_ANSWERS = 2**24

Request = TypeVar("Request")
Answer = TypeVar("Answer")


class WeightedSemaphore:
    """So much at a time, for one who asks after the other."""

    def __init__(self, size: int) -> None:
        self._size = self._free = size
        self._left = asyncio.Event()

    async def enter(self, size: int) -> int:
        """Waits until there is room, and returns how much it took: what needs more than all of it is alone."""
        size = min(size, self._size)
        while self._free < size:
            self._left.clear()
            await self._left.wait()
        self._free -= size
        return size

    def leave(self, size: int) -> None:
        self._free += size
        self._left.set()


class Ticket:
    """That of one request among the others of its stream."""

    def __init__(self, answers: WeightedSemaphore, before: "Ticket | None") -> None:
        self._answers = answers
        self._before = before.passed if before else None
        self._size = 0
        # By all up to here: the next one may be admitted.
        self.passed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def admit(self, size: int) -> None:
        """Waits until an answer of so many bytes may be computed. In the order of the requests: the first one's answer
        makes room for the others."""
        if self._before and not self._before.done():
            await asyncio.shield(self._before)  # others wait for it, too
        self._size = await self._answers.enter(size)
        self.let_pass()

    def let_pass(self) -> None:
        """Admitted, or in no need of it."""
        if self._before and not self._before.done():
            self._before.add_done_callback(lambda _: self.let_pass())
        elif not self.passed.done():
            self.passed.set_result(None)

    def leave(self) -> None:
        """The answer is taken."""
        self._answers.leave(self._size)


class Streams:
    """The open streams of one service."""

    def __init__(self) -> None:
        self._reading: set[asyncio.Task[None]] = set()  # one for each
        self._over = False

    async def serve(
        self,
        requests: AsyncIterator[Request],
        size: Callable[[Request], int],
        answer: Callable[[Request, Ticket], Coroutine[Any, Any, Answer]],
        write: Callable[[Answer], Awaitable[None]],
    ) -> None:
        """Returns when all is answered. If the caller goes, all of it is cancelled.

        Args:
            size: a request's bytes.
            answer: asks its place to be admitted before it computes what is large. What it raises ends the stream,
                after the answers before were written.
        """
        answers: asyncio.Queue[tuple[asyncio.Task[Answer], Ticket, int] | None] = asyncio.Queue()
        room, answers_room = WeightedSemaphore(STREAM_REQUESTS), WeightedSemaphore(STREAM_ANSWERS)

        async def answered(request: Request, place: Ticket) -> Answer:
            try:
                return await answer(request, place)
            finally:
                place.let_pass()  # it may not have asked to be admitted

        async def read() -> None:
            place = None
            async for request in requests:
                taken = await room.enter(1 + size(request) // REQUEST_BYTES)
                place = Ticket(answers_room, place)
                answers.put_nowait((asyncio.create_task(answered(request, place)), place, taken))

        if self._over:
            return
        reading = asyncio.create_task(read())
        reading.add_done_callback(lambda _: answers.put_nowait(None))
        self._reading.add(reading)
        try:
            while (one := await answers.get()) is not None:
                task, place, taken = one
                await write(await task)
                place.leave()
                room.leave(taken)
            if not reading.cancelled():  # by `end`
                reading.result()  # raises what went wrong in the connection
        finally:
            self._reading.discard(reading)
            await _cancel(reading, answers)

    def end(self) -> None:
        """Streams read nothing more and end when what they have read is answered; those to come end at once."""
        self._over = True
        for reading in self._reading:
            reading.cancel()


async def _cancel(
    reading: asyncio.Task[None], answers: asyncio.Queue[tuple[asyncio.Task[Answer], Ticket, int] | None]
) -> None:
    """Ends what is left of a stream, and returns when it has ended."""
    left: list[asyncio.Task[Any]] = [reading]
    while not answers.empty():
        if one := answers.get_nowait():
            left.append(one[0])
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
