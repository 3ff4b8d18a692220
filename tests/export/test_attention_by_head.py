"""Long rows of attention, head by head: the same bits as all heads at once, by a runtime without kernels."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import GraphProto, ModelProto, NodeProto

from heed.bundle.manifest import Graph, Precision
from heed.bundle.sequence_packing import Arrays, pack
from heed.export.passes import attention_by_head, pipeline
from heed.export.passes.attention_by_head import by_head_if_long
from heed.export.passes.pipeline import passes_for, run_passes
from heed.model import Encoder
from heed.model.config import AttentionConfig, EncoderConfig, FeedForwardConfig, LayerConfig, TokensConfig
from heed.server.engine.model import Model
from heed.server.engine.session import Session
from tests.bundles import export_graph
from tests.support import rewrite_graph

WHOLE_COLUMNS = 16


def by_head(model: ModelProto) -> ModelProto:
    (attention,) = (function for function in model.functions if function.name == "Attention")
    nodes = by_head_if_long(list(attention.node))
    del attention.node[:]
    attention.node.extend(nodes)
    return model


@pytest.fixture
def graphs(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A graph that computes all heads at once, and one that takes long rows head by head."""
    monkeypatch.setattr(attention_by_head, "WHOLE_COLUMNS", WHOLE_COLUMNS)
    shutil.copytree(tiny_bundle, tmp_path / "by-head")
    rewrite_graph(tmp_path / "by-head" / "model.fp32.onnx", by_head)
    return tiny_bundle / "model.fp32.onnx", tmp_path / "by-head" / "model.fp32.onnx"


def feeds(bundle: Path, masks: list[list[int]]) -> Arrays:
    mask = np.array(masks)
    ids = np.random.default_rng(0).integers(0, 50, mask.shape)
    rows = Model(bundle, "cpu").preprocessor.preprocess({"input_ids": ids, "attention_mask": mask}).rows
    return pack(rows)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 40])
def test_answers_keep_their_bits(graphs: tuple[Path, Path], length: int) -> None:
    at_once, one_by_one = (Session(path, "cpu", kernels=False) for path in graphs)
    for masks in ([[1] * length], [[1] * length, [1] * (length // 2 + 1) + [0] * (length - length // 2 - 1)]):
        batch = feeds(graphs[0].parent, masks)
        answers = one_by_one.run(batch)
        for name, expected in at_once.run(batch).items():
            np.testing.assert_array_equal(answers[name], expected)


def test_the_choice_is_by_the_length_of_the_longest_row(graphs: tuple[Path, Path]) -> None:
    """What is wrong head by head shows in long rows alone."""
    at_once = Session(graphs[0], "cpu", kernels=False)
    rewrite_graph(graphs[1], scaled_the_wrong_way)
    one_by_one = Session(graphs[1], "cpu", kernels=False)
    for length, is_long in ((WHOLE_COLUMNS, False), (WHOLE_COLUMNS + 1, True)):
        batch = feeds(graphs[0].parent, [[1] * length])
        expected, answers = at_once.run(batch), one_by_one.run(batch)
        assert all(np.array_equal(answers[name], expected[name]) for name in expected) != is_long


def scaled_the_wrong_way(model: ModelProto) -> ModelProto:
    (attention,) = (function for function in model.functions if function.name == "Attention")
    (choice,) = (node for node in attention.node if node.op_type == "If")
    (scan,) = (node for node in graph_attribute(choice, "then_branch").node if node.op_type == "Scan")
    (scaling,) = (node for node in graph_attribute(scan, "body").node if node.op_type == "Mul")
    scaling.op_type = "Div"
    return model


def graph_attribute(node: NodeProto, name: str) -> GraphProto:
    return next(attribute.g for attribute in node.attribute if attribute.name == name)


@pytest.mark.parametrize("longest", [WHOLE_COLUMNS, WHOLE_COLUMNS + 1])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_only_models_of_long_rows_have_a_choice(
    longest: int, precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "WHOLE_COLUMNS", WHOLE_COLUMNS)
    layer = LayerConfig(AttentionConfig(2), FeedForwardConfig(8))
    encoder = Encoder(EncoderConfig(TokensConfig(9), 4, (layer,), longest)).eval()
    export_graph(encoder, tmp_path / "graph.onnx")
    graph = Graph(precision=precision, file="graph.onnx", outputs=encoder.outputs)
    model = run_passes(onnx.load(tmp_path / "graph.onnx"), passes_for(graph, encoder))
    operators = {node.op_type for function in model.functions for node in function.node}
    assert ("If" in operators) == (longest > WHOLE_COLUMNS)
