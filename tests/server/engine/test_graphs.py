"""Which graph computes a sequence: by its own span, whoever stands beside it. The graphs are made by hand."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from heed.bundle import BundleError, Manifest
from heed.bundle.files import BundleFiles
from heed.bundle.manifest import Graph, PositionRule
from heed.bundle.sequence_packing import Arrays, Bools, TokenSequence, token_sequence
from heed.server.engine.graph_runner import Graphs
from heed.server.engine.model import Model
from heed.server.errors import NotFinite
from heed.server.repository.warmup import random_sequence
from tests.server.support import manifest_of

COLUMN = PositionRule(kind="column")


def save_scaled(path: Path, scale: float) -> None:
    """A graph whose hidden states are the features, scaled, and whose vector is that of slot 0."""
    nodes = [
        helper.make_node("Mul", ["features", "scale"], ["last_hidden_state"]),
        helper.make_node("Gather", ["slots", "zero"], ["first_B"], axis=1),
        helper.make_node("Gather", ["last_hidden_state", "first_B"], ["sentence_embedding"]),
    ]
    constants = [
        helper.make_tensor("scale", TensorProto.FLOAT, [], [scale]),
        helper.make_tensor("zero", TensorProto.INT64, [], [0]),
    ]
    inputs = [
        helper.make_tensor_value_info("features", TensorProto.FLOAT, ["tokens", 2]),
        helper.make_tensor_value_info("slots", TensorProto.INT64, ["batch", "length"]),
    ]
    outputs = [
        helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["tokens", 2]),
        helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["batch", 2]),
    ]
    graph = helper.make_graph(nodes, "scaled", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)


OUTPUTS = ["last_hidden_state", "sentence_embedding"]
GRAPHS = [
    Graph(precision="fp32", file="long.onnx", outputs=OUTPUTS),
    Graph(precision="fp32", file="short.onnx", outputs=OUTPUTS, longest=4),
]


def made(aligned: bool = True, graphs: list[Graph] = GRAPHS) -> Manifest:
    return manifest_of("features", outputs=OUTPUTS, aligned=aligned, graphs=graphs)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Short sequences are multiplied by 10, long ones by 100."""
    save_scaled(tmp_path / "short.onnx", 10)
    save_scaled(tmp_path / "long.onnx", 100)
    return tmp_path


def row(value: float, real: Bools) -> TokenSequence:
    features = np.full((len(real), 2), value, np.float32)
    return token_sequence(COLUMN, {"features": features}, real)


def whole(value: float, length: int) -> TokenSequence:
    return row(value, np.ones(length, np.bool_))


def test_each_sequence_goes_to_the_graph_for_its_span_and_comes_back_in_order(folder: Path) -> None:
    graphs = Graphs(BundleFiles(folder), made(), "fp32", "answers", "cpu")
    lengths = [3, 9, 4, 5, 1, 40]
    answers = graphs.run([whole(number, length) for number, length in enumerate(lengths)])
    for number, (length, answer) in enumerate(zip(lengths, answers, strict=True)):
        expected = number * (10 if length <= 4 else 100)
        assert answer["last_hidden_state"].tolist() == [[expected] * 2] * length
        assert answer["sentence_embedding"].tolist() == [expected] * 2


@pytest.mark.parametrize(("aligned", "scale"), [(True, 100), (False, 10)])
def test_where_columns_count_a_span_reaches_to_the_last_real_column(folder: Path, aligned: bool, scale: int) -> None:
    far = row(1, np.array([True, False, False, False, False, True]))
    (answer,) = Graphs(BundleFiles(folder), made(aligned), "fp32", "answers", "cpu").run([far])
    assert answer["sentence_embedding"].tolist() == [scale] * 2


def test_a_graph_of_other_outputs_is_refused(folder: Path) -> None:
    other = [graph.model_copy(update={"outputs": OUTPUTS[:1]}) for graph in GRAPHS]
    with pytest.raises(BundleError, match=r"long\.onnx computes .*, the manifest says \['last_hidden_state'\]"):
        Graphs(BundleFiles(folder), made(graphs=other), "fp32", "answers", "cpu")


def test_a_missing_graph_is_named(folder: Path) -> None:
    (folder / "long.onnx").unlink()
    with pytest.raises(BundleError, match=r"long\.onnx is missing"):
        Graphs(BundleFiles(folder), made(), "fp32", "answers", "cpu")


