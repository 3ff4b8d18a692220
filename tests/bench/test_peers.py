import dataclasses
import sys
from dataclasses import dataclass
from math import nan
from pathlib import Path

import numpy as np
import onnx
import pytest
from rich.console import Console

from bench.peers.__main__ import figures, table
from bench.peers.catalog import BARE, HEED, PEERS, Peer
from bench.peers.comparison import Outcome, choose, compare, measure
from bench.peers.install import Failure, install, reason_in
from bench.peers.running import Place, Round, Served, embedding
from heed.load.driver import Load
from heed.load.workloads import WORKLOADS, id_requests
from heed.protos import open_inference_pb2 as pb

CHECKED = 6
VOCABULARY = 100
MEAN = """<ir_version: 10, opset_import: ["": 20]>
mean (int64[B, L] input_ids, int64[B, L] attention_mask, int64[B, L] token_type_ids) => (float[B, 4] sentence_embedding)
<int64[1] rows = {1}, int64[1] last = {2}>
{
  embeddings = Gather(table, input_ids)
  real = Cast<to = 1>(attention_mask)
  weights = Unsqueeze(real, last)
  kept = Mul(embeddings, weights)
  sums = ReduceSum<keepdims = 0>(kept, rows)
  counts = ReduceSum<keepdims = 0>(weights, rows)
  sentence_embedding = Div(sums, counts)
}"""

# The plain server, in this interpreter.
GRPCIO = dataclasses.replace(PEERS[0], settings={"two threads": ("--workers", "2")}, requirements=None)


@dataclass(frozen=True)
class Tiny:
    """A graph of embeddings and their mean, some requests, and the answers `[N, D]` to them by hand in float64."""

    place: Place
    reference_ND: np.ndarray


