"""Streams that stay open and carry the requests of many callers.

A message on an open stream costs both sides less than a separate call, and a message with several requests costs little
more than a message with one. Requests that are made while a message is being written go into the next message, and so
do the server's answers (`heed.v1`, see protos/heed.proto).
"""

import asyncio
import math
import time
from contextlib import suppress
from itertools import count
from typing import Any

import grpc

from heed.client.connection import Metadata
from heed.client.wire import CallError, call_error, read_pushback, read_reason, stream_error
from heed.protos import heed_pb2
from heed.protos import open_inference_pb2 as pb
from heed.protos.heed_pb2_grpc import InferenceStub
from heed.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub

# A stream stays with one server. It ends after a while, so that new servers get their share of the load.
# Proxies may limit its bytes: to nginx a stream is the body of one request.
MAX_STREAM_SECONDS, MAX_STREAM_BYTES = 30.0, 2**25
MAX_REQUESTS = 128  # in flight on a stream; more go on another one
# A server stops reading a stream while the requests that it has of it use up these credits; a request uses one, and one
# more for every so many bytes. A request without credit would hold up those behind it, so it goes on another stream.
CREDITS, CREDIT_BYTES = 256, 512
OVERHEAD = 64  # bytes that a request grows by when it is sent
TIMEOUT_STEPS = 32  # that timeouts are rounded to: servers cache what requests have in common
# Larger requests are separate calls: they would hold up others, and one that is too large for the server ends its
# stream. Smaller ones are put together in messages of up to so many bytes.
MAX_MESSAGE_BYTES = 2**18

# The statuses of a stream that ended without answering: the server stopped reading, or the connection broke in a write.
UNANSWERED = dict.fromkeys((grpc.StatusCode.OK, grpc.StatusCode.INTERNAL), grpc.StatusCode.UNAVAILABLE)

Call = Any  # grpc.aio.StreamStreamCall


class PendingRequest:
    """A request that is to be sent on a stream."""

    def __init__(self, request: pb.ModelInferRequest, timeout: float) -> None:
        """`timeout` in seconds from now."""
        self.request, self._timeout = request, timeout
        self._since = time.monotonic()
        self.credits = 1 + (request.ByteSize() + OVERHEAD) // CREDIT_BYTES

    def to_send(self) -> pb.ModelInferRequest:
        """The request with the timeout that is left: it may have waited while the connection was busy."""
        elapsed = (time.monotonic() - self._since) / max(self._timeout, 1e-6)
        steps = max(1, math.ceil(TIMEOUT_STEPS * (1 - elapsed)))
        self.request.parameters["timeout"].int64_param = max(1, int(self._timeout * 1e6 * steps / TIMEOUT_STEPS))
        return self.request


