"""Follows each request from its arrival to its end, and reports it once: to the metrics, the log and the traces.

Every API reports the same few things, in the order in which they happen:

    with observers.trace(call, request.id) as trace:
        trace.model_found(name, version, statistics.request_ended)
        trace.rows_prepared(rows, tokens)  # read, validated, tokenized
        trace.rows_computed(queue_seconds, compute_seconds)
"""

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote

import grpc

from heed.server.errors import HeedError, reason_of, reference_of, status_of


@dataclass(frozen=True)
class Call:
    """The RPC that requests come through: a unary call for one of them, a stream for many."""

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
        """The call's metadata, without binary values."""
        pairs = self.context.invocation_metadata() or ()
        return {key: value for key, value in pairs if isinstance(value, str)}


class Stage(NamedTuple):
    """A part of a request's time, on time.monotonic's clock. A stage begins where the one before it ends."""

    name: Literal["prepare", "queue", "compute", "encode"]
    begin: float
    end: float


class RequestTrace:
    """One request. Times are on time.monotonic's clock, in seconds."""

    def __init__(self, call: Call, id: str, observers: "Observers") -> None:
        """`id` is the caller's own; empty if there is none."""
        self.call = call
        self.id = id
        self.arrived = time.monotonic()
        self.prepared = self.computed = self.ended = 0.0  # not yet
        self.queue_seconds = self.compute_seconds = 0.0
        self.model = self.version = ""  # of a model that is served: callers cannot invent names
        self.rows = self.tokens = 0
        self.due = math.inf  # a caller who leaves after this time has run out of time
        self.code, self.reason = "OK", ""  # no reason for what was answered, and for callers who left
        self.reference = ""  # of an internal error
        self.trace_id = ""  # OpenTelemetry's, if the request is traced
        self.stages: list[Stage] = []  # known at the end
        self._observers = observers
        self._first_listener: Listener | None = None

    def model_found(self, name: str, version: str, listener: "Listener") -> None:
        """There is such a model, and it is ready. `listener` is called before all others."""
        self.model, self.version = name, version
        self._first_listener = listener

    def rows_prepared(self, rows: int, tokens: int) -> None:
        """The request is read and validated, and its texts are tokenized."""
        self.prepared = time.monotonic()
        self.rows, self.tokens = rows, tokens

    def rows_computed(self, queue_seconds: float, compute_seconds: float) -> None:
        """The answers to all rows are there."""
        self.computed = time.monotonic()
        self.queue_seconds, self.compute_seconds = queue_seconds, compute_seconds

    @property
    def seconds(self) -> float:
        """From the arrival to the end."""
        return self.ended - self.arrived

    def _find_stages(self) -> None:
        if self.prepared:
            self.stages.append(Stage("prepare", self.arrived, self.prepared))
        if self.computed:
            started = self.computed - self.compute_seconds  # of the first row
            self.stages += [
                Stage("queue", self.prepared, started),
                Stage("compute", started, self.computed),
                Stage("encode", self.computed, self.ended),
            ]

    def _set_outcome(self, error: BaseException) -> None:
        if isinstance(error, Exception):
            self.code, self.reason = status_of(error), reason_of(error)
            if not isinstance(error, HeedError):
                self.reference = reference_of(error)
        elif isinstance(error, asyncio.CancelledError):
            # gRPC cancels both a call whose caller has left and one whose deadline has passed.
            late = self.call.context.time_remaining() == 0 or self.ended >= self.due
            self.code = "DEADLINE_EXCEEDED" if late else "CANCELLED"

    def __enter__(self) -> "RequestTrace":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.ended = time.monotonic()
        if error is not None:
            self._set_outcome(error)
        self._find_stages()
        if self._first_listener:
            self._first_listener(self)
        self._observers.request_ended(self)


Listener = Callable[[RequestTrace], None]


class Observers:
    """Those who are called when a request ends."""

    def __init__(self, *listeners: Listener) -> None:
        """They are called in this order."""
        self._listeners = listeners
        self.in_flight = 0  # requests that have arrived and not ended

    def trace(self, call: Call, id: str = "") -> RequestTrace:
        """A request has arrived; the `with` ends when it is answered or refused.

        Args:
            id: the caller's own, if there is one.
        """
        self.in_flight += 1
        return RequestTrace(call, id, self)

    def request_ended(self, trace: RequestTrace) -> None:
        self.in_flight -= 1
        for listener in self._listeners:
            listener(trace)
