"""Turns errors into gRPC statuses, in one place."""

import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc

from server.errors import HeedError, reference_of, status_of

log = logging.getLogger("heed.services")

# Messages quote what callers send. gRPC limits a status to 8 KiB, and 4 bytes of UTF-8 travel as 12.
MAX_MESSAGE = 500

Method = TypeVar("Method", bound=Callable[..., Awaitable[Any]])


def describe(error: Exception) -> tuple[grpc.StatusCode, str]:
    """What a caller is told about an error."""
    if isinstance(error, HeedError):
        message = str(error)
        return status_of(error), message if len(message) <= MAX_MESSAGE else message[: MAX_MESSAGE - 1] + "…"
    # What nobody foresaw may say things that are not for callers: they get an id, the log gets the rest.
    reference = reference_of(error)
    log.error("internal error %s", reference, exc_info=error)
    return grpc.StatusCode.INTERNAL, f"internal error {reference}; the server's log has the details"


def guarded(method: Method) -> Method:
    """Wraps a unary method: its errors become statuses."""

    @functools.wraps(method)
    async def wrapper(self: Any, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await method(self, request, context)
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            await context.abort(*describe(error))

    return wrapper  # type: ignore[return-value]