class Stream:
    """One call that carries many requests."""

    def __init__(self, call: Call, metadata: Metadata) -> None:
        """`metadata`: what the call was made with; it holds for all requests on the stream."""
        self.metadata = metadata
        self._call = call
        self._expires = time.monotonic() + MAX_STREAM_SECONDS
        self._bytes_left = MAX_STREAM_BYTES
        self._ids = count()
        self._answers: dict[str, asyncio.Future[pb.ModelStreamInferResponse]] = {}  # in flight, by request id
        self._unsent: dict[str, PendingRequest] = {}  # by request id
        self._credits_used = 0
        self._cancelled: list[str] = []  # ids of requests that were sent
        self._wake_sender = asyncio.Event()
        self.ended = False
        self._tasks = [asyncio.create_task(self._send()), asyncio.create_task(self._receive())]

    @property
    def accepts_requests(self) -> bool:
        return not self.ended and self._bytes_left > 0 and time.monotonic() < self._expires

    def has_credit(self, pending: PendingRequest) -> bool:
        """An empty stream has for any request."""
        free = not self._credits_used or self._credits_used + pending.credits <= CREDITS
        return free and len(self._answers) < MAX_REQUESTS

    async def infer(self, pending: PendingRequest) -> pb.ModelInferResponse:
        """Raises CallError. UNAVAILABLE: the stream ended before the answer came."""
        pending.request.id = id = str(next(self._ids))
        self._credits_used += pending.credits
        self._answers[id] = asyncio.get_running_loop().create_future()
        self._unsent[id] = pending
        self._wake_sender.set()
        try:
            answer = await self._answers[id]
        except asyncio.CancelledError:
            if id not in self._unsent:
                self._cancelled.append(id)
            raise
        finally:
            self._credits_used -= pending.credits
            del self._answers[id]
            self._unsent.pop(id, None)  # another attempt may go on another stream
            self._wake_sender.set()
        if answer.error_message:
            raise stream_error(answer)
        response: pb.ModelInferResponse = answer.infer_response
        return response

    async def _send(self) -> None:
        """Ends when the stream accepts no more requests and all that it carried are answered."""
        with suppress(grpc.RpcError, asyncio.InvalidStateError):  # `_receive` gets it, too
            while self.accepts_requests or self._answers:
                await self._wake_sender.wait()
                self._wake_sender.clear()
                while self._unsent or self._cancelled:
                    await self._call.write(self._message())
            await self._call.done_writing()

    def _message(self) -> heed_pb2.Requests:
        """With the next requests, as many as fit."""
        message = heed_pb2.Requests(cancelled=self._cancelled, sent_us=int(time.monotonic() * 1e6))
        self._cancelled.clear()
        left = MAX_MESSAGE_BYTES
        for pending in self._unsent.values():
            request = pending.to_send()
            size = request.ByteSize()
            if message.requests and size > left:
                break
            message.requests.append(request)
            left -= size
            self._bytes_left -= size
        for request in message.requests:
            del self._unsent[request.id]
        return message

    async def _receive(self) -> None:
        with suppress(grpc.RpcError, asyncio.InvalidStateError, asyncio.CancelledError):
            while (message := await self._call.read()) is not grpc.aio.EOF:
                for answer in message.answers:
                    future = self._answers.get(answer.infer_response.id)
                    if future and not future.done():
                        future.set_result(answer)
        self.ended = True
        code = await self._call.code()
        details = await self._call.details() or "the stream has ended"
        trailers = await self._call.trailing_metadata()
        error = UNANSWERED.get(code, code), details, read_pushback(trailers), read_reason(trailers)
        for future in self._answers.values():
            if not future.done():
                future.set_exception(CallError(*error))
        self._wake_sender.set()

    def retire(self) -> None:
        """Ends the stream once the requests that it has are answered."""
        self._expires = 0.0
        self._wake_sender.set()

    async def close(self) -> None:
        self._call.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        del self._call


class Streams:
    """The streams to one server: as many as the requests in flight need."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._calls: Any = GRPCInferenceServiceStub(channel)
        self._streams: Any = InferenceStub(channel)
        self._open: list[Stream] = []
        self._supported = True  # whether the server speaks heed.v1; if not, each request is a separate call

    async def infer(self, request: pb.ModelInferRequest, timeout: float, metadata: Metadata) -> pb.ModelInferResponse:
        """
        Args:
            timeout: seconds.
            metadata: of the call, or of the stream: requests with other metadata go on other streams.

        Raises:
            CallError: the server refused, or did not answer in time.
        """
        if self._supported and request.ByteSize() <= MAX_MESSAGE_BYTES:
            try:
                return await self._infer_on_stream(request, timeout, metadata)
            except CallError as error:
                if error.code is not grpc.StatusCode.UNIMPLEMENTED:
                    raise
                self._supported = False
        return await self._infer_by_call(request, timeout, metadata)

    async def _infer_on_stream(
        self, request: pb.ModelInferRequest, timeout: float, metadata: Metadata
    ) -> pb.ModelInferResponse:
        try:
            async with asyncio.timeout(timeout):
                pending = PendingRequest(request, timeout)
                return await self._stream_for(pending, metadata).infer(pending)
        except TimeoutError:
            raise CallError(grpc.StatusCode.DEADLINE_EXCEEDED, f"no answer within {timeout:.3g} s") from None

    async def _infer_by_call(
        self, request: pb.ModelInferRequest, timeout: float, metadata: Metadata
    ) -> pb.ModelInferResponse:
        try:
            response: pb.ModelInferResponse = await self._calls.ModelInfer(request, timeout=timeout, metadata=metadata)
        except grpc.RpcError as error:
            raise call_error(error) from None
        return response

    def _stream_for(self, pending: PendingRequest, metadata: Metadata) -> Stream:
        """An open stream that has credit for the request, or a new one. A token that has changed needs a new one."""
        self._open = [stream for stream in self._open if not stream.ended]
        for stream in self._open:
            if not stream.accepts_requests or stream.metadata != metadata:
                stream.retire()
            elif stream.has_credit(pending):
                return stream
        self._open.append(Stream(self._streams.InferMany(metadata=metadata), metadata))
        return self._open[-1]

    async def close(self) -> None:
        for stream in self._open:
            await stream.close()
        self._open.clear()
        del self._calls, self._streams
