"""Spans as a collector gets them, in the traces of callers."""

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from heed.protos import tei_pb2
from heed.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from heed.protos.tei_pb2_grpc import EmbedStub
from tests.server.support import ids_request, text_request
from tests.support import Running, free_port, start_server, stop, wait_until_serving

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRET = "xylophone"
INFER, STREAM = "inference.GRPCInferenceService/ModelInfer", "inference.GRPCInferenceService/ModelStreamInfer"


def caller(trace: str = TRACE, sampled: bool = True) -> list[tuple[str, str]]:
    """What a caller sends who traces: https://www.w3.org/TR/trace-context/."""
    return [("traceparent", f"00-{trace}-{PARENT}-{int(sampled):02}")]


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resources: list[dict[str, str]] = []
        self.raw = b""

    def Export(self, request: Any, context: Any) -> Any:
        self.raw += request.SerializeToString()
        for of_resource in request.resource_spans:
            self.resources.append({one.key: one.value.string_value for one in of_resource.resource.attributes})
            for of_scope in of_resource.scope_spans:
                self.spans += of_scope.spans
        return trace_service_pb2.ExportTraceServiceResponse()

    def of(self, trace: str, count: int) -> list[Span]:
        """The spans of a trace, once there are so many; in the order of their beginnings."""
        until = time.monotonic() + 60
        while len(found := [span for span in self.spans if span.trace_id.hex() == trace]) < count:
            assert time.monotonic() < until, [span.name for span in self.spans]
            time.sleep(0.02)
        assert len(found) == count, [span.name for span in found]
        return sorted(found, key=lambda span: (span.start_time_unix_nano, -span.end_time_unix_nano))


@pytest.fixture(scope="module")
def collector() -> Iterator[tuple[Collector, str]]:
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield collector, f"http://127.0.0.1:{port}"
    server.stop(None)


