"""The error family, and the one table that maps it to gRPC status codes."""

from grpc import StatusCode


class HeedError(Exception):
    """Something a caller or an operator can act on; the message is theirs to read."""


class InvalidArgument(HeedError):
    """The request itself is wrong, whatever the server's state. Sending it again will not help."""


class NotFound(HeedError):
    """No such model or version."""


class Exhausted(HeedError):
    """More is asked than can be done now. Later it may not be."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        """`retry_after`: seconds until another try is worth it; infinity if none is; None if nobody knows."""
        super().__init__(message)
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
