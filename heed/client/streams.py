"""Streams that stay open, and carry the requests of many callers.

A message on an open stream costs both sides less than a call of its own, and a message with several requests not much
more than one with one: what callers ask for while a message is on its way goes into the next one, and so do the
server's answers (`heed.v1`, see protos/heed.proto).
"""

import asyncio
import math
import time
from contextlib import suppress
from itertools import count
from typing import Any

import grpc

from heed.client.connection import Metadata
from heed.client.wire import CallError, call_error, read_pushback, stream_error
from heed.protos import heed_pb2 as many
from heed.protos import open_inference_pb2 as pb
from heed.protos.heed_pb2_grpc import InferenceStub
from heed.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub

# A stream stays with one server. It ends after a while, so that new servers get their share of the load.
# Proxies may bound what it carries: to nginx a stream is one body of a request.
SECONDS, STREAM_BYTES = 30.0, 2**25
REQUESTS = 128  # on a stream at a time; more go on another one
# A server reads on while what it has of a stream takes no more room than this; a request counts as several if it is
# longer than so many bytes. What does not fit would hold up what comes behind it, so it goes on another stream.
ROOM, ROOM_BYTES = 256, 512
OVERHEAD = 64  # bytes that a request grows by when it is sent
STEPS = 32  # in which the time that is left is told: servers remember what requests have in common
# A larger request is a call of its own: it would hold up the others, and one that the server finds too large ends what
# it came on. Of smaller ones so much goes into a message.
BYTES = 2**18

# How a stream ends that has not answered: the server stops reading, or a write meets a connection that is broken.
GONE = dict.fromkeys((grpc.StatusCode.OK, grpc.StatusCode.INTERNAL), grpc.StatusCode.UNAVAILABLE)

Call = Any  # grpc.aio.StreamStreamCall


class Asked:
    """A request on its way to a stream."""

    def __init__(self, request: pb.ModelInferRequest, timeout: float) -> None:
        """`timeout` in seconds from now."""
        self.request, self._timeout = request, timeout
        self._since = time.monotonic()
        self.room = 1 + (request.ByteSize() + OVERHEAD) // ROOM_BYTES

    def to_send(self) -> pb.ModelInferRequest:
        """Says how much of its time is left now: nothing is sent while the connection is full."""
        gone = (time.monotonic() - self._since) / max(self._timeout, 1e-6)
        steps = max(1, math.ceil(STEPS * (1 - gone)))
        self.request.parameters["timeout"].int64_param = max(1, int(self._timeout * 1e6 * steps / STEPS))
        return self.request


