"""What is done with a call before a service sees it: refused, counted, and its messages read.

As interceptors of grpc.aio: each sees a call once, whatever its number of messages.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import DecodeError
from grpc import StatusCode

from heed.server.errors import Exhausted, reason_of
from heed.server.transport.status import describe, pushback

Refused = Callable[[str], None]  # hears the reason of each refusal

RETRY_SECONDS = 1.0  # after which another try is worth it where too many requests were in the server
PROBES = frozenset(f"/inference.GRPCInferenceService/Server{what}" for what in ("Live", "Ready"))


def is_probe(method: str) -> bool:
    """Whether a method asks only how the server is, and says nothing of its models."""
    return method in PROBES or method.startswith("/grpc.health.v1.Health/")


def is_reflection(method: str) -> bool:
    return method.startswith("/grpc.reflection.")


class Refusal(NamedTuple):
    code: StatusCode
    message: str
    reason: str  # one of `REASONS`
    trailing: tuple[tuple[str, str], ...] = ()


def refuse(refusal: Refusal, refused: Refused) -> Any:
    """A handler that answers any kind of call with a status. As that of a stream it is called before a message is
    read, so what is refused costs neither memory nor time for its message."""

    refused(refusal.reason)

    async def abort(messages: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await context.abort(refusal.code, refusal.message, refusal.trailing)

    return grpc.stream_stream_rpc_method_handler(abort)


class Released:
    """A slot while a request on a stream waits for its own caller to take answers, in a `with`: no other caller shall
    wait for that."""

    def __init__(self, slots: "ConcurrencyLimit") -> None:
        self._slots = slots

    def __enter__(self) -> None:
        self._slots.leave()

    def __exit__(self, *error: object) -> None:
        self._slots.take()


class ConcurrencyLimit(grpc.aio.ServerInterceptor):
    """How many requests are in the server: each call with one request from its arrival until its answer has been
    taken, and each request on a stream while it is worked on, in a `with`. An open stream without a request takes
    none."""

    def __init__(self, limit: int, refused: Refused = lambda _: None) -> None:
        self._limit = limit
        self._refused = refused
        self._taken = 0
        self.given_back = Released(self)

    @property
    def _full(self) -> Exhausted | None:
        """Why not one more, if there is no room."""
        if self._taken < self._limit:
            return None
        return Exhausted(
            f"{self._taken} requests are in the server, and it takes {self._limit} at a time "
            "(--max-concurrent-requests); try again later, or another server",
            RETRY_SECONDS,
            "too_many_requests",
        )

    def __enter__(self) -> None:
        """Counts a request on a stream.

        Raises:
            Exhausted: there are too many.
        """
        if full := self._full:
            raise full
        self.take()

    def __exit__(self, *error: object) -> None:
        self.leave()

    def take(self) -> None:
        self._taken += 1

    def leave(self) -> None:
        self._taken -= 1

    async def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        handler = await continuation(details)
        if handler is None or handler.request_streaming or is_probe(details.method):
            return handler
        if full := self._full:
            return refuse(Refusal(*describe(full), reason_of(full), pushback(full)), self._refused)
        task = asyncio.current_task()
        assert task  # the call's own, from here to the end of its answer
        self.take()
        task.add_done_callback(lambda _: self.leave())
        return handler


Behavior = Callable[..., Any]
Parse = Callable[[bytes], Any]


class _Reader:
    """Reads the messages of one method."""

    def __init__(self, parse: Parse, refused: Refused) -> None:
        self._parse, self._refused = parse, refused
        self._kind = getattr(getattr(parse, "__self__", None), "__name__", "message of this method")

    async def _abort(self, context: Any, where: str) -> None:
        self._refused("invalid_argument")
        await context.abort(StatusCode.INVALID_ARGUMENT, f"{where} is no {self._kind} in protobuf's encoding")

    def one(self, behavior: Behavior) -> Behavior:
        async def read(raw: bytes, context: Any) -> Any:
            try:
                request = self._parse(raw)
            except DecodeError:
                await self._abort(context, "the message")
            return await behavior(request, context)

        return read

    async def _messages(self, raws: AsyncIterator[bytes], bad: list[int]) -> AsyncIterator[Any]:
        """Those of a stream. It ends before one that cannot be read, and puts its index into `bad`."""
        index = 0
        async for raw in raws:
            try:
                message = self._parse(raw)
            except DecodeError:
                bad.append(index)
                return
            yield message
            index += 1

    def many(self, behavior: Behavior) -> Behavior:
        """What came before a message that cannot be read is answered; then the stream ends with what is wrong."""

        async def read(raws: AsyncIterator[bytes], context: Any) -> Any:
            bad: list[int] = []
            answer = await behavior(self._messages(raws, bad), context)
            for index in bad:
                await self._abort(context, f"message {index} of the stream")
            return answer

        async def read_and_yield(raws: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:
            bad: list[int] = []
            async for answer in behavior(self._messages(raws, bad), context):
                yield answer
            for index in bad:
                await self._abort(context, f"message {index} of the stream")

        return read_and_yield if inspect.isasyncgenfunction(behavior) else read


class Reading(grpc.aio.ServerInterceptor):
    """Bytes that are no message are the caller's mistake, and told so: gRPC would say UNKNOWN and log a traceback.

    It must be the last interceptor: it remembers the handlers of all methods.
    """

    def __init__(self, refused: Refused) -> None:
        self._refused = refused
        self._handlers: dict[str, Any] = {}

    async def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        known = self._handlers.get(details.method)
        if known is None:
            handler = await continuation(details)
            if handler is None:
                return None
            known = self._handlers[details.method] = self._reading(handler)
        return known

    def _reading(self, handler: Any) -> Any:
        """The same handler, but it is given bytes and reads the message itself."""
        reader = _Reader(handler.request_deserializer, self._refused)
        kinds = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
        kind = next(name for name in kinds if getattr(handler, name))
        read = reader.many if handler.request_streaming else reader.one
        return handler._replace(request_deserializer=None, **{kind: read(getattr(handler, kind))})
