"""What is done with a call before a service sees it: refused, counted, and its messages read.

As interceptors of grpc.aio: each sees a call once, whatever its number of messages.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import DecodeError
from grpc import StatusCode

from server.errors import Exhausted

PROBES = frozenset(f"/inference.GRPCInferenceService/Server{what}" for what in ("Live", "Ready"))


def is_probe(method: str) -> bool:
    """Whether a method asks only how the server is, and says nothing of its models."""
    return method in PROBES or method.startswith("/grpc.health.v1.Health/")


def is_reflection(method: str) -> bool:
    return method.startswith("/grpc.reflection.")


class Refusal(NamedTuple):
    code: StatusCode
    message: str


def refuse(refusal: Refusal) -> Any:
    """A handler that answers any kind of call with a status. As that of a stream it is called before a message is
    read, so what is refused costs neither memory nor time for its message."""

    async def abort(messages: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await context.abort(*refusal)

    return grpc.stream_stream_rpc_method_handler(abort)


class Slots(grpc.aio.ServerInterceptor):
    """How many requests are in the server: each call with one request from its arrival until its answer has been
    taken, and each request on a stream while it is worked on. An open stream without a request takes none."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0

    @property
    def _full(self) -> str:
        """Why not one more; empty if there is room."""
        if self._taken < self._limit:
            return ""
        return (
            f"{self._taken} requests are in the server, and it takes {self._limit} at a time "
            "(--max-concurrent-requests); try again later, or another server"
        )

    @contextmanager
    def one(self) -> Iterator[Exhausted | None]:
        """Counts a request on a stream, or gives what to refuse it with: that is an answer, too."""
        if full := self._full:
            yield Exhausted(full)
            return
        self._taken += 1
        try:
            yield None
        finally:
            self._taken -= 1

    async def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        handler = await continuation(details)
        if handler is None or handler.request_streaming or is_probe(details.method):
            return handler
        if full := self._full:
            return refuse(Refusal(StatusCode.RESOURCE_EXHAUSTED, full))
        task = asyncio.current_task()
        assert task  # the call's own, from here to the end of its answer
        self._taken += 1
        task.add_done_callback(self._release)
        return handler

    def _release(self, task: "asyncio.Task[Any]") -> None:
        self._taken -= 1


Behavior = Callable[..., Any]
Parse = Callable[[bytes], Any]


def _not_a(parse: Parse, where: str) -> Refusal:
    kind = getattr(getattr(parse, "__self__", None), "__name__", "message of this method")
    return Refusal(StatusCode.INVALID_ARGUMENT, f"{where} is no {kind} in protobuf's encoding")


def _reading_one(behavior: Behavior, parse: Parse) -> Behavior:
    async def read(raw: bytes, context: Any) -> Any:
        try:
            request = parse(raw)
        except DecodeError:
            await context.abort(*_not_a(parse, "the message"))
        return await behavior(request, context)

    return read


async def _messages(raws: AsyncIterator[bytes], parse: Parse, refusals: list[Refusal]) -> AsyncIterator[Any]:
    """The messages of a stream. It ends before one that cannot be read, and says why in `refusals`."""
    index = 0
    async for raw in raws:
        try:
            message = parse(raw)
        except DecodeError:
            refusals.append(_not_a(parse, f"message {index} of the stream"))
            return
        yield message
        index += 1


def _reading_many(behavior: Behavior, parse: Parse) -> Behavior:
    """What came before a message that cannot be read is answered; then the stream ends with what is wrong."""

    async def read(raws: AsyncIterator[bytes], context: Any) -> Any:
        refusals: list[Refusal] = []
        answer = await behavior(_messages(raws, parse, refusals), context)
        if refusals:
            await context.abort(*refusals[0])
        return answer

    async def read_and_yield(raws: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:
        refusals: list[Refusal] = []
        async for answer in behavior(_messages(raws, parse, refusals), context):
            yield answer
        if refusals:
            await context.abort(*refusals[0])

    return read_and_yield if inspect.isasyncgenfunction(behavior) else read


def _reading(handler: Any) -> Any:
    """The same handler, but it is given bytes and reads the message itself."""
    parse = handler.request_deserializer
    kinds = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
    kind = next(name for name in kinds if getattr(handler, name))
    reading = _reading_many if handler.request_streaming else _reading_one
    return handler._replace(request_deserializer=None, **{kind: reading(getattr(handler, kind), parse)})


class Reading(grpc.aio.ServerInterceptor):
    """Bytes that are no message are the caller's mistake, and told so: gRPC would say UNKNOWN and log a traceback.

    It must be the last interceptor: it remembers the handlers of all methods.
    """

    def __init__(self) -> None:
        self._handlers: dict[str, Any] = {}

    async def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        known = self._handlers.get(details.method)
        if known is None:
            handler = await continuation(details)
            if handler is None:
                return None
            known = self._handlers[details.method] = _reading(handler)
        return known
