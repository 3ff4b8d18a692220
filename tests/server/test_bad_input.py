"""Requests that cannot be answered: each is refused with the right status and told what is wrong, and nobody else
notices.

The model is `tiny`: 100 token ids, 2 token types, 40 tokens at most.
"""

import math
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import DecodeError
from grpc import StatusCode
from hypothesis import given, settings
from hypothesis import strategies as st

from heed.bundle import read_manifest
from heed.protos import open_inference_pb2 as pb
from heed.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from heed.server.errors import InvalidArgument
from heed.server.protocols.open_inference.headers import HeaderCache
from heed.server.requests.preprocess import Preprocessor, Request
from heed.server.requests.tokenizer import TextTokenizer
from tests.server.support import add_tensor, ids_request, refusal, text_request
from tests.support import Running, run_server

Build = Callable[[], pb.ModelInferRequest]


@pytest.fixture(scope="module")
def stub(tiny_server: Running) -> Iterator[GRPCInferenceServiceStub]:
    with grpc.insecure_channel(tiny_server.address) as channel:
        yield GRPCInferenceServiceStub(channel)


def raw_request(raw: bytes, shape: list[int], name: str = "input_ids", datatype: str = "INT64") -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="tiny", raw_input_contents=[raw])
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    return request


def shaped_request(shape: list[int], count: int) -> pb.ModelInferRequest:
    """Typed contents that may not fill the shape."""
    request = pb.ModelInferRequest(model_name="tiny")
    tensor = request.inputs.add(name="input_ids", datatype="INT64", shape=shape)
    tensor.contents.int64_contents.extend([5] * count)
    return request


def edited(edit: Callable[[pb.ModelInferRequest], object], base: Build = lambda: ids_request([[2, 5, 3]])) -> Build:
    """A request that is right but for one edit."""

    def build() -> pb.ModelInferRequest:
        request = base()
        edit(request)
        return request

    return build


def set_version(request: pb.ModelInferRequest) -> None:
    request.model_version = "7"


def set_name(request: pb.ModelInferRequest) -> None:
    request.inputs[0].name = "tokens"


def set_long_name(request: pb.ModelInferRequest) -> None:
    """In a status gRPC writes each byte beyond ASCII as three, and it drops a status that is too long."""
    request.inputs[0].name = "🦔" * 100_000


def set_datatype(request: pb.ModelInferRequest) -> None:
    request.inputs[0].datatype = "UINT64"


def clear_datatype(request: pb.ModelInferRequest) -> None:
    request.inputs[0].datatype = ""


def set_other_contents(request: pb.ModelInferRequest) -> None:
    request.inputs[0].contents.ClearField("int64_contents")
    request.inputs[0].contents.int_contents.extend([2, 5, 3])


def set_both_contents(request: pb.ModelInferRequest) -> None:
    request.inputs[0].contents.fp32_contents.extend([2.0, 5.0, 3.0])


def clear_contents(request: pb.ModelInferRequest) -> None:
    request.inputs[0].ClearField("contents")


def mix_raw_and_typed(request: pb.ModelInferRequest) -> None:
    add_tensor(request, "attention_mask", [[1, 1, 1]])
    request.raw_input_contents.append(np.array([2, 5, 3]).tobytes())


def set_truncate_to_text(request: pb.ModelInferRequest) -> None:
    request.parameters["truncate"].string_param = "true"


def set_timeout_to_text(request: pb.ModelInferRequest) -> None:
    request.parameters["timeout"].string_param = "soon"


def many(tag: bytes) -> Callable[[pb.ModelInferRequest], None]:
    """A hundred thousand empty values of one field."""

    def edit(request: pb.ModelInferRequest) -> None:
        request.MergeFromString(100_000 * (tag + b"\0"))

    return edit


def of_request(**parameters: Any) -> Callable[[pb.ModelInferRequest], None]:
    """Parameters, as fields of InferParameter."""

    def edit(request: pb.ModelInferRequest) -> None:
        for name, fields in parameters.items():
            request.parameters[name].CopyFrom(pb.InferParameter(**fields))

    return edit


def of_output(output: str, **parameters: int) -> Callable[[pb.ModelInferRequest], None]:
    def edit(request: pb.ModelInferRequest) -> None:
        wanted = request.outputs.add(name=output)
        for name, value in parameters.items():
            wanted.parameters[name].int64_param = value

    return edit


