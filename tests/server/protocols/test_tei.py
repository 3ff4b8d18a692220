"""`tei.v1`: what is refused, and what an answer took."""

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from heed.bundle import Manifest
from heed.protos import tei_pb2 as pb
from heed.protos import tei_pb2_grpc as wire
from heed.protos.heed_pb2 import Requests
from heed.protos.heed_pb2_grpc import InferenceStub
from heed.protos.open_inference_pb2 import ModelInferRequest
from heed.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from heed.server.errors import FailedPrecondition
from heed.server.protocols.tei.capabilities import METHODS, check_can
from heed.server.protocols.tei.embed import _output
from heed.server.protocols.tei.service import SharedSemaphore
from tests.server.support import ids_request, manifest_of
from tests.support import Running, start_server, stop, wait_until_serving

TEXT = ("input_ids", "text", "text_pair")


@pytest.fixture
def channel(tiny_server: Running) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(tiny_server.address) as channel:
        yield channel


def call(channel: grpc.Channel, method: str, request: Any) -> Any:
    service = "Tokenize" if method in ("Tokenize", "Decode") else "Embed"
    return getattr(getattr(wire, f"{service}Stub")(channel), method)(request, timeout=60)


@pytest.mark.parametrize(
    ("method", "request_", "message"),
    [
        ("Embed", pb.EmbedRequest(), "inputs is empty, expected a text"),
        ("EmbedAll", pb.EmbedAllRequest(), "inputs is empty, expected a text"),
        ("Tokenize", pb.EncodeRequest(), "inputs is empty, expected a text"),
        (
            "Tokenize",
            pb.EncodeRequest(inputs="a" * 100_001),
            "inputs[0] has 100001 characters, at most 100000 are taken (--max-text-characters), even if it is to be "
            "truncated; send less of it",
        ),
        ("Decode", pb.DecodeRequest(), "ids is empty, expected one token at least"),
        ("Decode", pb.DecodeRequest(ids=[2, 65]), "ids[1] is 65, which is no token; they are 0 to 64"),
        (
            "Embed",
            pb.EmbedRequest(inputs="the " * 60),
            "input text[0] has 62 tokens, at most 40 are allowed; set the parameter truncate to true to have it cut",
        ),
        (
            "Embed",
            pb.EmbedRequest(inputs="a", truncation_direction=2),  # type: ignore[arg-type]
            "truncation_direction is 2, expected 0 (right) or 1 (left)",
        ),
        ("Embed", pb.EmbedRequest(inputs="a", dimensions=0), "dimensions is 0, expected 1 to 32"),
        ("Embed", pb.EmbedRequest(inputs="a", dimensions=33), "dimensions is 33, expected 1 to 32"),
        (
            "Embed",
            pb.EmbedRequest(inputs="a", prompt_name="query"),
            "prompt_name 'query' is unknown; the prompts of tiny are: none",
        ),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(channel: grpc.Channel, method: str, request_: Any, message: str) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        call(channel, method, request_)
    assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.INVALID_ARGUMENT, message)


def test_an_answer_says_what_it_took(channel: grpc.Channel) -> None:
    began = time.monotonic_ns()
    took = call(channel, "Embed", pb.EmbedRequest(inputs="the quick 🦊")).metadata
    whole = time.monotonic_ns() - began
    assert (took.compute_chars, took.compute_tokens) == (11, 5)
    assert took.tokenization_time_ns > 0
    assert took.inference_time_ns > 0
    assert took.tokenization_time_ns + took.queue_time_ns + took.inference_time_ns <= took.total_time_ns <= whole


def test_streams_that_were_not_read_to_their_end_say_so(tiny_bundle: Path, tmp_path: Path) -> None:
    """Those of the other APIs too: with OK a caller would wait for answers to what it had sent."""
    server = start_server(tiny_bundle, tmp_path / "log", "--linger-seconds", "0", "--grace-seconds", "60")
    wait_until_serving(server)
    ended = threading.Event()

    def requests() -> Iterator[pb.EmbedRequest]:
        yield pb.EmbedRequest(inputs="a")
        ended.wait(60)

    def infer_requests() -> Iterator[ModelInferRequest]:
        yield ids_request([[2, 3]])
        ended.wait(60)

    def many_requests() -> Iterator[Requests]:
        yield Requests(requests=[ids_request([[2, 3]])])
        ended.wait(60)

    with grpc.insecure_channel(server.address) as channel:
        streams = [
            wire.EmbedStub(channel).EmbedStream(requests()),
            GRPCInferenceServiceStub(channel).ModelStreamInfer(infer_requests()),
            InferenceStub(channel).InferMany(many_requests()),
        ]
        for answers in streams:
            assert next(answers).ByteSize()
        assert stop(server) == 0
        for answers in streams:
            with pytest.raises(grpc.RpcError, match="the server is shutting down; what it had read is answered"):
                next(answers)
            assert answers.code() is grpc.StatusCode.UNAVAILABLE
            assert ("heed-reason", "draining") in answers.trailing_metadata()
        ended.set()


# Without a server


def test_a_model_without_texts_refers_to_the_open_inference_protocol() -> None:
    with pytest.raises(FailedPrecondition, match=r"made takes no text but features: use the Open Inference Protocol"):
        check_can(manifest_of("features"), "EmbedAll")


def test_what_a_plain_encoder_has() -> None:
    manifest = manifest_of(*TEXT)
    check_can(manifest, "EmbedAll")
    with pytest.raises(FailedPrecondition, match="made is a model for encoder and has no Embed, only EmbedAll"):
        check_can(manifest, "Embed")
    assert METHODS.keys() == set(Manifest.model_fields["task"].annotation.__args__)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("outputs", "unit_length", "expected"),
    [
        (["sentence_embedding", "unnormalized_embedding"], True, "unnormalized_embedding"),
        (["sentence_embedding"], False, "sentence_embedding"),
    ],
)
def test_where_vectors_of_any_length_come_from(outputs: list[str], unit_length: bool, expected: str) -> None:
    manifest = manifest_of(*TEXT, outputs=outputs, task="embedding", unit_length=unit_length)
    assert _output(manifest, normalize=False) == expected
    assert _output(manifest, normalize=True) == "sentence_embedding"


def test_a_bundle_of_before_cannot_give_vectors_of_any_length() -> None:
    manifest = manifest_of(*TEXT, outputs=["sentence_embedding"], task="embedding")
    assert _output(manifest, normalize=True) == "sentence_embedding"
    with pytest.raises(FailedPrecondition, match="export it again"):
        _output(manifest, normalize=False)


async def test_room_is_given_in_the_order_of_arrival() -> None:
    room, inside, begun = SharedSemaphore(10), asyncio.Event(), []

    async def stay(tokens: int) -> None:
        async with room.held(tokens):
            begun.append(tokens)
            await inside.wait()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(stay(tokens)) for tokens in (6, 5, 1, 99, 2)]
        await asyncio.sleep(0.01)
        assert begun == [6]  # 1 would fit, and is behind 5
        tasks[1].cancel()
        await asyncio.sleep(0.01)
        assert begun == [6, 1]
        inside.set()
    assert begun == [6, 1, 99, 2]
