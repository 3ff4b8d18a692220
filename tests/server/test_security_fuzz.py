"""What no client should send: bytes that are no message, damaged requests, names made to be taken for something else.

Whatever comes, the server lives, says whose mistake it is, and answers others with the same bits.
"""

import re
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import grpc
import pytest
from google.protobuf.message import DecodeError
from grpc import StatusCode
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from heed.protos import heed_pb2, tei_pb2
from heed.protos import open_inference_pb2 as pb
from heed.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from tests.server import http2
from tests.server.support import ids_request, refusal, text_request
from tests.server.test_bad_input import mutated_requests
from tests.support import Running

NEVER = {StatusCode.INTERNAL, StatusCode.UNKNOWN}
NO_MESSAGE = b"\xff\xff"
SECONDS = 30


@pytest.fixture(scope="module")
def channel(tiny_server: Running) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(tiny_server.address, [("grpc.max_send_message_length", -1)]) as opened:
        yield opened


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> GRPCInferenceServiceStub:
    return GRPCInferenceServiceStub(channel)


@pytest.fixture(scope="module", autouse=True)
def unharmed(tiny_server: Running, stub: GRPCInferenceServiceStub) -> Iterator[None]:
    """The server answers as before when all tests here are done, and has nothing to say of them."""
    request = ids_request([[2, 5, 9, 3], [7, 7, 3, 3]])
    before = list(stub.ModelInfer(request, timeout=SECONDS).raw_output_contents)
    lines = len(tiny_server.log.read_text().splitlines())
    yield
    assert tiny_server.process.poll() is None
    assert list(stub.ModelInfer(request, timeout=SECONDS).raw_output_contents) == before
    assert tiny_server.log.read_text().splitlines()[lines:] == []


# All that end by themselves.
METHODS = [
    f"/{service.full_name}/{method.name}"
    for file in (
        pb.DESCRIPTOR,
        heed_pb2.DESCRIPTOR,
        tei_pb2.DESCRIPTOR,
        health_pb2.DESCRIPTOR,
        reflection_pb2.DESCRIPTOR,
    )
    for service in file.services_by_name.values()
    for method in service.methods
    if method.name != "Watch"
]


def send(channel: grpc.Channel, method: str, messages: list[bytes]) -> tuple[StatusCode, str, list[bytes]]:
    """Status, message and answers. Any call can be made as that of a stream."""
    stub: Any = channel.stream_stream(method)
    call = stub(iter(messages), timeout=SECONDS)
    answers: list[bytes] = []
    try:
        answers.extend(call)
    except grpc.RpcError as error:
        return error.code(), error.details() or "", answers
    return StatusCode.OK, "", answers


@settings(max_examples=800, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    method=st.sampled_from(METHODS),
    messages=st.lists(st.one_of(st.binary(max_size=64), mutated_requests()), min_size=1, max_size=3),
)
def test_bytes_and_damaged_requests_are_answered_or_refused_by_every_method(
    channel: grpc.Channel, method: str, messages: list[bytes]
) -> None:
    code, message, answers = send(channel, method, messages)
    assert code not in NEVER, (method, message)
    if method.endswith("ModelStreamInfer"):
        for answer in map(pb.ModelStreamInferResponse.FromString, answers):
            assert answer.infer_response.parameters["status"].string_param not in ("INTERNAL", "UNKNOWN")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    requests=st.lists(mutated_requests(), min_size=1, max_size=5),
    cancelled=st.lists(st.sampled_from(["", "1", "none"]), max_size=2),
)
def test_damaged_requests_that_travel_together_are_answered_or_refused(
    channel: grpc.Channel, requests: list[bytes], cancelled: list[str]
) -> None:
    """As one message: field 1 has requests, field 2 ids. What cannot be read makes the whole of it no message."""
    message = heed_pb2.Requests(cancelled=cancelled).SerializeToString()
    for request in requests:
        with suppress(DecodeError):
            message += heed_pb2.Requests(requests=[pb.ModelInferRequest.FromString(request)]).SerializeToString()
    code, said, answers = send(channel, "/heed.v1.Inference/InferMany", [message])
    assert code not in NEVER, said
    for answer in (each for raw in answers for each in heed_pb2.Answers.FromString(raw).answers):
        assert answer.infer_response.parameters["status"].string_param not in ("INTERNAL", "UNKNOWN")


def test_bytes_that_are_no_message_are_the_callers_mistake(channel: grpc.Channel) -> None:
    assert len(METHODS) > 20
    for method in [*METHODS, "/grpc.health.v1.Health/Watch"]:
        code, message, _ = send(channel, method, [NO_MESSAGE])
        if method.endswith("SparseStream"):  # which nobody reads
            continue
        assert code is StatusCode.INVALID_ARGUMENT, (method, message)
        if method.endswith("RerankStream"):  # which wants a text at least
            continue
        assert re.fullmatch(r"(the message|message 0 of the stream) is no \w*Requests? in protobuf's encoding", message)


