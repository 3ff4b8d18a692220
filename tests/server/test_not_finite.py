"""A model that has no finite numbers for one word that no case of its contract has: rows with it fail, and no others.

The bundle is MiniLM's with one row of its embedding table altered, and digests that say so.
"""

import itertools
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from tokenizers import Tokenizer

from heed.bundle.contract import read_contract
from heed.bundle.digests import write_digests
from heed.bundle.manifest import TOKENIZER
from heed.protos import heed_pb2, tei_pb2
from heed.protos import open_inference_pb2 as pb
from heed.protos.heed_pb2_grpc import InferenceStub
from heed.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from heed.protos.tei_pb2_grpc import EmbedStub
from tests.server.support import text_request
from tests.support import Running, free_port, run_server

WORD = "zebra"
TABLE = "encoder.embeddings.inputs.tokens.weight"
SAID = "sentence_embedding of row {} is NaN or infinite"


def spoil_a_word(folder: Path) -> None:
    """Its embedding becomes infinite, as damaged weights, or those of another width of floats, may be."""
    number = Tokenizer.from_file(str(folder / TOKENIZER)).token_to_id(WORD)
    assert all(number not in case.inputs.get("input_ids", []) for case in read_contract(folder))
    graph = onnx.load(folder / "model.fp32.onnx", load_external_data=False).graph
    table = next(tensor for tensor in graph.initializer if tensor.name == TABLE)
    stored = {entry.key: entry.value for entry in table.external_data}
    weights = np.memmap(folder / stored["location"], np.float32, "r+", int(stored["offset"]), tuple(table.dims))
    weights[number] = np.inf
    weights.flush()
    write_digests(folder)


@pytest.fixture(scope="module")
def metrics_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def spoilt(minilm_bundle: Path, metrics_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("spoilt")
    shutil.copytree(minilm_bundle, folder / "minilm")
    spoil_a_word(folder / "minilm")
    with run_server(folder / "minilm", folder / "log", "--metrics-port", str(metrics_port)) as server:
        yield server


@pytest.fixture
def channel(spoilt: Running) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(spoilt.address) as channel:
        yield channel


def requested(*texts: str, id: str = "") -> pb.ModelInferRequest:
    request = text_request(*texts, model="minilm")
    request.id = id
    request.outputs.add(name="sentence_embedding")
    return request


def refusal(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str, Any]:
    """Status, message and reason."""
    with pytest.raises(grpc.RpcError) as refused:
        call()
    error: Any = refused.value
    return error.code(), error.details(), dict(error.trailing_metadata()).get("heed-reason")


def test_a_request_with_such_a_row_fails_and_says_which_row_and_why(channel: grpc.Channel) -> None:
    infer = GRPCInferenceServiceStub(channel).ModelInfer
    code, message, reason = refusal(lambda: infer(requested("a fox", f"a {WORD}", "a dog")))
    assert (code, reason) == (grpc.StatusCode.INTERNAL, "not_finite")
    assert message.startswith(SAID.format(1))
    code, message, reason = refusal(lambda: EmbedStub(channel).Embed(tei_pb2.EmbedRequest(inputs=f"a {WORD}")))
    assert (code, reason) == (grpc.StatusCode.INTERNAL, "not_finite")
    assert message.startswith(SAID.format(0))


def test_others_have_their_own_bits_whatever_stands_beside_them(channel: grpc.Channel) -> None:
    """Many at a time, so that they share batches."""
    infer = GRPCInferenceServiceStub(channel).ModelInfer
    alone = infer(requested("a quick fox")).raw_output_contents
    texts = [WORD if number % 3 == 0 else "a quick fox" for number in range(96)]

    def answered(text: str) -> Any:
        try:
            return infer(requested(text)).raw_output_contents
        except grpc.RpcError as error:
            return error.code()

    with ThreadPoolExecutor(32) as pool:
        answers = dict(zip(itertools.count(), pool.map(answered, texts)))
    assert all(answers[number] == (grpc.StatusCode.INTERNAL if texts[number] == WORD else alone) for number in answers)


def test_on_streams_it_is_the_answer_to_its_request_alone(channel: grpc.Channel) -> None:
    requests = [requested("a fox", id="0"), requested(WORD, id="1"), requested("a fox", id="2")]
    ordered = list(GRPCInferenceServiceStub(channel).ModelStreamInfer(iter(requests)))
    messages = InferenceStub(channel).InferMany(iter([heed_pb2.Requests(requests=requests)]))
    for answers in (ordered, [answer for message in messages for answer in message.answers]):
        by_id = {answer.infer_response.id: answer for answer in answers}
        said = {id: answer.infer_response.parameters["reason"].string_param for id, answer in by_id.items()}
        assert said == {"0": "", "1": "not_finite", "2": ""}
        assert by_id["1"].infer_response.parameters["status"].string_param == "INTERNAL"
        assert by_id["1"].error_message.startswith(SAID.format(0))
        assert by_id["0"].infer_response.raw_output_contents == by_id["2"].infer_response.raw_output_contents
    stream = EmbedStub(channel).EmbedStream(iter(tei_pb2.EmbedRequest(inputs=text) for text in ("a fox", WORD)))
    assert len(next(stream).embeddings) == 384
    code, message, reason = refusal(lambda: next(stream))
    assert (code, reason) == (grpc.StatusCode.INTERNAL, "not_finite")
    assert message.startswith("item 1: " + SAID.format(0))


def test_it_is_counted(channel: grpc.Channel, metrics_port: int) -> None:
    def counted() -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics") as page:
            lines = page.read().decode().splitlines()
        series = 'heed_refused_total{model="minilm",reason="not_finite"} '
        return next(float(line.removeprefix(series)) for line in lines if line.startswith(series))

    before = counted()
    refusal(lambda: GRPCInferenceServiceStub(channel).ModelInfer(requested(WORD)))
    assert counted() == before + 1