def test_a_kind_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(BundleError, match="made has no fp32 graph of attentions, only fp32 answers, fp32 answers"):
        Graphs(BundleFiles(folder), made(), "fp32", "attentions", "cpu")


def rows_of(model: Model) -> list[TokenSequence]:
    random = np.random.default_rng(0)
    return [random_sequence(model.manifest, length, random) for length in (1, 1, 2, 9, 16)]


@pytest.mark.parametrize("kernels", [True, False])
def test_what_is_told_of_rows_has_the_same_bits_whatever_else_is_asked_for(
    tiny_cls_bundle: Path, kernels: bool
) -> None:
    model = Model(tiny_cls_bundle, "cpu", kernels=kernels)
    rows, of_rows = rows_of(model), {"sentence_embedding"}
    whole = [answer["sentence_embedding"].tobytes() for answer in model.graphs.run(rows)]
    assert [answer["sentence_embedding"].tobytes() for answer in model.graphs.run(rows, of_rows)] == whole
    assert [model.graphs.run([row], of_rows)[0]["sentence_embedding"].tobytes() for row in rows] == whole
    assert [model.graphs.run([row])[0]["sentence_embedding"].tobytes() for row in rows] == whole


@pytest.mark.parametrize(
    ("outputs", "kept"),
    [
        ((), 29),
        (("last_hidden_state",), 29),
        (("sentence_embedding", "last_hidden_state"), 29),
        (("sentence_embedding",), 5),
    ],
)
def test_tokens_that_nobody_asks_for_are_left_out_of_the_last_layer(
    tiny_cls_bundle: Path, monkeypatch: pytest.MonkeyPatch, outputs: tuple[str, ...], kept: int
) -> None:
    model = Model(tiny_cls_bundle, "cpu")
    seen, run = list[int](), model.session.run

    def noted(feeds: Arrays, names: Collection[str] = ()) -> Arrays:
        seen.append(len(feeds["kept"]))
        return run(feeds, names)

    monkeypatch.setattr(model.session, "run", noted)
    answers = model.graphs.run(rows_of(model), outputs)
    assert seen == [kept]
    assert all(set(answer) == set(outputs or ["last_hidden_state", "sentence_embedding"]) for answer in answers)


def test_the_contract_is_compared_in_both_ways(tiny_cls_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(tiny_cls_bundle, "cpu")
    assert all(finding.holds for finding in model.check_contract(everything=False))
    run = model.graphs.run

    def wrong_for_rows(
        group: list[TokenSequence], outputs: frozenset[str] = frozenset()
    ) -> list[dict[str, np.ndarray]]:
        return [{name: values + 1e-3 * bool(outputs) for name, values in one.items()} for one in run(group, outputs)]

    monkeypatch.setattr(model.graphs, "run", wrong_for_rows)
    broken = {finding.output for finding in model.check_contract(everything=False) if not finding.holds}
    assert broken == {"sentence_embedding"}


def test_a_model_that_reads_every_token_is_computed_in_one_way(tiny_bundle: Path) -> None:
    model = Model(tiny_bundle, "cpu")
    assert model.graphs.output_sets == [frozenset()]
    assert "kept" not in model.session.inputs


@pytest.mark.parametrize("outputs", [(), ("sentence_embedding",)])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_missing_in_the_answer_to_its_own_row(
    tiny_cls_bundle: Path, monkeypatch: pytest.MonkeyPatch, outputs: tuple[str, ...], value: float
) -> None:
    model = Model(tiny_cls_bundle, "cpu")
    rows, run = rows_of(model), model.session.run
    before = model.graphs.run(rows, outputs)

    def overflowing(feeds: Arrays, names: Collection[str] = ()) -> Arrays:
        computed = run(feeds, names)
        computed["sentence_embedding"][2, 5] = value
        return computed

    monkeypatch.setattr(model.session, "run", overflowing)
    after = model.graphs.run(rows, outputs)
    assert after[2].keys() == before[2].keys() - {"sentence_embedding"}
    del before[2]["sentence_embedding"]
    for one, other in zip(before, after, strict=True):
        assert {name: array.tobytes() for name, array in one.items()} == {
            name: array.tobytes() for name, array in other.items()
        }
    ids = {"input_ids": np.array([[2, 5, 3]] * 4)}
    with pytest.raises(NotFinite, match="sentence_embedding of row 2 is NaN or infinite"):
        model.answer(ids, ["sentence_embedding"])
    assert set(model.answer(ids, ["last_hidden_state"])) == {"last_hidden_state"}