def in_shared_memory(request: pb.ModelInferRequest) -> None:
    request.inputs[0].parameters["shared_memory_region"].string_param = "mine"


def ask_for(*names: str) -> Callable[[pb.ModelInferRequest], None]:
    def edit(request: pb.ModelInferRequest) -> None:
        for name in names:
            request.outputs.add(name=name)

    return edit


def add(name: str, rows: list[list[int]]) -> Callable[[pb.ModelInferRequest], None]:
    return lambda request: add_tensor(request, name, rows)


BYTES_OF_3 = np.array([2, 5, 3]).tobytes()
LONG_TEXT = "fox " * 39  # 39 words and [CLS] and [SEP] are 41 tokens

# What is wrong, a request with it, and the parts of the message that say so.
BAD: list[tuple[str, Build, list[str]]] = [
    ("unknown_input", edited(set_name), ["input tokens is unknown", "input_ids, attention_mask, token_type_ids, text"]),
    ("long_unknown_input", edited(set_long_name), ["input 🦔🦔🦔", "…"]),
    ("no_input", lambda: pb.ModelInferRequest(model_name="tiny"), ["input_ids is missing", "or send text"]),
    ("input_ids_missing", edited(lambda request: request.inputs.pop(0), lambda: ids_request([[2]], [[1]])),
     ["input_ids is missing"]),
    ("input_twice", edited(add("input_ids", [[2, 5, 3]])), ["input_ids came twice"]),
    ("wrong_datatype", edited(set_datatype), ["input_ids", "must be INT64 (or INT32, ", "got UINT64"]),
    ("no_datatype", edited(clear_datatype), ["input_ids", "must be INT64", "got no datatype"]),
    ("text_as_numbers", edited(add("text", [[1]])), ["text", "must be BYTES", "got INT64"]),
    ("rank_1", lambda: shaped_request([3], 3), ["input_ids", "[any, any]", "2 dimensions", "got [3]"]),
    ("rank_3", lambda: shaped_request([1, 1, 3], 3), ["input_ids", "[any, any]", "got [1, 1, 3]"]),
    ("rank_0", lambda: shaped_request([], 1), ["input_ids", "[any, any]", "got []"]),
    ("rank_65", lambda: shaped_request([1] * 65, 1), ["input_ids has too many dimensions"]),
    ("rank_9000", lambda: shaped_request([1] * 9000, 1), ["input_ids has too many dimensions"]),
    ("shape_of_9000_sizes", lambda: shaped_request([2] * 9000, 1), ["too many dimensions: 9000"]),
    ("raw_too_short", lambda: raw_request(BYTES_OF_3[:16], [1, 3]), ["[1, 3]", "3 values", "2 came"]),
    ("raw_too_long", lambda: raw_request(BYTES_OF_3 * 2, [1, 3]), ["[1, 3]", "3 values", "6 came"]),
    ("raw_no_multiple", lambda: raw_request(BYTES_OF_3[:-1], [1, 3]), ["input_ids has 23 bytes", "multiple of 8"]),
    ("raw_empty", lambda: raw_request(b"", [1, 3]), ["[1, 3]", "3 values", "0 came"]),
    ("typed_too_few", lambda: shaped_request([1, 3], 2), ["[1, 3]", "3 values", "2 came"]),
    ("typed_too_many", lambda: shaped_request([1, 3], 4), ["[1, 3]", "3 values", "4 came"]),
    ("other_contents", edited(set_other_contents), ["input_ids", "in int_contents", "expected int64_contents"]),
    ("both_contents", edited(set_both_contents), ["input_ids", "in fp32_contents", "expected int64_contents"]),
    ("no_contents", edited(clear_contents), ["input_ids", "3 values", "0 came"]),
    ("negative_size", lambda: shaped_request([-1, 3], 3), ["input_ids", "negative size", "[-1, 3]"]),
    ("two_negative_sizes", lambda: shaped_request([-1, -3], 3), ["input_ids", "negative size", "[-1, -3]"]),
    ("huge_sizes", lambda: shaped_request([2**62, 2**62], 1), 
     ["input_ids", f"{2**124} values", "at most 1024 rows (--max-batch) of 40"]),
    ("raw_and_typed", edited(mix_raw_and_typed), ["raw_input_contents came together with contents"]),
    ("too_many_raws", edited(lambda request: request.raw_input_contents.append(b""), lambda: raw_request(b"", [1, 3])),
     ["1 inputs came with 2 raw_input_contents"]),
    ("too_few_raws", edited(lambda request: request.inputs.add(name="attention_mask", datatype="INT64", shape=[1, 3]),
                            lambda: raw_request(BYTES_OF_3, [1, 3])), ["2 inputs came with 1 raw_input_contents"]),
    ("unknown_output", edited(ask_for("logits")),
     ["output logits is unknown", "last_hidden_state, sentence_embedding"]),
    ("output_twice", edited(ask_for("sentence_embedding", "sentence_embedding")),
     ["output sentence_embedding", "twice"]),
    ("id_too_large", lambda: ids_request([[2, 5, 3], [2, 100, 3]]), ["input_ids[1, 1] is 100", "0 to 99"]),
    ("id_negative", lambda: ids_request([[2, 5, -1]]), ["input_ids[0, 2] is -1", "0 to 99"]),
    ("id_extreme", lambda: ids_request([[-(2**63), 2**63 - 1]]), ["input_ids[0, 0] is -9223372036854775808"]),
    ("id_too_large_under_the_mask", lambda: ids_request([[2, 100]], [[1, 0]]), ["input_ids[0, 1] is 100", "0 to 99"]),
    ("type_too_large", edited(add("token_type_ids", [[0, 2, 0]])), ["token_type_ids[0, 1] is 2", "0 to 1"]),
    ("type_negative", edited(add("token_type_ids", [[0, 0, -1]])), ["token_type_ids[0, 2] is -1", "0 to 1"]),
    ("too_long", lambda: ids_request([[5] * 41]), ["input_ids has 41 columns", "at most 40"]),
    ("empty_batch", lambda: shaped_request([0, 3], 0), ["input_ids is empty", "[0, 3]"]),
    ("no_columns", lambda: shaped_request([3, 0], 0), ["input_ids is empty", "[3, 0]"]),
    ("empty_and_huge", lambda: shaped_request([0, 2**63 - 1], 0), ["input_ids is empty", f"[0, {2**63 - 1}]"]),
    ("no_texts", lambda: raw_request(b"", [0], "text", "BYTES"), ["text is empty", "[0]"]),
    ("not_utf_8", lambda: raw_request(b"\1\0\0\0a\3\0\0\0a\xffb", [2], "text", "BYTES"),
     ["text[1] is not UTF-8", "byte 1"]),
    ("surrogate", lambda: raw_request(b"\3\0\0\0\xed\xa0\x80", [1], "text", "BYTES"), ["text[0] is not UTF-8"]),
    ("prefix_too_large", lambda: raw_request(b"\5\0\0\0abc", [1], "text", "BYTES"),
     ["element 0 says 5 bytes", "3 are left"]),
    ("prefix_too_small", lambda: raw_request(b"\1\0\0\0abc", [1], "text", "BYTES"),
     ["2 stray bytes after element 1"]),
    ("prefix_huge", lambda: raw_request(struct.pack("<I", 2**32 - 1) + b"abc", [1], "text", "BYTES"),
     ["element 0 says 4294967295 bytes"]),
    ("fewer_texts_than_the_shape", lambda: raw_request(b"\1\0\0\0a", [2], "text", "BYTES"), ["[2]", "1 came"]),
    ("text_and_ids", edited(add("input_ids", [[2, 3]]), lambda: text_request("a")),
     ["text came together with input_ids"]),
    ("text_too_long", lambda: text_request("a fox", LONG_TEXT), ["text[1] has 41 tokens", "at most 40", "truncate"]),
    ("mask_of_2", lambda: ids_request([[2, 5, 3]], [[1, 2, 1]]), ["attention_mask[0, 1] is 2", "0 or 1"]),
    ("mask_negative", lambda: ids_request([[2, 5, 3]], [[-1, 1, 1]]), ["attention_mask[0, 0] is -1", "0 or 1"]),
    ("row_without_a_token", lambda: ids_request([[2, 3], [2, 3]], [[1, 1], [0, 0]]), ["attention_mask", "row 1"]),
    ("mask_of_another_shape", lambda: ids_request([[2, 5, 3]], [[1, 1]]),
     ["attention_mask has shape [1, 2]", "input_ids has [1, 3]"]),
    ("types_of_another_shape", edited(add("token_type_ids", [[0], [0], [0]])),
     ["token_type_ids has shape [3, 1]", "input_ids has [1, 3]"]),
    ("truncate_no_bool", edited(set_truncate_to_text),
     ["parameter truncate must be a bool, or one of the strings left and right"]),
    ("timeout_no_integer", edited(set_timeout_to_text), ["parameter timeout must be an integer"]),
    ("timeout_negative", edited(of_request(timeout={"int64_param": -1})), ["timeout must be an integer from 0"]),
    ("unknown_parameter", edited(of_request(truncat={"bool_param": True})), ["'truncat' is unknown", "truncate, "]),
    ("sequence", edited(of_request(sequence_id={"int64_param": 3})), ["sequence_id is not taken", "remember nothing"]),
    ("input_in_shared_memory", edited(in_shared_memory),
     ["shared_memory_region of input input_ids is not taken", "tensors travel in the messages"]),
    ("output_in_shared_memory", edited(of_output("last_hidden_state", shared_memory_byte_size=8)),
     ["shared_memory_byte_size of output last_hidden_state is not taken"]),
    ("a_message_of_empty_inputs", edited(many(b"\x2a")), ["100001 inputs, 0 outputs", "at most 64 of each"]),
    ("a_message_of_empty_outputs", edited(many(b"\x32")), ["100000 outputs", "at most 64 of each"]),
    ("a_message_of_empty_values", edited(many(b"\x3a")), ["raw_input_contents came", "at most 64 of each"]),
    ("classes_of_vectors", edited(of_output("sentence_embedding", classification=2)),
     ["classification of output sentence_embedding is not taken", "it is for logits"]),
]  # fmt: skip


