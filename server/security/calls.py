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


def refuse(refusal: Refusal) -> grpc.RpcMethodHandler:
    """A handler that answers any kind of call with a status. As that of a stream it is called before a message is
    read, so what is refused costs neither memory nor time for its message."""

    async def abort(messages: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await context.abort(*refusal)

    return grpc.stream_stream_rpc_method_handler(abort)


class Slots(grpc.aio.ServerInterceptor):  # type: ignore[misc]
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
    def one(self) -> Iterator[None]:
        """Counts a request of a stream. Raises Exhausted."""
        if full := self._full:
            raise Exhausted(full)
        self._taken += 1
        try:
            yield
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


Behavior = Callable[[Any, Any], Any]


def _what(parse: Callable[[bytes], Any]) -> str:
    """Which message a parser reads."""
    return getattr(getattr(parse, "__self__", None), "__name__", "message of this method")


def _not_a(parse: Callable[[bytes], Any], index: int | None = None) -> Refusal:
    where = "the message" if index is None else f"message {index} of the stream"
    return Refusal(StatusCode.INVALID_ARGUMENT, f"{where} is no {_what(parse)} in protobuf's encoding")


def _parsing_one(behavior: Behavior, parse: Callable[[bytes], Any]) -> Behavior:
    async def parsed(raw: bytes, context: Any) -> Any:
        try:
            request = parse(raw)
        except DecodeError:
            await context.abort(*_not_a(parse))
        return await behavior(request, context)

    return parsed


class _Parsed:
    """The messages of a stream, until one cannot be read."""

    def __init__(self, raws: AsyncIterator[bytes], parse: Callable[[bytes], Any]) -> None:
        self._raws, self._parse = raws, parse
        self.refusal: Refusal | None = None

    async def __aiter__(self) -> AsyncIterator[Any]:
        index = 0
        async for raw in self._raws:
            try:
                message = self._parse(raw)
            except DecodeError:
                self.refusal = _not_a(self._parse, index)
                return
            yield message
            index += 1
