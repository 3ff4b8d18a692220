"""Turns errors into gRPC statuses, in one place."""

import functools
import logging
import math
import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc

from heed.server.errors import Exhausted, HeedError, reference_of, status_of

log = logging.getLogger("heed.services")

# Messages quote what callers send. gRPC limits a status to 8 KiB, and 4 bytes of UTF-8 travel as 12.
MAX_MESSAGE = 500
# gRFC A6: when a client's retry policy may try again, in milliseconds; a negative number: not at all.
PUSHBACK = "grpc-retry-pushback-ms"
NEVER = -1
SPREAD = 1.25  # callers who are refused together are told times up to this factor apart, and do not come back together


def printable(text: str) -> str:
    """Without characters that would break a log's lines, move a terminal's cursor or turn the direction of writing."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


Method = TypeVar("Method", bound=Callable[..., Awaitable[Any]])


class ItemError(Exception):
    """What went wrong with one request of a stream."""

    def __init__(self, index: int, error: Exception) -> None:
        super().__init__(index)
        self.index, self.error = index, error


def describe(error: Exception) -> tuple[grpc.StatusCode, str]:
    """What a caller is told about an error."""
    if isinstance(error, ItemError):
        code, message = describe(error.error)
        return code, f"item {error.index}: {message}"
    if isinstance(error, HeedError):
        message = str(error)
        if len(message) > MAX_MESSAGE:
            message = message[: MAX_MESSAGE - 1] + "…"
        return status_of(error), printable(message)
    # What nobody foresaw may say things that are not for callers: they get an id, the log gets the rest.
    reference = reference_of(error)
    log.error("internal error %s", reference, exc_info=error)
    return grpc.StatusCode.INTERNAL, f"internal error {reference}; the server's log has the details"


def retry_after_ms(error: Exception) -> int | None:
    """What a caller is told of trying again: milliseconds, NEVER, or None if nothing is known."""
    if not isinstance(error, Exhausted) or error.retry_after is None:
        return None
    if math.isinf(error.retry_after):
        return NEVER
    return math.ceil(error.retry_after * random.uniform(1, SPREAD) * 1000)


def pushback(error: Exception) -> tuple[tuple[str, str], ...]:
    """The same as trailing metadata."""
    milliseconds = retry_after_ms(error)
    return () if milliseconds is None else ((PUSHBACK, str(milliseconds)),)


def errors_to_status(method: Method) -> Method:
    """Wraps a method that is one coroutine: its errors become statuses."""

    @functools.wraps(method)
    async def wrapper(self: Any, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await method(self, request, context)
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            await context.abort(*describe(error), pushback(error))

    return wrapper  # type: ignore[return-value]
