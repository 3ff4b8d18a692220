"""Interceptors: what is done with a call before a service sees it.

A call is refused or counted, its messages are parsed, and the errors of services become statuses. Each interceptor of
grpc.aio sees a call once, whatever its number of messages.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import DecodeError
from grpc import StatusCode

from heed.server.errors import Exhausted, InvalidArgument, reason_of
from heed.server.transport.status import REASON, abort

CountRefusal = Callable[[str], None]  # is called with the reason of each refusal

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

    @property
    def trailing(self) -> tuple[tuple[str, str], ...]:
        return ((REASON, self.reason),)


def refuse(refusal: Refusal | Exception, count_refusal: CountRefusal) -> Any:
    """A handler that answers any kind of call with a status. It is that of a stream, which is called before a message
    is read: so the message of a call that is refused costs neither memory nor time."""
    count_refusal(refusal.reason if isinstance(refusal, Refusal) else reason_of(refusal))

    async def end_call(messages: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        if isinstance(refusal, Refusal):
            await context.abort(refusal.code, refusal.message, refusal.trailing)
        else:
            await abort(context, refusal)

    return grpc.stream_stream_rpc_method_handler(end_call)


class Paused:
    """In a `with`, a request does not count: it waits for its own caller to take answers, and no other caller should
    wait for that."""

    def __init__(self, limit: "ConcurrencyLimit") -> None:
        self._limit = limit

    def __enter__(self) -> None:
        self._limit.release()

    def __exit__(self, *error: object) -> None:
        self._limit.acquire()


class ConcurrencyLimit(grpc.aio.ServerInterceptor):
    """Bounds the requests in the server: each unary call from its arrival until its answer has been taken, and each
    request on a stream while it is worked on, in a `with`. An open stream without a request does not count."""

    def __init__(self, limit: int, count_refusal: CountRefusal = lambda _: None) -> None:
        self._limit = limit
        self._count_refusal = count_refusal
        self._taken = 0
        self.paused = Paused(self)

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
        self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()

    def acquire(self) -> None:
        self._taken += 1

    def release(self) -> None:
        self._taken -= 1

    async def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        handler = await continuation(details)
        if handler is None or handler.request_streaming or is_probe(details.method):
            return handler
        if full := self._full:
            return refuse(full, self._count_refusal)
        task = asyncio.current_task()
        assert task  # the call's own, from here to the end of its answer
        self.acquire()
        task.add_done_callback(lambda _: self.release())
        return handler


Behavior = Callable[..., Any]
Parse = Callable[[bytes], Any]


class _Method:
    """One method of a service, whose messages are parsed here and whose errors become statuses."""

    def __init__(self, parse: Parse, behavior: Behavior, count_refusal: CountRefusal) -> None:
        self._parse, self._behavior, self._count_refusal = parse, behavior, count_refusal
        self._message_name = getattr(getattr(parse, "__self__", None), "__name__", "message of this method")

    async def call(self, raw: bytes, context: Any) -> Any:
        """With one request."""
        try:
            return await self._behavior(self._parsed(raw, "the message"), context)
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            await abort(context, error)

    async def stream(self, raws: AsyncIterator[bytes], context: Any) -> Any:
        """With many requests. Those before a message that cannot be parsed are answered; then the stream ends with the
        error."""
        errors: list[Exception] = []
        try:
            answer = await self._behavior(self._messages(raws, errors), context)
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            await abort(context, error)
        if errors:
            await abort(context, errors[0])
        return answer

    async def generate(self, raws: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:
        """The same for a method that is a generator."""
        errors: list[Exception] = []
        async for answer in self._behavior(self._messages(raws, errors), context):
            yield answer
        if errors:
            await abort(context, errors[0])

    def _parsed(self, raw: bytes, where: str) -> Any:
        try:
            return self._parse(raw)
        except DecodeError:
            self._count_refusal("invalid_argument")
            raise InvalidArgument(f"{where} is no {self._message_name} in protobuf's encoding") from None

    async def _messages(self, raws: AsyncIterator[bytes], errors: list[Exception]) -> AsyncIterator[Any]:
        """The messages of a stream. It ends before one that cannot be parsed, and adds that error to `errors`."""
        index = 0
        async for raw in raws:
            try:
                message = self._parsed(raw, f"message {index} of the stream")
            except InvalidArgument as error:
                errors.append(error)
                return
            yield message
            index += 1


class ErrorsToStatuses(grpc.aio.ServerInterceptor):
    """Parses messages, and turns the errors of all services into statuses.

    Bytes that are no message are the caller's mistake, and answered so: gRPC would say UNKNOWN and log a traceback. It
    must be the last interceptor, as it remembers the handlers of all methods.
    """

    def __init__(self, count_refusal: CountRefusal) -> None:
        self._count_refusal = count_refusal
        self._handlers: dict[str, Any] = {}

    async def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        known = self._handlers.get(details.method)
        if known is None:
            handler = await continuation(details)
            if handler is None:
                return None
            known = self._handlers[details.method] = self._wrapped(handler)
        return known

    def _wrapped(self, handler: Any) -> Any:
        """The same handler, but it is given bytes and parses the message itself."""
        kinds = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
        kind = next(name for name in kinds if getattr(handler, name))
        behavior = getattr(handler, kind)
        method = _Method(handler.request_deserializer, behavior, self._count_refusal)
        wrapped: Behavior = method.call
        if handler.request_streaming:
            wrapped = method.generate if inspect.isasyncgenfunction(behavior) else method.stream
        return handler._replace(request_deserializer=None, **{kind: wrapped})
