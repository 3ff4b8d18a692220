"""Attention weights over gRPC: right, on request only, proven before the first answer, and nobody else's burden."""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from grpc import StatusCode
from transformers import AutoModel

from heed.bundle.contract import CONTRACT
from heed.bundle.digests import write_digests
from heed.bundle.manifest import MANIFEST
from heed.client import CallError, Client
from tests.contract.support import BUDGET, Requests, pads_left, pads_right
from tests.support import Running, run_server, start_server

PROVEN = "attention weights of tiny: equal to the reference"  # in the server's log


def weights_of_transformers(source: Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """`[B, layers, N, L, L]` in float64, zeros at padding."""
    network = AutoModel.from_pretrained(source, dtype=torch.float64, attn_implementation="eager").eval()
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    with torch.no_grad():
        weights = np.stack([layer.numpy() for layer in network(**tensors, output_attentions=True).attentions], 1)
    real_BL = inputs["attention_mask"].astype(bool)
    return np.where(real_BL[:, None, None, :, None], weights, 0.0)


@pytest.mark.parametrize("pads", [pads_right, pads_left])
def test_they_are_those_of_transformers(
    tiny: Path, tiny_server: Running, pads: Callable[[list[int]], np.ndarray]
) -> None:
    inputs = Requests(100, seed=3).of(pads([1, 40, 7, 22]))
    with Client(tiny_server.address, "tiny") as client:
        answer = client.infer(inputs, ["attentions", "last_hidden_state"])
        plain = client.infer(inputs, ["last_hidden_state"])
    expected = weights_of_transformers(tiny, inputs)
    assert answer["attentions"].shape == expected.shape == (4, 2, 4, 40, 40)
    assert np.abs(answer["attentions"] - expected).max() <= BUDGET
    masked = inputs["attention_mask"] == 0
    assert not answer["attentions"].transpose(0, 3, 4, 1, 2)[masked].any()  # queries
    assert not answer["attentions"].transpose(0, 4, 3, 1, 2)[masked].any()  # keys
    scale = max(1.0, float(np.abs(plain["last_hidden_state"]).max()))
    assert np.abs(answer["last_hidden_state"] - plain["last_hidden_state"]).max() <= 2 * BUDGET * scale


def test_they_come_with_the_words_of_a_text(tiny_server: Running) -> None:
    with Client(tiny_server.address, "tiny") as client:
        answer = client.infer({"text": ["the fox"]}, ["attentions", "tokens"])
    assert answer["tokens"].tolist() == [["[CLS]", "the", "fox", "[SEP]"]]
    np.testing.assert_allclose(answer["attentions"].sum(-1), 1, atol=1e-5)


def test_nobody_gets_them_unasked(tiny_server: Running) -> None:
    with Client(tiny_server.address, "tiny") as client:
        assert set(client.infer({"text": ["the fox"]}).outputs) == {"last_hidden_state", "sentence_embedding"}


def test_they_are_loaded_when_first_asked_for_and_others_are_served_meanwhile(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with run_server(tiny_bundle, log) as server, Client(server.address, "tiny") as client:
        expected = client.embed(["the fox"])
        assert PROVEN not in log.read_text()
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(client.infer, {"text": ["a dog"]}, ["attentions"]) for _ in range(4)]
            while not all(task.done() for task in asked):
                assert np.array_equal(client.embed(["the fox"]), expected)
        answers = [task.result()["attentions"] for task in asked]
        assert all(np.array_equal(answer, answers[0]) for answer in answers)
    assert log.read_text().count(PROVEN) == 1


def test_they_are_loaded_at_the_start_where_the_operator_says_so(tiny_bundle: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with run_server(tiny_bundle, log, "--attentions"):
        assert PROVEN in log.read_text()


def test_an_answer_that_no_message_holds_is_refused_beforehand(tiny_bundle: Path, tmp_path: Path) -> None:
    """A row of 40 tokens has 2 layers of 4 heads of 40 x 40 weights, 51,200 bytes; 25 of them are more than a MiB."""
    with (
        run_server(tiny_bundle, tmp_path / "log", "--max-message-mib", "1") as server,
        Client(server.address, "tiny") as client,
    ):
        assert client.infer({"input_ids": np.full((20, 40), 5)}, ["attentions"])["attentions"].shape[0] == 20
        with pytest.raises(
            CallError, match="the answer would have 1280000 bytes, more than a message holds"
        ) as refused:
            client.infer({"input_ids": np.full((25, 40), 5)}, ["attentions"])
        assert refused.value.code is StatusCode.INVALID_ARGUMENT
        assert "1048576" in refused.value.details


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_bundle, tmp_path / "tiny")


@pytest.fixture
def wrong(copy: Path) -> Path:
    """Whole, with right digests, and attention weights that are not the reference's."""
    with np.load(copy / CONTRACT) as arrays:
        edited = dict(arrays)
    name = next(name for name in edited if name.endswith("/out/attentions"))
    edited[name] = edited[name] + 0.001
    np.savez(copy / CONTRACT, **edited)
    write_digests(copy)
    return copy


def test_wrong_ones_are_never_given_and_all_else_is(wrong: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with run_server(wrong, log) as server, Client(server.address, "tiny") as client:
        for _ in range(2):
            with pytest.raises(CallError, match="the attention weights of tiny are not its reference's") as refused:
                client.infer({"text": ["the fox"]}, ["attentions"])
            assert refused.value.code is StatusCode.FAILED_PRECONDITION
        assert client.embed(["the fox"]).shape == (1, 32)
    assert "are not its reference's" in log.read_text()


def said_by_a_server_that_cannot_start(bundle: Path, log: Path, *flags: str) -> str:
    server = start_server(bundle, log, *flags)
    try:
        assert server.process.wait(60) == 2
    finally:
        server.process.kill()
        server.process.wait()
    return " ".join(log.read_text().split())


def test_wrong_ones_stop_a_start_that_was_to_load_them(wrong: Path, tmp_path: Path) -> None:
    said = said_by_a_server_that_cannot_start(wrong, tmp_path / "log", "--attentions")
    assert "error: the attention weights of tiny are not its reference's" in said
    assert "READY" not in said


def test_a_bundle_that_has_none_says_so(copy: Path, tmp_path: Path) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["outputs"] = [spec for spec in manifest["outputs"] if spec["name"] != "attentions"]
    manifest["graphs"] = [graph for graph in manifest["graphs"] if graph["kind"] != "attentions"]
    (copy / MANIFEST).write_text(json.dumps(manifest))
    write_digests(copy)
    said = said_by_a_server_that_cannot_start(copy, tmp_path / "first", "--attentions")
    assert "has no attention weights to serve; leave out --attentions" in said
    with (
        run_server(copy, tmp_path / "second") as server,
        Client(server.address, "tiny") as client,
        pytest.raises(CallError, match="output attentions is unknown; tiny gives last_hidden_state, sentence_emb"),
    ):
        client.infer({"text": ["the fox"]}, ["attentions"])
