"""int8 over gRPC: what it answers, how far that is from transformers, and that nobody gets it unasked."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from heed.client import Answer, Client
from tests.contract.support import Oracle, Requests, assert_close, pads_in_the_middle, pads_left, pads_right
from tests.support import Running, run_server, start_server

HIDDEN, EMBEDDING = 0.99, 0.995  # the least cosine of a vector


@pytest.fixture(scope="module")
def int8_server(precise_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("int8")
    with run_server(precise_bundle, folder / "log", "--precision", "int8") as server:
        yield server


@pytest.fixture(scope="module")
def int8(int8_server: Running) -> Iterator[Client]:
    with Client(int8_server.address, "precise") as client:
        yield client


def cosines(answer: np.ndarray, reference: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(answer, axis=-1) * np.linalg.norm(reference, axis=-1)
    return np.asarray((answer * reference).sum(-1) / lengths)


def assert_near(answer: Answer, oracle: Oracle, request: dict[str, np.ndarray]) -> None:
    reference = oracle.answer(request)
    real = request["attention_mask"] == 1
    assert cosines(answer["last_hidden_state"][real], reference["last_hidden_state"][real]).min() >= HIDDEN
    assert not answer["last_hidden_state"][~real].any()
    assert cosines(answer["sentence_embedding"], reference["sentence_embedding"]).min() >= EMBEDDING


def test_int8_answers_nearly_as_transformers_and_says_that_it_is_int8(int8: Client, tiny: Path) -> None:
    oracle, requests = Oracle(tiny, "mean"), Requests(vocabulary=100, seed=1)
    masks = [pads([1, 2, 3, 8, 21, 40]) for pads in (pads_right, pads_left)]
    masks += [pads_in_the_middle([1, 6, 17]), requests.holes(4, 33), pads_right([40])]
    for mask in masks:
        request = requests.of(mask)
        answer = int8.infer(request)
        assert answer.precision == "int8"
        assert answer.provider == "CPUExecutionProvider"
        assert_near(answer, oracle, request)


def test_int8_is_told_from_float32(int8: Client, tiny: Path) -> None:
    """A control: what `assert_near` lets pass is no float32."""
    request = Requests(vocabulary=100, seed=2).of(pads_right([30]))
    with pytest.raises(AssertionError, match="is off by"):
        assert_close(int8.infer(request).outputs, Oracle(tiny, "mean").answer(request), "int8")


def test_neighbours_do_not_change_a_bit_of_int8(int8: Client) -> None:
    requests = Requests(vocabulary=100, seed=3)
    request = requests.of(pads_right(requests.lengths(32, 40)))
    together = int8.infer(request)["sentence_embedding"]
    for row in range(32):
        alone = int8.infer({name: array[row : row + 1] for name, array in request.items()})
        assert alone["sentence_embedding"].tobytes() == together[row : row + 1].tobytes()


def test_attention_weights_are_int8_too(int8: Client) -> None:
    answer = int8.infer(Requests(vocabulary=100, seed=4).of(pads_right([9])), ["attentions"])
    assert answer.precision == "int8"
    np.testing.assert_allclose(answer["attentions"].sum(-1), 1, atol=1e-5)


def test_the_start_says_what_is_served_and_how_groups_change_it(int8_server: Running) -> None:
    log = " ".join(int8_server.log.read_text().split())  # lines are as wide as the terminal
    assert "precise version 1, int8" in log
    assert "the same bits alone and in any batch" in log


def test_float32_is_served_unless_asked_otherwise(precise_bundle: Path, tiny: Path, tmp_path: Path) -> None:
    request = Requests(vocabulary=100, seed=5).of(pads_right([30, 4]))
    with run_server(precise_bundle, tmp_path / "log") as server, Client(server.address, "precise") as client:
        answer = client.infer(request)
    assert answer.precision == "fp32"
    assert_close(answer.outputs, Oracle(tiny, "mean").answer(request), "the default")


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--precision", "fp16", "--device", "cpu"], "fp16 is for CUDA"),
        (["--precision", "int8", "--device", "cuda"], "int8 is for the CPU"),
    ],
)
def test_a_precision_on_another_device_is_no_server(
    precise_bundle: Path, tmp_path: Path, flags: list[str], reason: str
) -> None:
    server = start_server(precise_bundle, tmp_path / "log", *flags)
    assert server.process.wait(60) == 2
    assert reason in server.log.read_text()


def test_a_precision_that_the_bundle_has_not_is_no_server(tiny_bundle: Path, tmp_path: Path) -> None:
    server = start_server(tiny_bundle, tmp_path / "log", "--precision", "int8")
    assert server.process.wait(60) == 2
    assert "tiny has no int8 graph of answers" in server.log.read_text()