def tracing(endpoint: str, **more: str) -> dict[str, str]:
    return {"HEED_TRACES": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": "50"} | more


@pytest.fixture(scope="module")
def server(
    tiny_bundle: Path, collector: tuple[Collector, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    log = tmp_path_factory.mktemp("tracing") / "log"
    variables = tracing(collector[1], OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=here")
    flags = ("--linger-seconds", "0", "--recheck-seconds", "0", "--log-requests", "--log-format", "json")
    running = start_server(tiny_bundle, log, *flags, env=variables)
    try:
        wait_until_serving(running)
        yield running
        assert stop(running) == 0
    finally:
        running.process.kill()
        running.process.wait()


@pytest.fixture
def channel(server: Running) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as channel:
        yield channel


def attributes(span: Span) -> dict[str, object]:
    return {one.key: getattr(one.value, str(one.value.WhichOneof("value"))) for one in span.attributes}


def test_a_call_is_a_span_of_its_callers_trace_with_its_stages_below(
    collector: tuple[Collector, str], server: Running, channel: grpc.Channel
) -> None:
    before = time.time_ns()
    GRPCInferenceServiceStub(channel).ModelInfer(text_request(SECRET, SECRET), timeout=60, metadata=caller())
    after = time.time_ns()
    span, *stages = collector[0].of(TRACE, 5)
    assert (span.name, span.kind, span.parent_span_id.hex()) == (INFER, Span.SPAN_KIND_SERVER, PARENT)
    told = attributes(span)
    assert {name: told[name] for name in told if name.startswith(("rpc.", "heed."))} == {
        "rpc.system.name": "grpc",
        "rpc.method": INFER,
        "rpc.response.status_code": "OK",
        "heed.model.name": "tiny",
        "heed.model.version": "1",
        "heed.rows": 2,
        "heed.tokens": told["heed.tokens"],
    }
    assert told["network.peer.address"] == "127.0.0.1"
    assert before <= span.start_time_unix_nano < span.end_time_unix_nano <= after
    assert [stage.name for stage in stages] == ["prepare", "queue", "compute", "encode"]
    assert {stage.parent_span_id for stage in stages} == {span.span_id}
    edges = [stages[0].start_time_unix_nano, *(stage.end_time_unix_nano for stage in stages)]
    assert edges == sorted(edges)
    assert (edges[0], edges[-1]) == (span.start_time_unix_nano, span.end_time_unix_nano)
    assert f'"trace_id": "{TRACE}"' in server.log.read_text()
    (resource, *_) = collector[0].resources
    assert (resource["service.name"], resource["deployment.environment.name"]) == ("heed", "here")
    assert SECRET.encode() not in collector[0].raw


def test_each_request_on_a_stream_is_a_span(collector: tuple[Collector, str], channel: grpc.Channel) -> None:
    trace = "1" * 32
    requests = iter([ids_request([[2, 3]]), ids_request([[-1]])])
    list(GRPCInferenceServiceStub(channel).ModelStreamInfer(requests, timeout=60, metadata=caller(trace)))
    spans = [span for span in collector[0].of(trace, 6) if span.kind == Span.SPAN_KIND_SERVER]
    assert [(span.name, span.parent_span_id.hex()) for span in spans] == [(STREAM, PARENT)] * 2
    codes = {str(attributes(span)["rpc.response.status_code"]): span for span in spans}
    assert set(codes) == {"OK", "INVALID_ARGUMENT"}
    wrong = codes["INVALID_ARGUMENT"]
    assert wrong.status.code == Status.STATUS_CODE_UNSET  # the caller's mistake, not the server's
    assert attributes(wrong)["heed.reason"] == "invalid_argument"


def test_the_text_door_is_traced_and_a_call_without_a_trace_begins_one(
    collector: tuple[Collector, str], channel: grpc.Channel
) -> None:
    EmbedStub(channel).Embed(tei_pb2.EmbedRequest(inputs=SECRET), timeout=60)
    until = time.monotonic() + 60
    while not (found := [span for span in collector[0].spans if span.name == "tei.v1.Embed/Embed"]):
        assert time.monotonic() < until
        time.sleep(0.02)
    assert found[0].parent_span_id == b""
    assert len(collector[0].of(found[0].trace_id.hex(), 5)) == 5
    assert SECRET.encode() not in collector[0].raw


def test_what_its_caller_does_not_sample_is_not_sent(collector: tuple[Collector, str], channel: grpc.Channel) -> None:
    stub = GRPCInferenceServiceStub(channel)
    stub.ModelInfer(ids_request([[2]]), timeout=60, metadata=caller("2" * 32, sampled=False))
    stub.ModelInfer(ids_request([[2]]), timeout=60, metadata=caller("3" * 32))
    collector[0].of("3" * 32, 5)
    assert not [span for span in collector[0].spans if span.trace_id.hex() == "2" * 32]


def test_a_malformed_parent_harms_nobody(channel: grpc.Channel) -> None:
    stub = GRPCInferenceServiceStub(channel)
    for parent in ("00-zz-zz-01", "", "x" * 4000, "00-" + "0" * 32 + "-" + "0" * 16 + "-01"):
        stub.ModelInfer(ids_request([[2]]), timeout=60, metadata=[("traceparent", parent), ("tracestate", "=,=")])


def test_without_a_collector_requests_are_answered_and_the_end_is_clean(tiny_bundle: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    server = start_server(tiny_bundle, log, "--linger-seconds", "0", env=tracing(f"http://127.0.0.1:{free_port()}"))
    try:
        wait_until_serving(server)
        with grpc.insecure_channel(server.address) as channel:
            GRPCInferenceServiceStub(channel).ModelInfer(ids_request([[2, 3]]), timeout=60)
        assert stop(server) == 0
    finally:
        server.process.kill()
        server.process.wait()
    assert "Traceback" not in log.read_text()
    assert "exporting traces" in log.read_text()


def serve_without(package: str, *flags: str, bundle: Path) -> subprocess.CompletedProcess[str]:
    """`heed serve`, where a package cannot be imported."""
    program = f"import sys; sys.modules[{package!r}] = None; sys.argv = ['heed', 'serve', *{[str(bundle), *flags]!r}]\n"
    program += "from heed.__main__ import main\nmain()"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)


def test_without_the_extra_the_message_says_how_to_get_it(tiny_bundle: Path) -> None:
    done = serve_without("opentelemetry", "--traces", "--port", "0", "--metrics-port", "-1", bundle=tiny_bundle)
    assert done.returncode == 2
    said = " ".join(done.stderr.split())
    assert "error: --traces: opentelemetry is not installed" in said
    assert "pip install 'heed-serve[otel]'" in said
    assert "Traceback" not in said


def test_a_server_that_does_not_trace_needs_none_of_it(tiny_bundle: Path) -> None:
    done = serve_without("opentelemetry", "--check", "--port", "0", "--metrics-port", "-1", bundle=tiny_bundle)
    assert done.returncode == 0, done.stderr


def test_another_protocol_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    variables = tracing("http://127.0.0.1:1", OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf")
    server = start_server(tiny_bundle, tmp_path / "log", env=variables)
    assert server.process.wait(60) == 2
    said = " ".join((tmp_path / "log").read_text().split())
    assert "error: OTEL_EXPORTER_OTLP_PROTOCOL is 'http/protobuf', and traces go by grpc only" in said