def test_a_stream_answers_what_came_before_bytes_that_are_no_message(channel: grpc.Channel) -> None:
    good = ids_request([[2, 3]]).SerializeToString()
    method = "/inference.GRPCInferenceService/ModelStreamInfer"
    code, message, answers = send(channel, method, [good, good, NO_MESSAGE, good])
    assert code is StatusCode.INVALID_ARGUMENT
    assert message == "message 2 of the stream is no ModelInferRequest in protobuf's encoding"
    assert len(answers) == 2
    assert all(not pb.ModelStreamInferResponse.FromString(answer).error_message for answer in answers)


NAMES = {
    "path": "../../../etc/passwd",
    "absolute_path": "/etc/passwd",
    "format": "%s%n{0.__class__}{request}",
    "lines": "tiny\nERROR heed.services everything is lost",
    "terminal": "\x1b[2J\x1b]0;owned\x07",
    "nul": "tiny\0",
    "other_direction": "\u202etxt.exe",
    "markup": "[red]tiny[/] <script>",
    "label": 'x",code="OK"} 1\nheed_lies{a="',
    "ten_megabytes": "../" * 3_500_000,
}


@pytest.mark.parametrize("name", [pytest.param(name, id=kind) for kind, name in NAMES.items()])
def test_a_name_is_only_compared_and_quoted_in_one_line(
    tiny_server: Running, stub: GRPCInferenceServiceStub, name: str
) -> None:
    renamed = ids_request([[2, 3]])
    renamed.inputs[0].name = name
    with_output = ids_request([[2, 3]])
    with_output.outputs.add(name=name)
    with_datatype = ids_request([[2, 3]])
    with_datatype.inputs[0].datatype = name
    with_version = ids_request([[2, 3]])
    with_version.model_version = name
    expected = {StatusCode.NOT_FOUND: [ids_request([[2, 3]], model=name), with_version],
                StatusCode.INVALID_ARGUMENT: [renamed, with_output, with_datatype]}  # fmt: skip
    for code, requests in expected.items():
        for request in requests:
            found, message = refusal(stub, request)
            assert found is code
            assert message.isprintable()
            assert len(message) < 6000
    assert stub.ModelInfer(text_request(name[:30]), timeout=SECONDS)  # as a text it may be anything
    port = re.search(r"metrics\s+127\.0\.0\.1:(\d+)", tiny_server.log.read_text())
    assert port
    with urllib.request.urlopen(f"http://127.0.0.1:{port[1]}/metrics", timeout=SECONDS) as page:
        labels = page.read().decode()
    assert "heed_" in labels
    assert name[:100] not in labels
    assert "heed_lies" not in labels


def test_sizes_that_take_long_to_multiply_are_refused_first(stub: GRPCInferenceServiceStub) -> None:
    request = ids_request([[2, 3]])
    request.inputs[0].ClearField("shape")
    request.inputs[0].shape.extend([2**62] * 1_000_000)
    code, message = refusal(stub, request)
    assert code is StatusCode.INVALID_ARGUMENT
    assert "too many dimensions: 1000000" in message


def test_millions_of_empty_texts_are_refused_unread(stub: GRPCInferenceServiceStub) -> None:
    request = pb.ModelInferRequest(model_name="tiny", raw_input_contents=[bytes(4 * 10**7)])
    request.inputs.add(name="text", datatype="BYTES", shape=[2])
    assert "has more elements than its shape says: 2" in refusal(stub, request)[1]
    request.inputs[0].shape[0] = 10**7
    assert "at most 1024 rows (--max-batch)" in refusal(stub, request)[1]


def test_an_answer_that_its_own_id_makes_too_large_is_no_internal_error(stub: GRPCInferenceServiceStub) -> None:
    request = ids_request([[5] * 40] * 1000)
    request.id = "x" * (2**26 - 10**6)
    code, message = refusal(stub, request)
    assert code not in NEVER, message


def test_the_health_of_an_unknown_service_is_not_found(channel: grpc.Channel) -> None:
    wire = health_pb2.HealthCheckRequest(service="../\n").SerializeToString()
    code, message, _ = send(channel, "/grpc.health.v1.Health/Check", [wire])
    assert code is StatusCode.NOT_FOUND
    assert message.startswith("no such service; there are heed.v1.Inference, inference.GRPCInferenceService, ")


def test_metadata_that_is_not_utf8_is_not_in_the_log(tiny_server: Running) -> None:
    """A token of somebody whose terminal writes latin-1."""
    secret = b"Bearer my-secret-t\xf6ken-0123456789"
    fields = http2.call_fields(b"/inference.GRPCInferenceService/ServerLive") | {b"authorization": secret}
    with http2.connected(tiny_server.address) as connection:
        connection.send(http2.PREFACE, http2.settings(), http2.raw_headers(1, fields.items()))
        connection.send(http2.message(1, b"", end=True))
        assert connection.next(http2.DATA).payload.endswith(b"\x08\x01")  # it is live
    assert "my-secret" not in tiny_server.log.read_text()
