"""What measures CUDA, tried on the CPU. The kernels themselves are stood in for, by what their documentation says."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.bare import Request
from bench.gpu import exporting, prove, rates, rows, serve, speed, subjects, ways
from bench.gpu.attend import sdpa, swapped
from bench.gpu.bound import Bound
from bench.gpu.rows import Row, Skipped, attempted
from bench.gpu.speed import Plan, Subject, Way
from bench.gpu.ways import EMBEDDING, Asked
from heed.bundle.contract import BUDGETS
from heed.bundle.sequence_packing import Arrays, pack
from heed.model import Encoder, load_checkpoint
from heed.model.config import AttentionConfig
from heed.model.patterns import Window
from heed.server.engine.session import CPU, CUDA, Session, without_driver

PLAN = Plan("cpu", {"sentences": 12}, tokens=(40, 200), rows=(3,), rounds=2)
HEED = Way("heed, fp32", partial(speed._run, precision="fp32"), precision="fp32", must=True)


@pytest.fixture(scope="module")
def subject(tiny: Path, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A model whose bundle is there already."""
    folder = tmp_path_factory.mktemp("graphs")
    (folder / "bundle").symlink_to(tiny_bundle)
    done = subprocess.Popen(["true"])
    written = {"bundle": exporting.Writing("bundle", done, folder / "log")}
    return Subject("tiny", load_checkpoint(tiny).encoder, "cpu", folder, written)


@pytest.fixture(scope="module")
def asked(subject: Subject) -> Asked:
    return speed.asked(subject, "sentences", 12)


# --- The script ------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_the_whole_script_holds_on_the_cpu_and_says_what_it_skips(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "bench.gpu", "--device", "cpu", "--json", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {(row["part"], row["what"]): row for row in json.loads(report.read_text())}
    held = {what for (_, what), row in found.items() if row["holds"]}
    assert held >= {"fp32, contract", "fp32, answers", "fp32, not on CPUExecutionProvider", "heed", "heed, fp32"}
    skipped = {what for (_, what), row in found.items() if "skipped: for CUDA only" in row["found"]}
    assert skipped >= {"torch, end to end, varlen_attn", "heed, norms' sums in float16", "CUDA graph"}
    assert not [row for row in found.values() if "failed" in row["found"]]
    assert found["tiny, sentences", "torch, padded, SDPA"]["figures"]["sequences/s"] > 0


