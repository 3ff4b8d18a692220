"""OpenTelemetry: a span for each request, in the trace of its caller, and below it one for each stage.

A span is made when its request has ended, so that nothing of this stands between a caller and the answer. Spans carry
names, numbers and statuses; never a payload, and no messages, because those may quote one.

The extra `otel` has the packages, and this module is imported only where traces are enabled. The contributed package
opentelemetry-instrumentation-grpc does not fit: it takes handlers that write to their streams for generators, and knows
no requests on a stream.
"""

import os
import time
from collections.abc import Mapping
from importlib.metadata import version

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import OTEL_EXPORTER_OTLP_PROTOCOL, OTEL_EXPORTER_OTLP_TRACES_PROTOCOL
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode

from heed.server.errors import StartError
from heed.server.telemetry.request_trace import RequestTrace

# The codes that are a server's own failures, by the semantic conventions for gRPC.
FAILURES = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}


def _check_protocol() -> None:
    for name in (OTEL_EXPORTER_OTLP_TRACES_PROTOCOL, OTEL_EXPORTER_OTLP_PROTOCOL):
        if os.environ.get(name, "grpc") != "grpc":
            raise StartError(f"{name} is {os.environ[name]!r}, and traces go by grpc only; change it or leave it out")


def _resource() -> Resource:
    """Who speaks: what the environment says, and heed where it says nothing."""
    named = Resource.create()
    if str(named.attributes[SERVICE_NAME]).startswith("unknown_service"):
        named = named.merge(Resource({SERVICE_NAME: "heed"}))
    return Resource({SERVICE_VERSION: version("heed-serve")}).merge(named)


class Tracing:
    """Sends spans to a collector, in the background. The standard variables OTEL_... say where to, and how many."""

    def __init__(self) -> None:
        """
        Raises:
            StartError: the environment asks for what there is not.
        """
        _check_protocol()
        self._provider = TracerProvider(resource=_resource())
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("heed", version("heed-serve"))

    def request_ended(self, request: RequestTrace) -> None:
        """A request came to its end."""
        since_epoch = time.time_ns() - time.monotonic_ns()

        def moment(seconds: float) -> int:
            return since_epoch + int(seconds * 1e9)

        method = f"{request.call.service}/{request.call.method}"
        parent = propagate.extract(request.call.metadata)
        span = self._tracer.start_span(
            method, parent, SpanKind.SERVER, _attributes(method, request), start_time=moment(request.arrived)
        )
        if span.is_recording():
            request.trace_id = trace.format_trace_id(span.get_span_context().trace_id)
            if request.code in FAILURES:
                span.set_status(Status(StatusCode.ERROR))
            inside = trace.set_span_in_context(span, parent)
            for stage in request.stages:
                self._add_stage(stage.name, inside, moment(stage.begin), moment(stage.end))
        span.end(moment(request.ended))

    def _add_stage(self, name: str, inside: Context, begin: int, end: int) -> None:
        self._tracer.start_span(name, inside, start_time=begin).end(end)

    def close(self) -> None:
        """Sends what is left. Blocking, for some seconds if the collector does not answer."""
        self._provider.shutdown()


def _attributes(method: str, request: RequestTrace) -> Mapping[str, str | int]:
    """By the semantic conventions for gRPC servers, and heed's own."""
    address, _, port = request.call.peer.rpartition(":")
    attributes: dict[str, str | int] = {
        "rpc.system.name": "grpc",
        "rpc.method": method,
        "rpc.response.status_code": request.code,
        "network.peer.address": address.strip("[]") or port,
        "heed.rows": request.rows,
        "heed.tokens": request.tokens,
    }
    if port.isdigit():
        attributes["network.peer.port"] = int(port)
    if request.code in FAILURES:
        attributes["error.type"] = request.code
    if request.model:
        attributes |= {"heed.model.name": request.model, "heed.model.version": request.version}
    if request.reason:
        attributes["heed.reason"] = request.reason
    return attributes