@pytest.fixture(scope="module")
def tiny_graph(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("peers")
    table_VD = np.random.default_rng(0).standard_normal((VOCABULARY, 4), np.float32)
    model = onnx.parser.parse_model(MEAN)
    model.graph.initializer.append(onnx.numpy_helper.from_array(table_VD, "table"))
    onnx.save(model, folder / "padded.onnx")
    requests = id_requests(WORKLOADS["queries"], VOCABULARY, 2, CHECKED)
    place = Place(folder, folder, folder, folder / "padded.onnx", requests, callers=4)
    place.save_requests()
    return Tiny(place, np.stack([table_VD[request["input_ids"][0]].mean(0, dtype=np.float64) for request in requests]))


@pytest.fixture(autouse=True)
def hardly_warmed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.peers.comparison.WARM_UP_SECONDS", 0.1)


def measured(name: str, *rates: float, memory: float = 1.0) -> Outcome:
    rounds = [Round(rate, p50=1 / rate, p99=2 / rate, cpu=0.5, memory=memory) for rate in rates]
    return Outcome(Peer(name, (), {}), setting="as it comes", error=1e-7, rounds=rounds)


def printed(outcomes: list[Outcome]) -> str:
    console = Console(width=400)
    with console.capture() as capture:
        console.print(table(outcomes))
    return capture.get()


def test_a_plain_server_is_checked_and_measured(tiny_graph: Tiny) -> None:
    (outcome,) = compare([GRPCIO], tiny_graph.place, tiny_graph.reference_ND, rounds=1, seconds=0.3)
    assert (outcome.reason, outcome.setting) == ("", "two threads")
    assert 0 < outcome.error < 1e-6
    (only,) = outcome.rounds
    assert only.rate > 10
    assert 0 < only.p50 <= only.p99
    assert 0 < only.cpu < 1
    assert only.memory > 10e6


def test_a_loop_is_checked_and_measured(tiny_graph: Tiny) -> None:
    loop = dataclasses.replace(BARE, settings=dict(list(BARE.settings.items())[:1]))
    (outcome,) = compare([loop], tiny_graph.place, tiny_graph.reference_ND, rounds=1, seconds=0.3)
    assert outcome.reason == ""
    assert 0 < outcome.error < 1e-6
    assert outcome.rounds[0].rate > 10
    assert figures(outcome)["rounds"][0]["p50"] is None  # nobody waits for a loop


def test_wrong_answers_get_no_figures(tiny_graph: Tiny) -> None:
    wrong_ND = tiny_graph.reference_ND + 2e-5
    (outcome,) = compare([GRPCIO], tiny_graph.place, wrong_ND, rounds=1, seconds=0.3)
    assert outcome.reason == "answers are off by 2.0e-05, 1e-05 allowed"
    assert outcome.rounds == []
    shown = printed([measured(BARE.name, 1.0), measured(HEED.name, 1.0), outcome])
    assert "no result: answers are off by 2.0e-05" in shown


def test_a_nan_is_a_wrong_answer(tiny_graph: Tiny) -> None:
    outcome = Outcome(GRPCIO, python=Path(sys.executable))
    choose(outcome, tiny_graph.place, np.full_like(tiny_graph.reference_ND, nan), seconds=0.1)
    assert outcome.reason.startswith("answers are off by nan")


def test_an_embedding_is_read_from_raw_and_from_typed_contents() -> None:
    named = pb.ModelInferResponse.InferOutputTensor(name="sentence_embedding", datatype="FP32", shape=[1, 2])
    raw = pb.ModelInferResponse(outputs=[named], raw_output_contents=[np.array([1, 2], np.float32).tobytes()])
    typed = pb.ModelInferResponse(outputs=[named])
    typed.outputs[0].contents.fp32_contents.extend([3, 4])
    assert embedding(raw.SerializeToString()).tolist() == [1, 2]
    assert embedding(typed.SerializeToString()).tolist() == [3, 4]
    assert embedding(pb.ModelInferResponse().SerializeToString()).tolist() == []


def test_a_setting_that_does_not_start_is_told_and_another_one_kept(tiny_graph: Tiny) -> None:
    settings = {"no number": ("--workers", "two"), **GRPCIO.settings}
    outcome = Outcome(dataclasses.replace(GRPCIO, settings=settings), python=Path(sys.executable))
    choose(outcome, tiny_graph.place, tiny_graph.reference_ND, seconds=0.1)
    assert outcome.setting == "two threads"
    assert "invalid int value: 'two'" in str(outcome.tried["no number"])
    assert outcome.reason == ""


def test_a_peer_that_pip_cannot_install_is_told_with_pips_reason(tmp_path: Path, tiny_graph: Tiny) -> None:
    (tmp_path / "requirements.txt").write_text("./nothing-here\n")
    peer = dataclasses.replace(GRPCIO, name="absent", requirements=tmp_path / "requirements.txt")
    log = tmp_path / "pip.log"
    with pytest.raises(Failure) as caught:
        install(peer, tmp_path / "venv", log)
    assert "nothing-here" in caught.value.reason
    assert caught.value.log == log
    assert caught.value.reason in log.read_text()


def test_a_peer_without_a_result_keeps_its_row_and_its_log(tmp_path: Path) -> None:
    absent = measured("absent", 1.0)
    absent.fail(Failure("ERROR: no [wheel] for this Python", tmp_path / "pip.log"))
    shown = printed([measured(BARE.name, 1.0), measured(HEED.name, 1.0), absent])
    assert "absent" in shown
    assert "no result: ERROR: no [wheel] for this Python" in shown
    assert figures(absent)["rounds"] == []
    assert figures(absent)["log"] == str(tmp_path / "pip.log")


def test_a_round_without_answers_is_repeated_and_told(tiny_graph: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = iter([Failure("calls without an answer: 1 INTERNAL", tiny_graph.place.log("grpcio")), None, None])
    load = Served._load

    def breaks_once(running: Served, seconds: float) -> Load:
        if failure := next(loads):
            raise failure
        return load(running, seconds)

    monkeypatch.setattr(Served, "_load", breaks_once)
    outcome = Outcome(GRPCIO, python=Path(sys.executable), setting="two threads", error=1e-7)
    measure(outcome, tiny_graph.place, seconds=0.2)
    assert len(outcome.rounds) == 1
    assert outcome.broken == ["calls without an answer: 1 INTERNAL"]
    shown = printed([measured(BARE.name, 1.0), measured(HEED.name, 1.0), outcome])
    assert "rounds repeated, for want of answers: 1" in shown


def test_ratios_are_of_the_same_round() -> None:
    bare, heed = measured(BARE.name, 10.0, 20.0, 40.0), measured(HEED.name, 20.0, 30.0, 160.0, memory=2.0)
    lines = printed([bare, heed, measured("other", 10.0, 10.0, 10.0, memory=6.0)]).splitlines()
    by_heed, spread = next((line, lines[at + 1]) for at, line in enumerate(lines) if line.startswith("heed"))
    assert by_heed.split() == ["heed", "2.00", "1.00", "1.00", "1.00", "1.00", "1.00", "1.0e-07"]
    assert "(1.50 … 4.00)" in spread
    other = next(line for line in lines if line.startswith("other"))
    assert other.split() == ["other", "0.50", "3.00", "3.00", "3.00", "1.00", "3.00", "1.0e-07"]


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("Collecting x\nERROR: no such thing\nWARNING: pip is old\n", "ERROR: no such thing"),
        ("ValueError: one\n  at a line\nRuntimeError: two\n\n", "RuntimeError: two"),
        ("it is over\n", "it is over"),
        ("", "it said nothing"),
    ],
)
def test_the_reason_is_the_last_error_in_the_log(tmp_path: Path, log: str, expected: str) -> None:
    path = tmp_path / "log"
    path.write_text(log)
    assert reason_in(path) == expected