@pytest.mark.parametrize(("build", "parts"), [pytest.param(build, parts, id=name) for name, build, parts in BAD])
def test_a_bad_request_is_told_what_is_wrong(stub: GRPCInferenceServiceStub, build: Build, parts: list[str]) -> None:
    code, message = refusal(stub, build())
    assert code is StatusCode.INVALID_ARGUMENT, message
    for part in parts:
        assert part in message


def test_an_unknown_model_is_told_which_there_are(stub: GRPCInferenceServiceStub) -> None:
    code, message = refusal(stub, ids_request([[2]], model="big"))
    assert (code, message) == (StatusCode.NOT_FOUND, "model 'big' is not served here, only tiny")


def test_an_unknown_version_is_told_which_there_are(stub: GRPCInferenceServiceStub) -> None:
    code, message = refusal(stub, edited(set_version)())
    assert (code, message) == (StatusCode.NOT_FOUND, "version '7' of model 'tiny' is not served here, only 1")


@pytest.mark.parametrize("method", ["ModelReady", "ModelMetadata"])
def test_questions_about_an_unknown_model_are_not_found(stub: GRPCInferenceServiceStub, method: str) -> None:
    request = getattr(pb, f"{method}Request")(name="big")
    with pytest.raises(grpc.RpcError) as refused:
        getattr(stub, method)(request, timeout=20)
    assert refused.value.code() is StatusCode.NOT_FOUND


