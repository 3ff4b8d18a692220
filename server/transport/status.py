"""From errors to gRPC statuses: code, message, trailing metadata."""

import logging
import math
import random
from typing import Any, NoReturn

import grpc

from heed.server.errors import Exhausted, HeedError, reason_of, reference_of, status_of

log = logging.getLogger("heed.services")

# Messages quote what callers send. gRPC limits a status to 8 KiB, and 4 bytes of UTF-8 travel as 12.
MAX_MESSAGE = 500
# gRFC A6: when a client's retry policy may try again, in milliseconds; a negative number: not at all.
PUSHBACK = "grpc-retry-pushback-ms"
REASON = "heed-reason"  # one of `REASONS`, in trailing metadata
NEVER = -1
# Times for callers who are refused together differ by up to this factor, so that they do not come back together.
SPREAD = 1.25


def printable(text: str) -> str:
    """Without characters that would break a log's lines, move a terminal's cursor or turn the direction of writing."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


class ItemError(Exception):
    """The error of one request of a stream."""

    def __init__(self, index: int, error: Exception) -> None:
        super().__init__(index)
        self.index, self.error = index, error


def describe(error: Exception) -> tuple[grpc.StatusCode, str]:
    """The status code and the message for the caller."""
    if isinstance(error, ItemError):
        code, message = describe(error.error)
        return code, f"item {error.index}: {message}"
    if isinstance(error, HeedError):
        message = str(error)
        if len(message) > MAX_MESSAGE:
            message = message[: MAX_MESSAGE - 1] + "…"
        return grpc.StatusCode[status_of(error)], printable(message)
    # The message of an unforeseen error may not be for callers: they get an id, and the log has the rest.
    reference = reference_of(error)
    log.error("internal error %s", reference, exc_info=error)
    return grpc.StatusCode.INTERNAL, f"internal error {reference}; the server's log has the details"


def retry_after_ms(error: Exception) -> int | None:
    """When another try is worth it: milliseconds, NEVER, or None if nothing is known."""
    if not isinstance(error, Exhausted) or error.retry_after is None:
        return None
    if math.isinf(error.retry_after):
        return NEVER
    return math.ceil(error.retry_after * random.uniform(1, SPREAD) * 1000)


def trailing_metadata(error: Exception) -> tuple[tuple[str, str], ...]:
    """Why the request was refused, in a word for programs, and when another try is worth it."""
    milliseconds = retry_after_ms(error)
    pushback = () if milliseconds is None else ((PUSHBACK, str(milliseconds)),)
    return ((REASON, reason_of(error)), *pushback)


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: Exception) -> NoReturn:
    """Ends a call with the status of an error."""
    await context.abort(*describe(error), trailing_metadata(error))
    raise AssertionError("abort raises")
