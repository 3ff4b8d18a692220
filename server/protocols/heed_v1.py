"""`heed.v1`: many requests on one stream, several to a message.

One stream carries what all callers of a client ask for. A message costs more than what is in it, if that is short: so
whatever has been answered while the message before was on its way goes into the next one.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, NamedTuple

import grpc

from heed.protos import heed_pb2 as pb
from heed.protos.heed_pb2_grpc import InferenceServicer
from heed.protos.open_inference_pb2 import ModelInferRequest, ModelStreamInferResponse
from heed.server.errors import InvalidArgument
from heed.server.protocols.streams import REQUEST_BYTES, STREAM_ANSWERS, STREAM_REQUESTS, Ticket, WeightedSemaphore
from heed.server.telemetry.request_trace import Call

MESSAGE_BYTES = 2**18  # of answers that go together; a larger one goes alone
DRIFT = 2e-4  # by how much the clocks of two machines may go apart, as a share of the time
SERVICE = pb.DESCRIPTOR.services_by_name["Inference"].full_name

Context = grpc.aio.ServicerContext[Any, Any]
# Errors are answers, too. The last is how many seconds the request has waited on its way.
Answer = Callable[[Call, ModelInferRequest, Ticket, float], Coroutine[Any, Any, ModelStreamInferResponse]]
Refuse = Callable[[Call, ModelInferRequest, float], ModelStreamInferResponse | None]


class ReadyAnswer(NamedTuple):
    """An answer, and the room that it gives back when it is taken."""

    answer: ModelStreamInferResponse
    place: Ticket
    taken: int


class HeedV1Service(InferenceServicer):
    """The service."""

    def __init__(self, answer: Answer, refuse: Refuse) -> None:
        """`refuse` is asked before anything is done for a request that has waited, and gives the refusal if there is
        no use in it any more."""
        self._answer, self._refuse = answer, refuse
        self._streams: set[_Stream] = set()
        self._over = False

    async def InferMany(self, messages: AsyncIterator[pb.Requests], context: Context) -> None:
        if self._over:
            return
        call = Call(SERVICE, "InferMany", context)
        stream = _Stream(partial(self._answer, call), partial(self._refuse, call), context.write)
        self._streams.add(stream)
        try:
            await stream.serve(messages)
        except InvalidArgument as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        finally:
            self._streams.discard(stream)

    def end_streams(self) -> None:
        """Streams read nothing more and end when what they have read is answered; those to come end at once."""
        self._over = True
        for stream in self._streams:
            stream.end()


class OneWayDelay:
    """How long the messages of a stream have waited on their way: in buffers, and to be read.

    By how much the clocks of two machines differ is unknown. The message that was on its way for the shortest time has
    waited least, and the others by what they took longer, as congestion control measures one-way delay (RFC 6817).
    """

    def __init__(self) -> None:
        self._least = math.inf  # of the differences between both clocks
        self._last = 0.0  # when a message came

    def waited(self, sent_us: int) -> float:
        """Seconds, of a message or of what is left of it, until now."""
        if not sent_us:
            return 0.0
        now = time.monotonic()
        difference = now - sent_us / 1e6
        self._least = min(self._least + DRIFT * (now - self._last), difference)
        self._last = now
        return difference - self._least


class _Stream:
    def __init__(
        self,
        answer: Callable[[ModelInferRequest, Ticket, float], Coroutine[Any, Any, ModelStreamInferResponse]],
        refuse: Callable[[ModelInferRequest, float], ModelStreamInferResponse | None],
        write: Callable[[pb.Answers], Awaitable[None]],
    ) -> None:
        self._answer, self._refuse, self._write = answer, refuse, write
        self._way = OneWayDelay()
        self._room, self._answers_room = WeightedSemaphore(STREAM_REQUESTS), WeightedSemaphore(STREAM_ANSWERS)
        self._last: Ticket | None = None  # of the requests so far
        self._tasks: dict[str, asyncio.Task[ModelStreamInferResponse]] = {}  # by the request's id
        self._answered: list[ReadyAnswer] = []
        self._reading: asyncio.Task[None] | None = None
        self._news = asyncio.Event()  # something is answered, or nothing more will be

    async def serve(self, messages: AsyncIterator[pb.Requests]) -> None:
        """Returns when all is answered. If the caller goes, all of it is cancelled.

        Raises:
            InvalidArgument: two requests have the same id.
        """
        self._reading = asyncio.create_task(self._read(messages))
        self._reading.add_done_callback(lambda _: self._news.set())
        try:
            while batch := await self._next():
                await self._write(pb.Answers(answers=[each.answer for each in batch]))
                for each in batch:
                    each.place.leave()
                    self._room.leave(each.taken)
            if not self._reading.cancelled():  # by `end`
                self._reading.result()  # raises what went wrong in the connection
        finally:
            left: list[asyncio.Task[Any]] = [self._reading, *self._tasks.values()]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    def end(self) -> None:
        if self._reading:
            self._reading.cancel()

    async def _read(self, messages: AsyncIterator[pb.Requests]) -> None:
        async for message in messages:
            for id in message.cancelled:
                if task := self._tasks.get(id):
                    task.cancel()
            for request in message.requests:
                if request.id in self._tasks:
                    raise InvalidArgument(f"a request came with the id of another that is under way: {request.id!r}")
                taken = await self._room.enter(1 + request.ByteSize() // REQUEST_BYTES)
                self._last = place = Ticket(self._answers_room, self._last)
                waited = self._way.waited(message.sent_us)  # for room, too
                if waited and (refusal := self._refuse(request, waited)):
                    self._end(ReadyAnswer(refusal, place, taken))
                    continue
                self._tasks[request.id] = task = asyncio.create_task(self._answer(request, place, waited))
                task.add_done_callback(partial(self._ended, request.id, place, taken))

    def _ended(self, id: str, place: Ticket, taken: int, task: asyncio.Task[ModelStreamInferResponse]) -> None:
        del self._tasks[id]
        if not task.cancelled():
            return self._end(ReadyAnswer(task.result(), place, taken))
        place.let_pass()
        place.leave()
        self._room.leave(taken)
        self._news.set()

    def _end(self, answered: ReadyAnswer) -> None:
        answered.place.let_pass()  # it may not have asked to be admitted
        self._answered.append(answered)
        self._news.set()

    async def _next(self) -> list[ReadyAnswer]:
        """What goes into the next message; nothing at the end."""
        while not self._answered:
            if not self._tasks and self._reading and self._reading.done():
                return []
            self._news.clear()
            await self._news.wait()
        count = size = 0
        for each in self._answered:
            size += each.answer.ByteSize()
            if count and size > MESSAGE_BYTES:
                break
            count += 1
        batch, self._answered = self._answered[:count], self._answered[count:]
        return batch
