"""Follows each request from its arrival to its end, and tells of it once: to the metrics, the log, the traces.

Whichever door a request comes through says the same few things of it, in the order in which they happen:

    with observers.record(call, request.id) as record, registry.use(name) as serving:
        record.of(serving.model, serving.statistics.ended)
        record.prepared(prepared)  # read, checked, tokenized
        record.answered(answered)  # computed
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal
from urllib.parse import unquote

import grpc

from heed.server.engine.model import Model
from heed.server.errors import HeedError, reason_of, reference_of, status_of
from heed.server.requests.preprocess import Request
from heed.server.scheduling.scheduler import RequestResult

Stage = Literal["prepare", "queue", "compute", "encode"]


@dataclass(frozen=True)
class Call:
    """What requests come through: a unary call for one of them, a stream for many."""

    service: str  # inference.GRPCInferenceService
    method: str  # ModelInfer
    context: grpc.aio.ServicerContext[Any, Any]

    @property
    def peer(self) -> str:
        """The caller's address and port; a proxy's, where there is one."""
        kind, _, address = unquote(self.context.peer()).partition(":")  # ipv6:%5B::1%5D:50000
        return address if kind in ("ipv4", "ipv6") else kind

    @property
    def metadata(self) -> dict[str, str]:
        """What came with the call, but for what is binary."""
        pairs = self.context.invocation_metadata() or ()
        return {key: value for key, value in pairs if isinstance(value, str)}


class RequestTrace:
    """One request. Times are on time.monotonic's clock, in seconds."""

    def __init__(self, call: Call, id: str, observers: "Observers") -> None:
        """`id` is the caller's own; empty if there is none."""
        self.call = call
        self.id = id
        self.arrived = time.monotonic()
        self.ended = self._prepared = self._answered = 0.0  # not yet
        self._compute_seconds = 0.0
        self.model = self.version = ""  # those that are served: callers shall not invent names
        self.rows = self.tokens = 0
        self.due = math.inf  # from when on a caller who leaves has run out of time
        self.code, self.reason = "OK", ""  # the reason is empty for what was answered, and for who left
        self.reference = ""  # of an internal error
        self.trace = ""  # its id, if it is traced
        self._observers = observers
        self._also: Listener | None = None

    def of(self, model: Model, also: "Listener") -> None:
        """There is such a model, and it is ready. `also` is told before all others."""
        self.model, self.version = model.manifest.name, str(model.manifest.version)
        self._also = also

    def prepared(self, request: Request) -> None:
        """It is read and checked, and its texts are tokens."""
        self._prepared = time.monotonic()
        self.rows, self.tokens = len(request.sequences), request.tokens

    def answered(self, answered: RequestResult) -> None:
        """All its rows are computed."""
        self._answered = time.monotonic()
        self._compute_seconds = answered.compute_seconds

    @property
    def seconds(self) -> float:
        """From its arrival to its end."""
        return self.ended - self.arrived

    def stages(self) -> Iterator[tuple[Stage, float, float]]:
        """Those that it came through: name, beginning and end. One begins where the one before it ends."""
        if self._prepared:
            yield "prepare", self.arrived, self._prepared
        if self._answered:
            computing = self._answered - self._compute_seconds  # the first row of many
            yield "queue", self._prepared, computing
            yield "compute", computing, self._answered
            yield "encode", self._answered, self.ended

    def __enter__(self) -> "RequestTrace":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.ended = time.monotonic()
        if isinstance(error, Exception):
            self.code, self.reason = status_of(error).name, reason_of(error)
            if not isinstance(error, HeedError):
                self.reference = reference_of(error)
        elif isinstance(error, asyncio.CancelledError):
            # gRPC cancels what a caller has left, and what it waits for no longer because the time is up.
            late = self.call.context.time_remaining() == 0 or self.ended >= self.due
            self.code = "DEADLINE_EXCEEDED" if late else "CANCELLED"
        if self._also:
            self._also(self)
        self._observers.ended(self)


Listener = Callable[[RequestTrace], None]


class Observers:
    """Who is told of each request when it ends."""

    def __init__(self, *listeners: Listener) -> None:
        """They are told in this order."""
        self._listeners = listeners
        self.in_flight = 0  # requests that have come and not come to their end

    def record(self, call: Call, id: str = "") -> RequestTrace:
        """A request has come; the `with` ends when it is answered or not to be answered.

        Args:
            id: the caller's own, if there is one.
        """
        self.in_flight += 1
        return RequestTrace(call, id, self)

    def ended(self, record: RequestTrace) -> None:
        self.in_flight -= 1
        for tell in self._listeners:
            tell(record)
