"""Many requests on one call: computed together, answered in their order."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

# How many requests of one stream are in the server at a time; the next ones wait in the connection.
STREAM_REQUESTS = 256

Request = TypeVar("Request")
Answer = TypeVar("Answer")


class Streams:
    """The open streams of one service."""

    def __init__(self) -> None:
        self._reading: set[asyncio.Task[None]] = set()  # one for each

    async def serve(
        self,
        requests: AsyncIterator[Request],
        answer: Callable[[Request], Coroutine[Any, Any, Answer]],
        write: Callable[[Answer], Awaitable[None]],
    ) -> None:
        """Returns when all is answered. If the caller goes, all of it is cancelled.

        Args:
            answer: what it raises ends the stream, after the answers before were written.
        """
        answers: asyncio.Queue[asyncio.Task[Answer] | None] = asyncio.Queue()
        room = asyncio.Semaphore(STREAM_REQUESTS)

        async def read() -> None:
            try:
                async for request in requests:
                    await room.acquire()
                    answers.put_nowait(asyncio.create_task(answer(request)))
            finally:
                answers.put_nowait(None)

        reading = asyncio.create_task(read())
        self._reading.add(reading)
        try:
            while (task := await answers.get()) is not None:
                await write(await task)
                room.release()
            if not reading.cancelled():  # by `end`
                reading.result()  # raises what went wrong in the connection
        finally:
            self._reading.discard(reading)
            await _cancel(reading, answers)

    def end(self) -> None:
        """Streams read nothing more and end when what they have read is answered."""
        for reading in self._reading:
            reading.cancel()


async def _cancel(reading: asyncio.Task[None], answers: asyncio.Queue[asyncio.Task[Answer] | None]) -> None:
    """Ends what is left of a stream, and returns when it has ended."""
    left: list[asyncio.Task[Any]] = [reading]
    while not answers.empty():
        if task := answers.get_nowait():
            left.append(task)
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