class Stream:
    """One call that carries many requests."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._ends = time.monotonic() + SECONDS
        self._left = STREAM_BYTES
        self._ids = count()
        self._waiting: dict[str, asyncio.Future[pb.ModelStreamInferResponse]] = {}  # for their answers, by id
        self._requests: dict[str, Asked] = {}  # that are to be sent
        self._taken = 0  # of the room
        self._cancelled: list[str] = []  # of what was sent
        self._news = asyncio.Event()  # something is to be sent
        self.over = False
        self._tasks = [asyncio.create_task(self._send()), asyncio.create_task(self._receive())]

    @property
    def fresh(self) -> bool:
        """Whether it may carry other requests."""
        return not self.over and self._left > 0 and time.monotonic() < self._ends

    def has_room(self, asked: Asked) -> bool:
        """An empty one has room for anything."""
        return len(self._waiting) < REQUESTS and (not self._taken or self._taken + asked.room <= ROOM)

    async def ask(self, asked: Asked) -> pb.ModelInferResponse:
        """Raises CallError. UNAVAILABLE: the stream was over before the answer came."""
        asked.request.id = id = str(next(self._ids))
        self._taken += asked.room
        self._waiting[id] = asyncio.get_running_loop().create_future()
        self._requests[id] = asked
        self._news.set()
        try:
            answer = await self._waiting[id]
        except asyncio.CancelledError:
            if id not in self._requests:
                self._cancelled.append(id)
            raise
        finally:
            self._taken -= asked.room
            del self._waiting[id]
            self._requests.pop(id, None)  # it may go on another stream now
            self._news.set()
        if answer.error_message:
            raise stream_error(answer)
        response: pb.ModelInferResponse = answer.infer_response
        return response

    async def _send(self) -> None:
        """Ends when the stream is to carry nothing more, and all that it carried is answered."""
        with suppress(grpc.RpcError, asyncio.InvalidStateError):  # `_receive` hears of it, too
            while self.fresh or self._waiting:
                await self._news.wait()
                self._news.clear()
                while self._requests or self._cancelled:
                    await self._call.write(self._message())
            await self._call.done_writing()

    def _message(self) -> many.Requests:
        """The next ones that go together."""
        message = many.Requests(cancelled=self._cancelled, sent_us=int(time.monotonic() * 1e6))
        self._cancelled.clear()
        left = BYTES
        for asked in self._requests.values():
            request = asked.to_send()
            size = request.ByteSize()
            if message.requests and size > left:
                break
            message.requests.append(request)
            left -= size
            self._left -= size
        for request in message.requests:
            del self._requests[request.id]
        return message

    async def _receive(self) -> None:
        with suppress(grpc.RpcError, asyncio.InvalidStateError, asyncio.CancelledError):
            while (message := await self._call.read()) is not grpc.aio.EOF:
                for answer in message.answers:
                    waiting = self._waiting.get(answer.infer_response.id)
                    if waiting and not waiting.done():
                        waiting.set_result(answer)
        self.over = True
        code = await self._call.code()
        details = await self._call.details() or "the stream has ended"
        error = GONE.get(code, code), details, read_pushback(await self._call.trailing_metadata())
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(CallError(*error))
        self._news.set()

    def retire(self) -> None:
        """It carries nothing more than what it carries already."""
        self._ends = 0.0
        self._news.set()

    async def close(self) -> None:
        self._call.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Streams:
    """Those to one server: as many as its requests need."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._calls: Any = GRPCInferenceServiceStub(channel)
        self._many: Any = InferenceStub(channel)
        self._each: list[Stream] = []
        self._known = True  # whether the server speaks heed.v1; any other one is asked by calls

    async def ask(self, request: pb.ModelInferRequest, timeout: float, metadata: Metadata) -> pb.ModelInferResponse:
        """
        Args:
            timeout: seconds.
            metadata: of the call, or of the stream if a new one is needed.

        Raises:
            CallError: the server refused, or did not answer in time.
        """
        if self._known and request.ByteSize() <= BYTES:
            try:
                return await self._on_stream(request, timeout, metadata)
            except CallError as error:
                if error.code is not grpc.StatusCode.UNIMPLEMENTED:
                    raise
                self._known = False
        return await self._call(request, timeout, metadata)

    async def _on_stream(
        self, request: pb.ModelInferRequest, timeout: float, metadata: Metadata
    ) -> pb.ModelInferResponse:
        try:
            async with asyncio.timeout(timeout):
                asked = Asked(request, timeout)
                return await self._take(asked, metadata).ask(asked)
        except TimeoutError:
            raise CallError(grpc.StatusCode.DEADLINE_EXCEEDED, f"no answer within {timeout:.3g} s") from None

    async def _call(self, request: pb.ModelInferRequest, timeout: float, metadata: Metadata) -> pb.ModelInferResponse:
        try:
            response: pb.ModelInferResponse = await self._calls.ModelInfer(request, timeout=timeout, metadata=metadata)
        except grpc.RpcError as error:
            raise call_error(error) from None
        return response

    def _take(self, asked: Asked, metadata: Metadata) -> Stream:
        """One with room for it, or a new one."""
        self._each = [stream for stream in self._each if not stream.over]
        for stream in self._each:
            if not stream.fresh:
                stream.retire()
            elif stream.has_room(asked):
                return stream
        self._each.append(Stream(self._many.InferMany(metadata=metadata)))
        return self._each[-1]

    async def close(self) -> None:
        for stream in self._each:
            await stream.close()
        self._each.clear()
