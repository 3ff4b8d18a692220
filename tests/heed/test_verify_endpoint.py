"""`heed verify --endpoint`: a running server is held against a bundle's contract."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import numpy as np
import pytest

from heed.bundle.contract import read_contract
from heed.bundle.digests import bundle_digest
from heed.cli.verify_endpoint import Endpoint
from heed.protos import open_inference_pb2 as pb
from heed.protos.open_inference_pb2_grpc import GRPCInferenceServiceServicer, add_GRPCInferenceServiceServicer_to_server
from heed.server.engine.model import Model
from heed.server.protocols.open_inference.tensors import encode_outputs
from tests.bundles import export_bundle
from tests.heed.support import heed
from tests.server.support import decoded_inputs
from tests.support import Running, allow_no_error, free_port, run_server, save_bert, start_server, stop


def test_a_server_of_the_bundle_holds_in_every_case(tiny_bundle: Path, tiny_server: Running) -> None:
    here = json.loads(heed("verify", tiny_bundle, "--json").out)
    done = heed("verify", tiny_bundle, "--endpoint", tiny_server.address, "--json")
    assert done.code == 0
    there = json.loads(done.out)
    assert there["holds"]
    assert there["endpoint"] == tiny_server.address
    assert there["left_out"] == []
    assert there["digest"] == here["digest"] == bundle_digest(tiny_bundle)
    assert (there["precision"], there["provider"]) == ("fp32", "CPUExecutionProvider")
    assert [(row["case"], row["output"]) for row in there["findings"]] == [
        (row["case"], row["output"]) for row in here["findings"]
    ]
    assert any(row["output"] == "attentions" for row in there["findings"])


def test_the_table_says_where_it_was_asked(tiny_bundle: Path, tiny_server: Running) -> None:
    done = heed("verify", tiny_bundle, "--endpoint", tiny_server.address)
    assert done.code == 0
    assert f"tiny at {tiny_server.address}, fp32 on CPUExecutionProvider: equal to the reference in" in done.shown


def test_labels_are_compared_too(tmp_path: Path) -> None:
    source = save_bert(tmp_path / "source", seed=3)
    make_classifier(source)
    bundle = export_bundle(source, tmp_path / "classifier")
    with run_server(bundle, tmp_path / "log") as server:
        done = heed("verify", bundle, "--endpoint", server.address, "--json")
    assert done.code == 0
    outputs = [row["output"] for row in json.loads(done.out)["findings"]]
    assert outputs.count("labels") == outputs.count("logits") > 0


def make_classifier(folder: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig.from_pretrained(folder, num_labels=3)
    BertForSequenceClassification(config).save_pretrained(folder)


def test_another_bundle_is_told_with_both_digests(
    tiny_cls_bundle: Path, tiny_bundle: Path, tiny_server: Running
) -> None:
    arguments = ["verify", tiny_cls_bundle, "--endpoint", tiny_server.address, "--model", "tiny"]
    done = heed(*arguments)
    assert done.code == 1
    assert "not this bundle" in done.said
    assert bundle_digest(tiny_bundle) in done.said
    assert bundle_digest(tiny_cls_bundle) in done.said
    done = heed(*arguments, "--json")
    assert done.code == 1
    told = json.loads(done.out)
    assert not told["holds"]
    assert (told["digest"], told["endpoint_digest"]) == (bundle_digest(tiny_cls_bundle), bundle_digest(tiny_bundle))


def test_answers_that_are_off_do_not_hold(
    tiny_bundle: Path, tiny_server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow_no_error(monkeypatch)
    done = heed("verify", tiny_bundle, "--endpoint", tiny_server.address)
    assert done.code == 1
    assert "✗" in done.out
    assert "not equal to the reference" in done.shown


def test_the_case_that_is_off_is_the_one_that_is_named(tiny_bundle: Path, tiny_server: Running) -> None:
    cases = read_contract(tiny_bundle)
    altered = cases[3].outputs["sentence_embedding"] + 0.001
    cases[3] = replace(cases[3], outputs=cases[3].outputs | {"sentence_embedding": altered})
    findings = list(endpoint(tiny_server.address, tiny_bundle).check(cases[:6]))
    assert [(found.case, found.output) for found in findings if not found.holds] == [
        (cases[3].name, "sentence_embedding")
    ]


def endpoint(address: str, bundle: Path, seconds: float = 10.0) -> Endpoint:
    return Endpoint(address, "tiny", bundle_digest(bundle), seconds)


def test_an_unknown_model_cannot_be_compared(tiny_cls_bundle: Path, tiny_server: Running) -> None:
    before = time.monotonic()
    done = heed("verify", tiny_cls_bundle, "--endpoint", tiny_server.address)
    assert time.monotonic() - before < 10  # nothing to wait for
    assert done.code == 2
    assert "NOT_FOUND: model 'tiny-cls' is not served here, only tiny" in done.said


def test_nobody_there_is_told_within_the_timeout(tiny_bundle: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    before = time.monotonic()
    done = heed("verify", tiny_bundle, "--endpoint", address, "--timeout", "2")
    assert time.monotonic() - before < 4
    assert done.code == 2
    assert done.out == ""
    assert f"error: {address} gave no answer: UNAVAILABLE" in done.said


def test_a_server_that_is_starting_is_waited_for(tiny_bundle: Path, tmp_path: Path) -> None:
    server = start_server(tiny_bundle, tmp_path / "log", "--linger-seconds", "0")
    try:
        assert heed("verify", tiny_bundle, "--endpoint", server.address, "--timeout", "60").code == 0
        assert stop(server) == 0
    finally:
        server.process.kill()
        server.process.wait()


@pytest.mark.parametrize("option", [("--device", "cpu"), ("--precision", "fp32")])
def test_what_is_computed_here_and_there_cannot_both_be_chosen(tiny_bundle: Path, option: tuple[str, str]) -> None:
    done = heed("verify", tiny_bundle, "--endpoint", "127.0.0.1:1", *option)
    assert done.code == 2
    assert "--device, --precision and --no-kernels are for what is computed here" in done.said


def test_a_precision_that_is_not_there_is_told(tiny_bundle: Path) -> None:
    done = heed("verify", tiny_bundle, "--precision", "int8")
    assert done.code == 2
    assert "tiny has no int8 graph of answers" in done.said


def test_large_answers_come_in_parts(minilm_bundle: Path, tmp_path: Path) -> None:
    """Neither a small limit of messages nor a short queue is a false alarm."""
    limits = ["--max-message-mib", "1", "--max-queue-tokens", "600"]
    with run_server(minilm_bundle, tmp_path / "log", *limits) as server:
        done = heed("verify", minilm_bundle, "--endpoint", server.address, "--json")
    told = json.loads(done.out)
    assert done.code == 0
    assert told["left_out"] == []
    two_longest = next(case for case in read_contract(minilm_bundle) if case.name == "two_longest")
    assert two_longest.outputs["last_hidden_state"].size * 4 > 2**20  # bytes: it does not fit in one message
    assert {"two_longest", "large_batch", "texts"} <= {row["case"] for row in told["findings"]}


def test_what_does_not_fit_at_all_is_left_out_and_said(tiny_bundle: Path, tmp_path: Path) -> None:
    with run_server(tiny_bundle, tmp_path / "log", "--max-queue-tokens", "38") as server:
        done = heed("verify", tiny_bundle, "--endpoint", server.address)
        told = json.loads(heed("verify", tiny_bundle, "--endpoint", server.address, "--json").out)
    assert done.code == 0
    assert "longest" in told["left_out"]  # 40 tokens in a row
    assert f"not compared, too large for a message of {server.address}: {', '.join(told['left_out'])}" in done.said
    assert "longest" not in {row["case"] for row in told["findings"]}


@dataclass
class StandIn(GRPCInferenceServiceServicer):
    """Answers as a bundle does, and says what a test wants it to say of itself."""

    model: Model
    digests: list[str]  # of the answers, one after the other; the last one goes on
    precision: str = "fp32"
    busy: int = 0  # how many requests to refuse first
    answered: int = 0

    def ModelInfer(self, request: pb.ModelInferRequest, context: grpc.ServicerContext) -> pb.ModelInferResponse:
        if self.busy:
            self.busy -= 1
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full")
        response = pb.ModelInferResponse()
        inputs = decoded_inputs(self.model.manifest, request)
        encode_outputs(response, self.model.answer(inputs, [output.name for output in request.outputs]))
        response.parameters["digest"].string_param = self.digests[min(self.answered, len(self.digests) - 1)]
        response.parameters["precision"].string_param = self.precision
        response.parameters["provider"].string_param = "CPUExecutionProvider"
        self.answered += 1
        return response


@contextmanager
def standing_in(stand_in: StandIn) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(1))
    add_GRPCInferenceServiceServicer_to_server(stand_in, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@pytest.fixture(scope="module")
def tiny_model(tiny_bundle: Path) -> Model:
    return Model(tiny_bundle, "cpu")


def test_a_stand_in_that_says_the_right_things_holds(tiny_bundle: Path, tiny_model: Model) -> None:
    """A control for the tests below."""
    with standing_in(StandIn(tiny_model, [bundle_digest(tiny_bundle)])) as address:
        assert heed("verify", tiny_bundle, "--endpoint", address).code == 0


def test_a_half_done_rollout_is_noticed(tiny_bundle: Path, tiny_model: Model) -> None:
    digests = [bundle_digest(tiny_bundle)] * 5 + ["sha256:0ld"]
    with standing_in(StandIn(tiny_model, digests)) as address:
        done = heed("verify", tiny_bundle, "--endpoint", address)
    assert done.code == 1
    assert "sha256:0ld" in done.said


def test_a_server_that_names_no_bundle_cannot_be_compared(tiny_bundle: Path, tiny_model: Model) -> None:
    with standing_in(StandIn(tiny_model, [""])) as address:
        done = heed("verify", tiny_bundle, "--endpoint", address)
    assert done.code == 2
    assert "does not say which bundle it answers from" in done.said


def test_the_budget_is_that_of_the_precision_that_answers_name(tiny_bundle: Path, tiny_model: Model) -> None:
    with standing_in(StandIn(tiny_model, [bundle_digest(tiny_bundle)], precision="int8")) as address:
        told = json.loads(heed("verify", tiny_bundle, "--endpoint", address, "--json").out)
    assert told["precision"] == "int8"
    assert {(row["budget"], row["measure"]) for row in told["findings"] if row["output"] == "last_hidden_state"} == {
        (1e-2, "cosine")
    }


def test_a_precision_without_a_budget_cannot_be_compared(tiny_bundle: Path, tiny_model: Model) -> None:
    with standing_in(StandIn(tiny_model, [bundle_digest(tiny_bundle)], precision="fp16")) as address:
        done = heed("verify", tiny_bundle, "--endpoint", address)
    assert done.code == 2
    assert "fp16 on CPUExecutionProvider, which has no budget" in done.said


def test_a_busy_server_is_asked_again(tiny_bundle: Path, tiny_model: Model) -> None:
    with standing_in(StandIn(tiny_model, [bundle_digest(tiny_bundle)], busy=2)) as address:
        findings = list(endpoint(address, tiny_bundle).check(read_contract(tiny_bundle)[:2]))
    assert all(found.holds for found in findings)


def test_a_server_that_stays_busy_cannot_be_compared(tiny_bundle: Path, tiny_model: Model) -> None:
    with standing_in(StandIn(tiny_model, [bundle_digest(tiny_bundle)], busy=1000)) as address:
        done = heed("verify", tiny_bundle, "--endpoint", address, "--timeout", "1")
    assert done.code == 2
    assert "RESOURCE_EXHAUSTED: the queue is full" in done.said


def test_parts_of_different_lengths_are_padded_with_zeros_and_empty_texts() -> None:
    from heed.cli.verify_endpoint import _joined

    first = {"logits": np.ones((2, 1, 3), np.float32), "labels": np.array([["A"], ["B"]], object)}
    second = {"logits": np.ones((1, 2, 3), np.float32), "labels": np.array([["A", "B"]], object)}
    joined = _joined(first, second)
    assert joined["logits"].tolist() == [[[1] * 3, [0] * 3]] * 2 + [[[1] * 3, [1] * 3]]
    assert joined["labels"].tolist() == [["A", ""], ["B", ""], ["A", "B"]]