def test_a_long_text_is_cut_when_the_caller_says_so(stub: GRPCInferenceServiceStub) -> None:
    request = text_request(LONG_TEXT)
    request.parameters["truncate"].bool_param = True
    cut = stub.ModelInfer(request, timeout=20)
    exact = stub.ModelInfer(text_request("fox " * 38), timeout=20)
    assert cut.raw_output_contents == exact.raw_output_contents


def test_truncate_does_not_cut_tensors(stub: GRPCInferenceServiceStub) -> None:
    request = ids_request([[5] * 41])
    request.parameters["truncate"].bool_param = True
    assert refusal(stub, request)[0] is StatusCode.INVALID_ARGUMENT


def test_the_longest_request_is_answered(stub: GRPCInferenceServiceStub) -> None:
    answer = stub.ModelInfer(ids_request([[99] * 40, [0] * 40]), timeout=20)
    assert [list(output.shape) for output in answer.outputs] == [[2, 40, 32], [2, 32]]


def test_a_request_that_could_never_fit_the_queue_is_invalid(tiny_bundle: Path, tmp_path: Path) -> None:
    flags = ["--max-queue-tokens", "50"]
    with run_server(tiny_bundle, tmp_path / "log", *flags) as server, grpc.insecure_channel(server.address) as channel:
        small = GRPCInferenceServiceStub(channel)
        code, message = refusal(small, ids_request([[5] * 17] * 3))
        assert code is StatusCode.INVALID_ARGUMENT
        assert "51 tokens and can never fit: the whole queue holds 50 (--max-queue-tokens)" in message
        assert len(small.ModelInfer(ids_request([[5] * 25] * 2), timeout=20).outputs) == 2


