"""The error family, and the one table that maps it to gRPC status codes."""

import uuid
from typing import Literal, get_args

from grpc import StatusCode

# What a status alone does not tell. Metrics have a series for each.
Reason = Literal[
    "queue_full", "no_time", "loading", "draining", "too_many_requests", "unauthenticated", "permission_denied"
]


class HeedError(Exception):
    """Something a caller or an operator can act on; the message is theirs to read."""

    def __init__(self, message: str = "", reason: Reason | None = None) -> None:
        super().__init__(message)
        self.reason = reason


class InvalidArgument(HeedError):
    """The request itself is wrong, whatever the server's state. Sending it again will not help."""


class NotFound(HeedError):
    """No such model or version."""


class Exhausted(HeedError):
    """More is asked than can be done now. Later it may not be."""

    def __init__(self, message: str, retry_after: float | None = None, reason: Reason | None = None) -> None:
        """`retry_after`: seconds until another try is worth it; infinity if none is; None if nobody knows."""
        super().__init__(message, reason)
        self.retry_after = retry_after


class DeadlineExceeded(HeedError):
    """The caller's time was up before the work was done."""


class Unavailable(HeedError):
    """Still loading, or already draining. Another replica, or a later try, may answer."""


class FailedPrecondition(HeedError):
    """What is served cannot do this, though its signature says so. An operator must act."""


class Unimplemented(HeedError):
    """Part of the protocol, and not of this server. The message says what to do instead."""


class DeviceError(HeedError):
    """The execution provider that was asked for cannot be used."""


class StartError(HeedError):
    """The server cannot start as it was told to."""


STATUS = {
    InvalidArgument: StatusCode.INVALID_ARGUMENT,
    NotFound: StatusCode.NOT_FOUND,
    Exhausted: StatusCode.RESOURCE_EXHAUSTED,
    DeadlineExceeded: StatusCode.DEADLINE_EXCEEDED,
    Unavailable: StatusCode.UNAVAILABLE,
    FailedPrecondition: StatusCode.FAILED_PRECONDITION,
    Unimplemented: StatusCode.UNIMPLEMENTED,
}


def status_of(error: Exception) -> StatusCode:
    """The code of the nearest class in the table; INTERNAL for what nobody foresaw."""
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), StatusCode.INTERNAL)


def reason_of(error: Exception) -> str:
    """Why a request was refused, in a word or two: its own reason, or else the status. One of `REASONS`."""
    return (isinstance(error, HeedError) and error.reason) or status_of(error).name.lower()


def reference_of(error: Exception) -> str:
    """The id by which the log tells of an error that nobody foresaw: each has one."""
    reference: str = error.__dict__.setdefault("heed_reference", uuid.uuid4().hex[:12])
    return reference


REASONS = (*get_args(Reason), *(status.name.lower() for status in (*STATUS.values(), StatusCode.INTERNAL)))
