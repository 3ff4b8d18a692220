"""Calls on streams that stay open.

A message on an open stream costs both sides less than a call of its own. A stream carries one
request at a time, so an answer belongs to the request before it, and a caller who leaves closes the stream: the server
stops working on the request, as it does for a cancelled call.
"""

import asyncio
import time
from typing import Any

import grpc

from client.connection import Metadata
from client.wire import CallError, read_pushback, stream_error
from protos import open_inference_pb2 as pb

# A stream stays with one server. It ends after a while, so that new servers get their share of the load.
SECONDS = 30.0
# A server lets so many streams onto a connection, and more (heed's 1024). Beyond that a new stream would wait until one
# of the open ones ends, while those are idle.
MOST = 512

# How a stream ends that has not answered: the server stops reading, or a write meets a connection that is broken.
GONE = dict.fromkeys((grpc.StatusCode.OK, grpc.StatusCode.INTERNAL), grpc.StatusCode.UNAVAILABLE)

Call = Any  # grpc.aio.StreamStreamCall


class Stream:
    """One call that carries one request after the other."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._ends = time.monotonic() + SECONDS

    @property
    def fresh(self) -> bool:
        """Whether it may carry another request."""
        return time.monotonic() < self._ends and not self.over

    @property
    def over(self) -> bool:
        return bool(self._call.done())

    async def ask(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        """Raises CallError. UNAVAILABLE: the stream was over before the answer came."""
        try:
            await self._call.write(request)
            answer = await self._call.read()
        except (grpc.RpcError, asyncio.InvalidStateError):
            answer = grpc.aio.EOF
        if answer is grpc.aio.EOF:
            code = await self._call.code()
            details = await self._call.details() or "the stream has ended"
            raise CallError(GONE.get(code, code), details, read_pushback(await self._call.trailing_metadata()))
        if answer.error_message:
            raise stream_error(answer)
        response: pb.ModelInferResponse = answer.infer_response
        return response

    def cancel(self) -> None:
        self._call.cancel()

    async def finish(self) -> None:
        """Says that nothing more comes."""
        await self._call.done_writing()


class Streams:
    """As many streams to one server as there are requests at the same time, up to MOST."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub
        self._idle: list[Stream] = []
        self._room = asyncio.Semaphore(MOST)

    async def ask(self, request: pb.ModelInferRequest, timeout: float, metadata: Metadata) -> pb.ModelInferResponse:
        """
        Args:
            timeout: seconds.
            metadata: of the stream, if a new one is needed.

        Raises:
            CallError: the server refused, or did not answer in time.
        """
        request.parameters["timeout"].int64_param = int(timeout * 1e6)
        try:
            async with asyncio.timeout(timeout), self._room:
                return await self._ask(request, metadata)
        except TimeoutError:
            raise CallError(grpc.StatusCode.DEADLINE_EXCEEDED, f"no answer within {timeout:.3g} s") from None

    async def _ask(self, request: pb.ModelInferRequest, metadata: Metadata) -> pb.ModelInferResponse:
        stream = self._take(metadata)
        try:
            return await stream.ask(request)
        except asyncio.CancelledError:
            stream.cancel()
            raise
        finally:
            if stream.fresh:
                self._idle.append(stream)
            elif not stream.over:
                await stream.finish()

    def _take(self, metadata: Metadata) -> Stream:
        """The one that was used last, or a new one."""
        while self._idle:
            stream = self._idle.pop()
            if not stream.over:
                return stream
        return Stream(self._stub.ModelStreamInfer(metadata=metadata))

    def close(self) -> None:
        for stream in self._idle:
            stream.cancel()
        self._idle.clear()