def test_cuda_where_there_is_none_is_reported_and_ends_with_1() -> None:
    if not without_driver():
        pytest.skip("there is a GPU here")
    done = subprocess.run([sys.executable, "-m", "bench.gpu"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "✗  machine  cuda  failed: RuntimeError: " in done.stdout


def test_an_error_takes_nothing_else_along_and_only_what_must_hold_decides() -> None:
    def breaks() -> Iterator[Row]:
        yield Row("part", "first", "measured", True)
        raise ValueError("no such kernel\nand a long story")

    told = list(attempted("part", "second", breaks))
    assert [(row.what, row.found) for row in told] == [
        ("first", "measured"),
        ("second", "failed: ValueError: no such kernel"),
    ]
    assert rows.holds(told)
    assert not rows.holds(attempted("part", "second", breaks, must=True))
    assert not rows.holds([Row("part", "only told", "")])


def test_the_summary_has_a_line_for_each_way_and_a_column_for_each_contest() -> None:
    speeds = {"sequences/s": 1234.0, "FLOP/s": 1e12}
    found = [Row("a", "fast", "", True, speeds), Row("b", "fast", "", True, speeds), Row("b", "slow", "", True, speeds)]
    summary = rows.summary([*found, Row("a", "skipped", "")])
    assert [column.header for column in summary.columns] == ["sequences/s", "a", "b"]
    assert [list(column.cells) for column in summary.columns] == [["fast", "slow"], ["1,234", ""], ["1,234", "1,234"]]


def test_a_graph_that_was_not_written_says_why(tmp_path: Path) -> None:
    writing = exporting.start(str(tmp_path / "nowhere"), tmp_path / "graphs", ("padded",))
    with pytest.raises(RuntimeError, match=r"padded was not exported: .*nowhere is not a folder"):
        writing["padded"].wait()


# --- The contest -----------------------------------------------------------------------------------------------------


def test_a_right_way_is_timed_at_every_size(subject: Subject) -> None:
    (row,) = speed.contest(subject, "sentences", [HEED], PLAN)
    assert (row.part, row.what, row.holds) == ("tiny, sentences", "heed, fp32", True)
    assert set(row.figures) == {"40 tokens", "200 tokens", "sequences/s", "FLOP/s"}
    assert row.figures["sequences/s"] == max(row.figures["40 tokens"], row.figures["200 tokens"])


def test_wrong_answers_are_told_and_never_timed(subject: Subject) -> None:
    def mixed_up(subject: Subject) -> ways.Make:
        right = HEED.make(subject)
        return lambda asked, size: lambda: np.roll(right(asked, size)(), 1, axis=0)

    must, may = (Way("mixed up", mixed_up, precision="fp32", must=must) for must in (True, False))
    for way, held in ((must, False), (may, None)):
        found = list(speed.contest(subject, "sentences", [way, HEED], PLAN))
        assert [(row.what, row.holds) for row in found] == [("mixed up", held)] * 2 + [("heed, fp32", True)]
        assert "off by" in found[0].found


def test_a_way_that_cannot_be_tried_leaves_the_others(subject: Subject) -> None:
    way = Way("no file", lambda subject: ways.padded_graph(Path("nowhere.onnx"), "cpu", 0))
    first, second = speed.contest(subject, "sentences", [way, HEED], PLAN)
    assert first.found.startswith("failed: ")
    assert (first.holds, second.holds) == (None, True)


def test_groups_have_every_member_once_and_keep_to_their_size(asked: Asked) -> None:
    for tokens in (1, 40, 100, 10_000):
        groups = [asked.members[group] for group in asked.groups(tokens)]
        assert [member for group in groups for member in group] == list(asked.members)
        assert all(sum(map(len, group)) <= tokens or len(group) == 1 for group in groups)
    assert [len(asked.members[batch]) for batch in asked.batches(5)] == [5, 5, 2]


def test_work_counts_two_operations_a_weight_and_all_pairs() -> None:
    encoder = Encoder(subjects.CONFIGS["tiny"])
    layer = 4 * 64 * 64 + 2 * 64 * 256  # projections and feed-forward
    pairs = 2 * 2 * 64  # two products, each with an addition, of one query with one key
    expected = 2 * (2 * layer * (3 + 5) + pairs * (3 * 3 + 5 * 5))
    assert subjects.work(encoder).of([3, 5]) == expected


# --- Binding, placement, rates, serving ------------------------------------------------------------------------------


def test_bound_and_plain_runs_give_equal_bits_whatever_was_in_the_buffers_before(
    subject: Subject, asked: Asked
) -> None:
    graph = subject.own_graph("fp32")
    plain = Session(graph, "cpu", kernels=False)

    def shapes(feeds: Arrays) -> dict[str, tuple[int, ...]]:
        vector = (len(feeds["slots"]), 32)
        return {"last_hidden_state": (len(feeds["rows"]), 32), EMBEDDING: vector, "unnormalized_embedding": vector}

    session = Bound(graph, "cpu", shapes)
    groups = [asked.members[group] for group in (slice(0, 3), slice(3, 12), slice(1, 2), slice(0, 12), slice(5, 7))]
    found = [session.run(pack(group)) for group in groups]
    for group, answers in zip(groups, found, strict=True):
        expected = plain.run(pack(group))
        assert set(answers) == set(expected)
        assert all(np.array_equal(answers[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "name",
    ["MatMul", "FusedMatMul", "Gemm", "SkipLayerNormalization", "BiasGelu", "Softmax", "PackedMultiHeadAttention"],
)
def test_what_costs_time_may_not_run_elsewhere(name: str, subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    light = {("Shape", "somewhere"): 3, ("Gather", CPU): 5}
    for placed, holds in ((light, True), (light | {(name, "somewhere"): 1}, False), ({}, False)):
        monkeypatch.setattr(prove, "placed", lambda model, provider, placed=placed: Counter(placed))
        (row,) = prove.placement(subject, "fp32")
        assert row.holds is holds
    assert prove.is_heavy(name)


def test_the_profile_names_every_node_once(subject: Subject) -> None:
    nodes = prove.placed(subject.model("fp32"), CPU)
    assert {provider for _, provider in nodes} == {CPU}
    assert nodes["Softmax", CPU] == len(subject.encoder.blocks)


def test_rates_are_of_the_models_own_shapes() -> None:
    found = list(rates.matrix_rates({"tiny": 16}, largest=32, tokens=8, device="cpu", rounds=1))
    assert [row.what for row in found] == [
        "32³",
        *(f"tiny, {what}" for what in ("attention", "feed-forward up", "feed-forward down")),
    ]
    assert all(rate > 0 for row in found for rate in row.figures.values())


def test_rows_of_one_request_are_padded_and_masked() -> None:
    single: list[Request] = [
        {"input_ids": np.full((1, length), 7), "attention_mask": np.ones((1, length), np.int64)} for length in (2, 3, 1)
    ]
    two, one = serve.together(single, 2)
    assert two["input_ids"].tolist() == [[7, 7, 0], [7, 7, 7]]
    assert two["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert one["input_ids"].tolist() == [[7]]


def test_a_server_that_ends_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="bundle"),
        serve.served(tmp_path, "cpu", "fp32", 0, {"input_ids": np.ones((1, 2))}),
    ):
        pass


# --- Other ways to attend --------------------------------------------------------------------------------------------


def row_by_row(
    query: Tensor, key: Tensor, value: Tensor, ends: Tensor, key_ends: Tensor, longest: int, key_longest: int
) -> Tensor:
    """What `varlen_attn` computes, `[T, N, H]`, in float32."""
    assert longest == key_longest == ends.diff().max()
    assert (ends is key_ends, ends.dtype, query.dtype) == (True, torch.int32, torch.float16)

    def attend(start: int, end: int) -> Tensor:
        q, k, v = (each[start:end].float().transpose(0, 1) for each in (query, key, value))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(0, 1)

    return torch.cat([attend(start, end) for start, end in pairwise(ends.tolist())]).half()


@pytest.mark.parametrize("tokens", [1, 60, 10_000])
def test_torch_end_to_end_answers_as_the_reference(
    tokens: int, subject: Subject, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", row_by_row)
    answers = ways.torch_end_to_end(subject.encoder, "cpu")(asked, tokens)()
    reference = ways.reference(subject.encoder, "cpu")(asked, 4)()
    assert BUDGETS["fp16", CUDA].of(EMBEDDING, reference).used(answers, reference) < 1e-5


def test_other_attention_than_plain_softmax_is_skipped() -> None:
    config = subjects.CONFIGS["tiny"]
    layer = replace(config.layers[0], attention=AttentionConfig(2, Window(3)))
    with pytest.raises(Skipped, match="not plain softmax"):
        swapped(Encoder(replace(config, layers=(layer,))), sdpa)
