"""The error family, and the names of the gRPC status codes that its classes stand for."""

import uuid
from typing import Literal, get_args

# What a status code alone does not say. Callers get it as trailing metadata, and metrics have a series for each.
Reason = Literal[
    "queue_full",
    "no_time",
    "loading",
    "draining",
    "drifted",
    "too_many_requests",
    "too_large",
    "unauthenticated",
    "permission_denied",
    "not_finite",
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
    """There is no capacity for the request now. Later there may be."""

    def __init__(self, message: str, retry_after: float | None = None, reason: Reason | None = None) -> None:
        """`retry_after`: seconds until another try is worth it; infinity if none is; None if unknown."""
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


class NotFinite(HeedError):
    """The model's own arithmetic overflows on this input, so there is no number to answer with."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "not_finite")


class DeviceError(HeedError):
    """The execution provider that was requested cannot be used."""


class StartError(HeedError):
    """The server cannot start with these settings."""


class ServerFailure(HeedError):
    """The server can no longer serve. The process ends, for a supervisor to start it again."""


INTERNAL = "INTERNAL"
STATUS: dict[type, str] = {
    InvalidArgument: "INVALID_ARGUMENT",
    NotFound: "NOT_FOUND",
    Exhausted: "RESOURCE_EXHAUSTED",
    DeadlineExceeded: "DEADLINE_EXCEEDED",
    Unavailable: "UNAVAILABLE",
    FailedPrecondition: "FAILED_PRECONDITION",
    Unimplemented: "UNIMPLEMENTED",
    NotFinite: INTERNAL,
}


def status_of(error: Exception) -> str:
    """The name of the status code of the nearest class in the table; INTERNAL for an unforeseen error."""
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), INTERNAL)


def reason_of(error: Exception) -> str:
    """Why a request was refused, in a word or two: its own reason, or else the status. One of `REASONS`."""
    if isinstance(error.__cause__, HeedError) and not isinstance(error, HeedError):
        error = error.__cause__  # of one request of a stream
    return (isinstance(error, HeedError) and error.reason) or status_of(error).lower()


def reference_of(error: Exception) -> str:
    """The id under which the log has the details of an unforeseen error."""
    reference: str = error.__dict__.setdefault("heed_reference", uuid.uuid4().hex[:12])
    return reference


REASONS = (*get_args(Reason), *(status.lower() for status in STATUS.values()))