def test_good_requests_beside_bad_ones_get_the_same_bits(stub: GRPCInferenceServiceStub) -> None:
    good = [
        ids_request([[2, 5, 9, 3], [2, 3, 0, 0]], [[1, 1, 1, 1], [1, 1, 0, 0]]),
        text_request("The quick fox saw a dog.", "i"),
        ids_request([[7] * 40]),
    ]
    before = [list(stub.ModelInfer(request, timeout=20).raw_output_contents) for request in good]
    rounds: list[bool] = []
    enough = threading.Event()

    def call_until_enough() -> None:
        while not enough.is_set():
            during = [list(stub.ModelInfer(request, timeout=20).raw_output_contents) for request in good]
            rounds.append(during == before)

    caller = threading.Thread(target=call_until_enough)
    caller.start()
    try:
        for _ in range(3):
            for _, build, _ in BAD:
                refusal(stub, build())
    finally:
        enough.set()
        caller.join(20)
    assert len(rounds) > 10
    assert all(rounds)


@pytest.fixture(scope="module")
def check(tiny_bundle: Path) -> Callable[[pb.ModelInferRequest], Request]:
    """What the server does with a request before it computes anything."""
    manifest = read_manifest(tiny_bundle)
    encoder = TextTokenizer(tiny_bundle / "tokenizer.json", manifest.limits.text_length)

    preprocessor = Preprocessor(manifest, encoder)
    headers = HeaderCache(manifest, preprocessor)

    def decode_and_check(request: pb.ModelInferRequest) -> Request:
        header, raws = headers.split(request)
        return preprocessor.prepare(header.spec, header.read(request, raws), header.options.truncate)

    return decode_and_check


NAMES = st.sampled_from([*["input_ids", "text"] * 4, "attention_mask", "token_type_ids", "tokens"])
DATATYPES = st.sampled_from(["INT64", "BYTES", "FP32", "BOOL", "INT32", "int64", ""])
SIZES = st.one_of(st.integers(0, 4), st.integers(-(2**63), 2**63 - 1))
SHAPES = st.one_of(st.lists(SIZES, max_size=4), st.integers(0, 99).map(lambda rank: [1] * rank), st.just([0, 2**62]))
INTEGERS = st.one_of(st.integers(0, 2), st.integers(0, 100), st.integers(-(2**63), 2**63 - 1))


@st.composite
def right_tensors(draw: st.DrawFn) -> pb.ModelInferRequest.InferInputTensor:
    """Values that fill the shape."""
    name = draw(NAMES)
    shape = draw(st.lists(st.integers(1, 3), min_size=1, max_size=2))
    count = math.prod(shape)
    tensor = pb.ModelInferRequest.InferInputTensor(name=name, shape=shape)
    if name == "text":
        tensor.datatype = "BYTES"
        texts = st.one_of(st.binary(max_size=9), st.text(max_size=99).map(str.encode))
        tensor.contents.bytes_contents.extend(draw(st.lists(texts, min_size=count, max_size=count)))
    else:
        tensor.datatype = "INT64"
        tensor.contents.int64_contents.extend(draw(st.lists(INTEGERS, min_size=count, max_size=count)))
    return tensor


