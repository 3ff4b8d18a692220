"""The Python client, against a real server, and against one whose refusals can be counted."""

import asyncio
import math
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc import StatusCode

from heed.bundle.digests import bundle_digest
from heed.client import Answer, AsyncClient, CallError, Client, streams
from heed.protos import heed_pb2
from heed.protos import open_inference_pb2 as pb
from heed.protos.heed_pb2_grpc import InferenceServicer, add_InferenceServicer_to_server
from heed.protos.open_inference_pb2_grpc import GRPCInferenceServiceServicer, add_GRPCInferenceServiceServicer_to_server
from heed.server.protocols.streams import REQUEST_BYTES, STREAM_REQUESTS
from tests.client.echo import answers_to
from tests.support import Running, free_port

TEXTS = ["The quick fox saw a dog.", "i", "the dogs"]
IDS = {"input_ids": np.array([[2, 5, 9, 3], [2, 3, 0, 0]]), "attention_mask": np.array([[1, 1, 1, 1], [1, 1, 0, 0]])}


@pytest.fixture
def client(tiny_server: Running) -> Iterator[Client]:
    with Client(tiny_server.address, "tiny") as client:
        yield client


class Fake(InferenceServicer, GRPCInferenceServiceServicer):
    """Refuses its first calls, then answers; or keeps its callers waiting."""

    def __init__(self, refusals: int = 0, code: StatusCode = StatusCode.UNAVAILABLE, *, silent: bool = False) -> None:
        self.calls = self.streams = 0
        self.messages: list[tuple[int, list[str]]] = []  # on streams: how many requests, and what was cancelled
        self.sent: list[float] = []  # when each message was sent, in seconds on the caller's clock
        self.left = threading.Event()  # a caller has gone
        self._refusals, self._code, self._silent = refusals, code, silent

    def ModelInfer(self, request: pb.ModelInferRequest, context: Any) -> pb.ModelInferResponse:
        self.calls += 1
        if self._silent:
            context.add_callback(self.left.set)
            self.left.wait(20)
        elif self.calls <= self._refusals:
            context.abort(self._code, "not now")
        return self._answer(request)

    def InferMany(self, messages: Iterator[heed_pb2.Requests], context: Any) -> Iterator[heed_pb2.Answers]:
        self.streams += 1

        def noted() -> Iterator[heed_pb2.Requests]:
            for message in messages:
                self.messages.append((len(message.requests), list(message.cancelled)))
                self.sent.append(message.sent_us / 1e6)
                yield message

        return answers_to(noted(), self._answer_or_refuse)

    def _answer_or_refuse(self, request: pb.ModelInferRequest) -> pb.ModelStreamInferResponse:
        self.calls += 1
        if self._silent:
            self.left.wait(0.5)
        if self.calls <= self._refusals:
            refusal = pb.ModelStreamInferResponse(error_message="not now")
            refusal.infer_response.parameters["status"].string_param = self._code.name
            return refusal
        return pb.ModelStreamInferResponse(infer_response=self._answer(request))

    def _answer(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        response = pb.ModelInferResponse(model_name=request.model_name)
        response.outputs.add(name="sentence_embedding", datatype="FP32", shape=[1, 2])
        response.raw_output_contents.append(np.array([0.6, 0.8], "<f4").tobytes())
        return response


@contextmanager
def serving(fake: Fake, port: int = 0, many: bool = True) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(4))
    add_GRPCInferenceServiceServicer_to_server(fake, server)
    if many:
        add_InferenceServicer_to_server(fake, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def refusal_of(client: Client) -> CallError:
    with pytest.raises(CallError) as refused:
        client.embed(["a"])
    return refused.value


def test_embed_gives_a_vector_for_each_text(client: Client) -> None:
    vectors = client.embed(TEXTS)
    assert vectors.shape == (3, 32)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(client.embed([TEXTS[2], TEXTS[0]]), vectors[[2, 0]])


def test_no_texts_have_no_vectors_of_the_right_length(client: Client) -> None:
    vectors = client.embed([])
    assert vectors.shape == (0, 32)
    assert vectors.dtype == np.float32
    assert np.concatenate([vectors, client.embed(TEXTS[:1])]).shape == (1, 32)


def test_embed_takes_any_iterable(client: Client) -> None:
    np.testing.assert_array_equal(client.embed(text for text in TEXTS), client.embed(TEXTS))


def test_infer_takes_arrays_and_gives_every_output(client: Client) -> None:
    answer = client.infer(IDS)
    assert {name: array.shape for name, array in answer.outputs.items()} == {
        "last_hidden_state": (2, 4, 32),
        "sentence_embedding": (2, 32),
    }
    assert not answer["last_hidden_state"][1, 2:].any()
    assert answer["last_hidden_state"][1, :2].all()


def test_infer_with_the_tokens_of_a_text_is_the_text(client: Client) -> None:
    tokens = np.array([[2, 5, 9, 3]])  # [CLS] the fox [SEP]
    np.testing.assert_array_equal(client.infer({"input_ids": tokens})["sentence_embedding"], client.embed(["The fox"]))


@pytest.mark.parametrize("dtype", [np.int32, np.int16, np.uint8, ">i8"])
def test_integers_of_any_size_and_order_are_taken(client: Client, dtype: np.typing.DTypeLike) -> None:
    smaller = {name: array.astype(dtype) for name, array in IDS.items()}
    np.testing.assert_array_equal(client.infer(smaller)["sentence_embedding"], client.infer(IDS)["sentence_embedding"])


def test_arrays_may_lie_in_memory_in_any_way(client: Client) -> None:
    strided = {name: np.repeat(array, 2, axis=1)[:, ::2].T.copy().T for name, array in IDS.items()}
    assert not strided["input_ids"].flags.c_contiguous
    np.testing.assert_array_equal(client.infer(strided)["sentence_embedding"], client.infer(IDS)["sentence_embedding"])


@pytest.mark.parametrize(
    "texts",
    [
        np.array(["the fox", "naïve"]),
        np.array(["the fox", "naïve"], object),
        np.array([b"the fox", "naïve".encode()], object),
    ],
    ids=["unicode", "objects", "bytes"],
)
def test_texts_may_be_arrays(client: Client, texts: np.ndarray) -> None:
    np.testing.assert_array_equal(
        client.infer({"text": texts})["sentence_embedding"], client.embed(["the fox", "naïve"])
    )


def test_only_the_outputs_that_are_named_come(client: Client) -> None:
    assert list(client.infer(IDS, ["sentence_embedding"]).outputs) == ["sentence_embedding"]
    assert list(client.infer(IDS, ["sentence_embedding", "last_hidden_state"]).outputs) == [
        "sentence_embedding",
        "last_hidden_state",
    ]


def test_an_answer_says_what_produced_it(client: Client, tiny_bundle: Path) -> None:
    answer = client.infer(IDS)
    assert answer.digest == bundle_digest(tiny_bundle)
    assert answer.precision == "fp32"
    assert answer.provider in ("CPUExecutionProvider", "CUDAExecutionProvider")
    assert 0 <= answer.queue_seconds < 10
    assert 0 < answer.compute_seconds < 10


def test_info_says_what_the_model_takes_and_gives(client: Client) -> None:
    info = client.info()
    assert (info.name, info.versions) == ("tiny", ["1"])
    assert info.inputs["input_ids"] == ("INT64", [-1, -1])
    assert info.inputs["text"] == ("BYTES", [-1])
    assert info.outputs["sentence_embedding"] == ("FP32", [-1, 32])
    assert (info.task, info.labels) == ("embedding", [])


def test_a_version_can_be_named(tiny_server: Running) -> None:
    with Client(tiny_server.address, "tiny", version="1") as first, Client(tiny_server.address, "tiny", "2") as second:
        assert first.embed(["a"]).shape == (1, 32)
        assert refusal_of(second).code is StatusCode.NOT_FOUND


def test_long_texts_are_cut_only_on_request(client: Client) -> None:
    with pytest.raises(CallError, match="truncate"):
        client.embed(["fox " * 50])
    np.testing.assert_array_equal(client.embed(["fox " * 50], truncate=True), client.embed(["fox " * 38]))


def test_a_refusal_has_the_code_and_the_servers_words(tiny_server: Running, client: Client) -> None:
    with pytest.raises(CallError) as refused:
        client.infer({"input_ids": np.array([[100]])})
    assert refused.value.code is StatusCode.INVALID_ARGUMENT
    assert refused.value.details == "input input_ids[0, 0] is 100, outside the vocabulary of 0 to 99"
    assert str(refused.value) == f"INVALID_ARGUMENT: {refused.value.details}"
    with Client(tiny_server.address, "big") as other:
        assert refusal_of(other).code is StatusCode.NOT_FOUND
        with pytest.raises(CallError, match="NOT_FOUND: model 'big'"):
            other.info()


def test_an_array_of_another_kind_is_refused_before_it_is_sent(client: Client) -> None:
    with pytest.raises(TypeError, match="input input_ids has dtype complex128"):
        client.infer({"input_ids": np.array([[1j]])})


async def test_one_text_is_not_taken_for_its_letters() -> None:
    message = "one text came where several are expected: put it into a list"
    with Client("localhost:1", "m") as client:
        for call in (client.embed, client.classify, client.tag, lambda text: next(client.embed_each(text))):
            with pytest.raises(TypeError, match=message):
                call("a fox")
        with pytest.raises(TypeError, match=message):
            client.rank("why", "because")
        with pytest.raises(TypeError, match=message):
            client.infer({"text": "a fox"})
    async with AsyncClient("localhost:1", "m") as other:
        with pytest.raises(TypeError, match=message):
            await anext(other.embed_each("a fox"))


@pytest.mark.parametrize("texts", [["a", 3], [None], [["a"], 7]])
def test_what_is_no_text_is_named(texts: Any) -> None:
    with (
        Client("localhost:1", "m") as client,
        pytest.raises(TypeError, match=r"a text is expected, got (int|NoneType|list)"),
    ):
        client.embed(texts)


def test_a_text_that_utf8_cannot_carry_is_told() -> None:
    with (
        Client("localhost:1", "m") as client,
        pytest.raises(ValueError, match=r"a text cannot be sent as UTF-8: surrogates not allowed at 1, '\\udcff'"),
    ):
        client.embed(["a\udcff"])


def test_numbers_in_a_list_are_told_to_come_in_an_array() -> None:
    with (
        Client("localhost:1", "m") as client,
        pytest.raises(TypeError, match="got int: 1; numbers are given as a numpy array"),
    ):
        client.infer({"input_ids": [[1, 2, 3]]})  # type: ignore[list-item]


def test_an_integer_that_does_not_fit_is_refused_before_it_is_sent(client: Client) -> None:
    ids = np.array([[1, 2**63]], np.uint64)
    with pytest.raises(ValueError, match="input input_ids holds 9223372036854775808, more than INT64 can"):
        client.infer({"input_ids": ids})
    np.testing.assert_array_equal(
        client.infer({"input_ids": np.array([[1, 2]], np.uint64)})["sentence_embedding"],
        client.infer({"input_ids": np.array([[1, 2]])})["sentence_embedding"],
    )


def test_words_come_back_as_texts(client: Client) -> None:
    answer = client.infer({"text": ["a fox", "i"]}, ["tokens", "offsets"])
    assert answer["tokens"].tolist() == [["[CLS]", "a", "fox", "[SEP]"], ["[CLS]", "i", "[SEP]", ""]]
    assert answer["offsets"].tolist() == [[[0, 0], [0, 1], [2, 5], [0, 0]], [[0, 0], [0, 1], [0, 0], [0, 0]]]


def test_one_client_serves_many_threads(client: Client) -> None:
    expected = client.embed(TEXTS)
    with ThreadPoolExecutor(8) as threads:
        for number, vectors in enumerate(threads.map(lambda n: client.embed([TEXTS[n % 3]]), range(60))):
            np.testing.assert_array_equal(vectors[0], expected[number % 3])


def test_a_call_that_is_not_answered_ends_with_its_timeout() -> None:
    fake = Fake(silent=True)
    with serving(fake) as address, Client(address, "fake", timeout=0.3) as client:
        before = time.monotonic()
        assert refusal_of(client).code is StatusCode.DEADLINE_EXCEEDED
        assert 0.2 < time.monotonic() - before < 5
        assert fake.left.wait(5)  # the server knows that nobody waits any more


def test_an_unavailable_server_is_asked_again() -> None:
    fake = Fake(refusals=2)
    with serving(fake) as address, Client(address, "fake") as client:
        assert client.embed(["a"]).tolist() == [[np.float32(0.6), np.float32(0.8)]]
    assert fake.calls == 3


def test_an_unavailable_server_is_asked_five_times_at_most() -> None:
    fake = Fake(refusals=1000)
    with serving(fake) as address, Client(address, "fake") as client:
        error = refusal_of(client)
    assert (error.code, error.details) == (StatusCode.UNAVAILABLE, "not now")
    assert fake.calls == 5


@pytest.mark.parametrize(
    "code", [StatusCode.INVALID_ARGUMENT, StatusCode.RESOURCE_EXHAUSTED, StatusCode.INTERNAL, StatusCode.NOT_FOUND]
)
def test_no_other_refusal_is_asked_again(code: StatusCode) -> None:
    fake = Fake(refusals=1000, code=code)
    with serving(fake) as address, Client(address, "fake") as client:
        assert refusal_of(client).code is code
    assert fake.calls == 1


def test_the_timeout_limits_the_retries_too() -> None:
    fake = Fake(refusals=1000)
    with serving(fake) as address, Client(address, "fake", timeout=0.2) as client:
        before = time.monotonic()
        assert refusal_of(client).code in (StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED)
        assert time.monotonic() - before < 1
    assert fake.calls < 5


def test_a_call_shortly_before_the_port_opens_is_answered() -> None:
    """The five attempts are spread over one to two seconds. A server that takes longer has to be waited for."""
    port = free_port()
    with ThreadPoolExecutor(1) as thread, Client(f"127.0.0.1:{port}", "fake") as client:
        vectors = thread.submit(client.embed, ["a"])
        time.sleep(0.3)
        assert not vectors.done()
        with serving(Fake(), port):
            assert vectors.result(10).shape == (1, 2)


def test_a_call_to_nobody_is_unavailable_after_two_seconds_not_after_its_timeout() -> None:
    with Client(f"127.0.0.1:{free_port()}", "fake", timeout=30) as client:
        before = time.monotonic()
        assert refusal_of(client).code is StatusCode.UNAVAILABLE
        assert 0.5 < time.monotonic() - before < 10


async def test_the_async_client_gives_what_the_other_gives(tiny_server: Running, client: Client) -> None:
    async with AsyncClient(tiny_server.address, "tiny") as other:
        assert await other.info() == client.info()
        np.testing.assert_array_equal(await other.embed(TEXTS), client.embed(TEXTS))
        ours, theirs = await other.infer(IDS), client.infer(IDS)
    for name in ("last_hidden_state", "sentence_embedding"):
        np.testing.assert_array_equal(ours[name], theirs[name])
    assert (ours.digest, ours.provider, ours.precision) == (theirs.digest, theirs.provider, theirs.precision)


async def test_many_async_calls_at_once_get_their_own_answers(tiny_server: Running, client: Client) -> None:
    random = np.random.default_rng(0)
    inputs = [{"input_ids": random.integers(0, 100, (1 + number % 3, 1 + number % 40))} for number in range(200)]
    async with AsyncClient(tiny_server.address, "tiny") as other:
        answers: list[Answer] = await asyncio.gather(*(other.infer(one) for one in inputs))
    for one, answer in zip(inputs, answers, strict=True):
        expected = client.infer(one)
        for name in ("last_hidden_state", "sentence_embedding"):
            np.testing.assert_array_equal(answer[name], expected[name])


async def test_async_refusals_have_the_code_too(tiny_server: Running) -> None:
    async with AsyncClient(tiny_server.address, "big") as other:
        with pytest.raises(CallError, match="model 'big'") as refused:
            await other.embed(["a"])
        assert refused.value.code is StatusCode.NOT_FOUND
        with pytest.raises(CallError, match="NOT_FOUND"):
            await other.info()


async def test_an_async_call_ends_with_its_timeout() -> None:
    with serving(Fake(silent=True)) as address:
        async with AsyncClient(address, "fake", timeout=0.2) as other:
            with pytest.raises(CallError, match="DEADLINE_EXCEEDED"):
                await other.embed(["a"])


async def test_an_unavailable_server_is_asked_again_by_the_async_client() -> None:
    fake = Fake(refusals=2)
    with serving(fake) as address:
        async with AsyncClient(address, "fake") as other:
            assert (await other.embed(["a"])).shape == (1, 2)
    assert fake.calls == 3


async def test_async_calls_one_after_the_other_share_a_stream_whatever_they_are_answered() -> None:
    fake = Fake(refusals=1, code=StatusCode.INVALID_ARGUMENT)
    with serving(fake) as address:
        async with AsyncClient(address, "fake") as other:
            with pytest.raises(CallError, match="INVALID_ARGUMENT: not now"):
                await other.embed(["a"])
            for _ in range(5):
                await other.embed(["a"])
    assert (fake.calls, fake.streams) == (6, 1)


async def test_a_stream_gives_way_to_another_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_STREAM_SECONDS", 0.2)
    fake = Fake()
    with serving(fake) as address:
        async with AsyncClient(address, "fake") as other:
            await other.embed(["a"])
            await asyncio.sleep(0.3)
            await other.embed(["a"])
    assert (fake.calls, fake.streams) == (2, 2)


async def test_a_stream_gives_way_to_another_when_it_has_carried_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_STREAM_BYTES", 300)
    fake = Fake()
    with serving(fake) as address:
        async with AsyncClient(address, "fake") as other:
            for _ in range(6):
                await other.embed(["a" * 100])
    assert (fake.calls, fake.streams) == (6, 3)


async def test_what_is_asked_at_once_travels_together() -> None:
    fake = Fake()
    with serving(fake) as address:
        async with AsyncClient(address, "fake", timeout=10) as other:
            await asyncio.gather(*(other.embed(["a"]) for _ in range(20)))
    assert (fake.calls, fake.streams, fake.messages) == (20, 1, [(20, [])])


async def test_a_stream_has_so_many_requests_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_REQUESTS", 10)
    fake = Fake()
    with serving(fake) as address:
        async with AsyncClient(address, "fake", timeout=10) as other:
            await asyncio.gather(*(other.embed(["a"]) for _ in range(20)))
    assert (fake.calls, fake.streams, fake.messages) == (20, 2, [(10, []), (10, [])])


def test_a_client_counts_what_a_stream_has_as_a_server_does() -> None:
    assert (streams.CREDITS, streams.CREDIT_BYTES) == (STREAM_REQUESTS, REQUEST_BYTES)


async def test_what_a_server_would_not_read_beside_others_goes_on_a_stream_of_its_own() -> None:
    fake = Fake()
    with serving(fake) as address:
        async with AsyncClient(address, "fake", timeout=10) as other:
            await asyncio.gather(*(other.embed(["a" * 50_000]) for _ in range(4)))
            await asyncio.gather(*(other.embed(["a"]) for _ in range(20)))  # there is room again
    assert (fake.calls, fake.streams) == (24, 2)


def test_the_server_hears_how_much_time_is_left_when_a_request_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    pending = streams.PendingRequest(pb.ModelInferRequest(), 2.0)
    assert pending.to_send().parameters["timeout"].int64_param == 2_000_000
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 1.5)
    assert pending.to_send().parameters["timeout"].int64_param == pytest.approx(
        500_000, abs=2_000_000 / streams.TIMEOUT_STEPS
    )
    monkeypatch.setattr(time, "monotonic", lambda: now + 5)
    assert pending.to_send().parameters["timeout"].int64_param == 2_000_000 / streams.TIMEOUT_STEPS


async def embedded(client: Client | AsyncClient) -> np.ndarray:
    """A text, by either client."""
    found = client.embed(["a"])
    return await found if isinstance(found, Awaitable) else found


@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_a_timeout_may_be_without_end_or_over_at_once(kind: type[Client] | type[AsyncClient]) -> None:
    with serving(Fake()) as address:
        assert (await embedded(kind(address, "fake", timeout=math.inf))).shape == (1, 2)
    silent = Fake(silent=True)  # another one may answer in no time
    with serving(silent) as address, pytest.raises(CallError, match="DEADLINE_EXCEEDED"):
        await embedded(kind(address, "fake", timeout=0.0))


async def test_large_requests_are_calls_of_their_own_and_many_bytes_are_several_messages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streams, "MAX_MESSAGE_BYTES", 300)
    fake = Fake()
    with serving(fake) as address:
        async with AsyncClient(address, "fake", timeout=10) as other:
            await asyncio.gather(*(other.embed(["a" * length]) for length in (100, 100, 400, 100)))
    assert (fake.calls, fake.streams) == (4, 1)
    assert [count for count, _ in fake.messages] == [1, 1, 1]


async def test_a_server_that_knows_no_such_streams_is_called() -> None:
    fake = Fake()
    with serving(fake, many=False) as address:
        async with AsyncClient(address, "fake", timeout=10) as other:
            await asyncio.gather(*(other.embed(["a"]) for _ in range(4)))
            await other.embed(["a"])
    assert (fake.calls, fake.streams) == (5, 0)