@st.composite
def wrong_tensors(draw: st.DrawFn) -> pb.ModelInferRequest.InferInputTensor:
    """Nothing agrees with anything else."""
    tensor = pb.ModelInferRequest.InferInputTensor(name=draw(NAMES), datatype=draw(DATATYPES), shape=draw(SHAPES))
    if draw(st.booleans()):
        tensor.contents.int64_contents.extend(draw(st.lists(INTEGERS, max_size=16)))
    if draw(st.booleans()):
        tensor.contents.bytes_contents.extend(draw(st.lists(st.binary(max_size=20), max_size=4)))
    if draw(st.integers(0, 9)) == 0:
        tensor.contents.fp32_contents.extend(draw(st.lists(st.floats(width=32), max_size=4)))
    return tensor


@st.composite
def any_requests(draw: st.DrawFn) -> pb.ModelInferRequest:
    either = st.one_of(right_tensors(), right_tensors(), wrong_tensors())
    request = pb.ModelInferRequest(inputs=draw(st.lists(either, min_size=draw(st.integers(0, 1)), max_size=2)))
    if draw(st.integers(0, 3)) == 0:  # raw, and about as many as there are inputs
        count = len(request.inputs) + draw(st.sampled_from([0, 0, 0, 1]))
        request.raw_input_contents.extend(draw(st.lists(st.binary(max_size=64), min_size=count, max_size=count)))
        for tensor in request.inputs:
            tensor.ClearField("contents")
    for name in draw(st.lists(st.sampled_from(["last_hidden_state", "sentence_embedding", "?"]), max_size=3)):
        request.outputs.add(name=name)
    return request


def valid_requests() -> list[pb.ModelInferRequest]:
    typed = ids_request([[2, 5, 3], [2, 3, 0]], [[1, 1, 1], [1, 1, 0]])
    add_tensor(typed, "token_type_ids", [[0, 1, 1], [0, 0, 0]])
    raw = raw_request(BYTES_OF_3, [1, 3])
    return [
        typed,
        raw,
        text_request("The fox", "é 早"),
        raw_request(b"\1\0\0\0a\2\0\0\0\xc3\xa9", [2], "text", "BYTES"),
    ]


@st.composite
def mutated_requests(draw: st.DrawFn) -> bytes:
    """A valid request on the wire, with some bytes changed, and perhaps cut or repeated."""
    wire = bytearray(draw(st.sampled_from(valid_requests())).SerializeToString())
    for _ in range(draw(st.integers(0, 4))):
        wire[draw(st.integers(0, len(wire) - 1))] = draw(st.integers(0, 255))
    start = draw(st.integers(0, len(wire)))
    end = draw(st.integers(start, len(wire)))
    kind = draw(st.sampled_from(["whole", "whole", "cut", "repeated"]))
    return bytes({"whole": wire, "cut": wire[:start] + wire[end:], "repeated": wire[:end] + wire[start:]}[kind])


def assert_answered_or_invalid(
    check: Callable[[pb.ModelInferRequest], Request], request: pb.ModelInferRequest
) -> Request | None:
    try:
        checked = check(request)
    except InvalidArgument:
        return None
    assert len(checked.rows) == request.inputs[0].shape[0]
    assert all(1 <= len(sequence) <= checked.length <= 40 for sequence in checked.rows)
    ids = [sequence.tokens["input_ids"] for sequence in checked.rows]
    assert all(0 <= ids_t.min() <= ids_t.max() < 100 for ids_t in ids)
    return checked


def test_the_unchanged_requests_of_the_next_test_are_valid(check: Callable[[pb.ModelInferRequest], Request]) -> None:
    for request in valid_requests():
        assert assert_answered_or_invalid(check, request)


@settings(max_examples=500, deadline=None)
@given(wire=mutated_requests())
def test_a_damaged_request_is_answered_or_invalid(
    check: Callable[[pb.ModelInferRequest], Request], wire: bytes
) -> None:
    try:
        request = pb.ModelInferRequest.FromString(wire)
    except DecodeError:  # gRPC refuses it before the service sees it
        return
    assert_answered_or_invalid(check, request)


@settings(max_examples=500, deadline=None)
@given(request=any_requests())
def test_any_request_is_answered_or_invalid(
    check: Callable[[pb.ModelInferRequest], Request], request: pb.ModelInferRequest
) -> None:
    assert_answered_or_invalid(check, request)