async def test_streams_to_a_server_that_went_away_are_not_used_again() -> None:
    port = free_port()
    async with AsyncClient(f"127.0.0.1:{port}", "fake") as other:
        with serving(Fake(), port):
            await asyncio.gather(*(other.embed(["a"]) for _ in range(4)))
        with serving(Fake(), port):
            vectors = await asyncio.gather(*(other.embed(["a"]) for _ in range(4)))
    assert [vector.shape for vector in vectors] == [(1, 2)] * 4


async def test_the_server_hears_of_a_cancelled_async_call() -> None:
    fake = Fake(silent=True)
    with serving(fake) as address:
        async with AsyncClient(address, "fake") as other:
            call, next_one = (asyncio.create_task(other.embed(["a"])) for _ in range(2))
            while not fake.calls:
                await asyncio.sleep(0.01)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert (await next_one).shape == (1, 2)  # on the same stream
            while len(fake.sent) < 2:
                await asyncio.sleep(0.01)
    assert fake.messages == [(2, []), (0, ["0"])]


async def test_the_server_hears_when_each_message_was_sent() -> None:
    fake, times = Fake(), [time.monotonic()]
    with serving(fake) as address:
        async with AsyncClient(address, "fake") as other:
            for _ in range(2):
                await other.embed(["a"])
                times.append(time.monotonic())
    first, second = fake.sent
    assert times[0] - 1e-6 <= first <= times[1] <= second + 1e-6 <= times[2] + 1e-6


@pytest.mark.parametrize("order", [["heed.client", "tritonclient.grpc"], ["tritonclient.grpc", "heed.client"]])
def test_it_lives_in_one_process_with_tritonclient(tiny_server: Running, order: list[str]) -> None:
    """Both bring the same messages, and protobuf's own pool takes only one definition of them."""
    program = f"""
import {order[0]}
import {order[1]}
import numpy as np
with heed.client.Client("{tiny_server.address}", "tiny") as ours:
    expected = ours.infer({{"input_ids": np.array([[2, 5, 3]])}})["sentence_embedding"]
theirs = tritonclient.grpc.InferenceServerClient("{tiny_server.address}")
ids = tritonclient.grpc.InferInput("input_ids", [1, 3], "INT64")
ids.set_data_from_numpy(np.array([[2, 5, 3]]))
assert (theirs.infer("tiny", [ids]).as_numpy("sentence_embedding") == expected).all()
print("equal")
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "equal\n"), done.stderr
