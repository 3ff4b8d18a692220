"""The graph in operators that only CUDA has, computed here in numpy, by what their documentation says."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from math import erf
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from bench.gpu.subjects import CONFIGS, randomised
from heed.bundle.files import BundleFiles
from heed.bundle.manifest import PositionRule, Precision
from heed.bundle.sequence_packing import Arrays, TokenSequence, by_length, pack, token_sequence
from heed.export.passes.convert_to_float16 import convert_to_float16
from heed.export.passes.fuse_for_cuda import fuse_for_cuda
from heed.export.passes.outline_attention import outline_attention
from heed.export.passes.outline_linear import outline_linear
from heed.exporting import export_bundle
from heed.model import Encoder
from heed.model.attention_config import AttentionConfig
from heed.model.config import EncoderConfig, FeedForwardConfig, LayerConfig, LogBuckets, NormConfig
from heed.model.patterns import Causal, Window
from heed.server.engine.graph_runner import Graphs
from heed.server.engine.model import Model
from heed.server.engine.session import CPU, CUDA, Session, without_driver
from heed.server.errors import DeviceError
from tests.bundles import export_graph

LENGTHS = (3, 9, 1, 20)


class Operator(OpRun):
    """One of onnxruntime's own."""

    op_domain = "com.microsoft"


class PackedMultiHeadAttention(Operator):
    def _run(self, together, key, value, bias, places, ends, num_heads=None, scale=None):  # type: ignore[no-untyped-def]
        assert list(self.onnx_node.input[1:3]) == ["", ""]
        assert (places.dtype, ends.dtype, len(together)) == (np.int32, np.int32, ends[-1])
        batch, length = places.shape
        real = [
            row * length + column for row, (start, end) in enumerate(pairwise(ends)) for column in range(end - start)
        ]
        assert places.flatten()[: len(together)].tolist() == real
        assert sorted(places.flatten()) == list(range(batch * length))
        tokens, heads, three, width = together.shape
        assert (heads, three) == (num_heads, 3)
        by_role = together.transpose(2, 1, 0, 3) + bias.reshape(3, heads, 1, width)
        out = np.empty((tokens, heads, width), together.dtype)
        for start, end in pairwise(ends):
            query, keys, values = by_role[:, :, start:end]
            weights = np.exp(scale * query @ keys.swapaxes(1, 2))
            out[start:end] = (weights / weights.sum(-1, keepdims=True) @ values).swapaxes(0, 1)
        return (out.reshape(tokens, -1),)


class SkipLayerNormalization(Operator):
    def _run(self, x, skip, weight, shift, bias=None, epsilon=None):  # type: ignore[no-untyped-def]
        added = x + skip + (0 if bias is None else bias)
        centred = added - added.mean(-1, keepdims=True)
        normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * weight + shift
        return (normed, added, added, added)[: len(self.onnx_node.output)]


class BiasGelu(Operator):
    def _run(self, x, bias):  # type: ignore[no-untyped-def]
        added = x + bias
        return ((added / 2 * (1 + np.vectorize(erf)(added / np.sqrt(2)))).astype(x.dtype),)


OPERATORS: list[type[OpRun]] = [PackedMultiHeadAttention, SkipLayerNormalization, BiasGelu]


def rows(holes: bool = False) -> list[TokenSequence]:
    random = np.random.default_rng(0)
    found = []
    for length in LENGTHS:
        tokens = {"input_ids": random.integers(0, 100, length), "token_type_ids": random.integers(0, 2, length)}
        real = np.ones(length, np.bool_)
        real[:1] = not holes
        found.append(token_sequence(PositionRule(kind="column"), tokens, real | (length == 1)))
    return found


def with_layers(change: Callable[[AttentionConfig], AttentionConfig]) -> EncoderConfig:
    config = CONFIGS["tiny"]
    layers = tuple(replace(layer, attention=change(layer.attention)) for layer in config.layers)  # type: ignore[arg-type]
    return replace(config, layers=layers)


@pytest.fixture(scope="module")
def feeds() -> Arrays:
    packed = pack(rows())
    return packed | by_length(packed)


@pytest.fixture(scope="module", params=[False, True], ids=["norm last", "norm first"])
def graph(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = CONFIGS["tiny"]
    layers = tuple(replace(layer, norm_first=request.param) for layer in config.layers)
    path = tmp_path_factory.mktemp("graph") / "graph.onnx"
    export_graph(randomised(replace(config, layers=layers)), path)
    return path


def fused(graph: Path) -> onnx.ModelProto:
    return fuse_for_cuda(outline_attention(outline_linear(onnx.load(graph))))


def most_off(graph: Path, feeds: Arrays) -> float:
    """How far the fused graph's answers are from those of the graph that it is made of."""
    path = graph.with_name("fused.onnx")
    onnx.save(fused(graph), path)
    found = ReferenceEvaluator(str(path), new_ops=OPERATORS)
    answers = found.run(None, {name: feeds[name] for name in found.input_names})
    expected = Session(graph, "cpu", kernels=False).run(feeds)
    return max(float(np.abs(one - other).max()) for one, other in zip(answers, expected.values(), strict=True))


def test_it_computes_what_the_graph_does_that_it_is_made_of(graph: Path, feeds: Arrays) -> None:
    assert most_off(graph, feeds) < 1e-5


RMS = NormConfig("rms")
OTHERS = {
    "norm last": (
        LayerConfig(AttentionConfig(1), FeedForwardConfig(96)),
        LayerConfig(AttentionConfig(4, head_width=24, out_bias=False), FeedForwardConfig(96)),
        LayerConfig(AttentionConfig(2), FeedForwardConfig(96), RMS),
        LayerConfig(AttentionConfig(2), FeedForwardConfig(48, "gelu", gated=True)),
    ),
    "norm first": (
        LayerConfig(AttentionConfig(2), FeedForwardConfig(96), RMS, norm_first=True),
        LayerConfig(AttentionConfig(2), FeedForwardConfig(96, "relu"), norm_first=True),
    ),
}


@pytest.mark.parametrize("layers", OTHERS.values(), ids=list(OTHERS))
def test_what_has_no_operator_stays_as_it_is(layers: tuple[LayerConfig, ...], feeds: Arrays, tmp_path: Path) -> None:
    config = replace(CONFIGS["tiny"], layers=layers, head=None)
    assert config.plain
    export_graph(randomised(config), tmp_path / "graph.onnx")
    assert most_off(tmp_path / "graph.onnx", feeds) < 1e-5


def test_nothing_but_the_operators_is_left_between_products(graph: Path) -> None:
    model = fused(graph)
    nodes = Counter(node.op_type for node in model.graph.node)
    layers = len(CONFIGS["tiny"].layers)
    assert nodes["Gemm"] == 4 * layers
    assert nodes["PackedMultiHeadAttention"] == nodes["BiasGelu"] == layers
    assert nodes["SkipLayerNormalization"] + nodes["LayerNormalization"] == 2 * layers + 1
    assert not nodes.keys() & {"Softmax", "Transpose", "Gelu", "Linear", "AddNorm", "Attention"}
    with_bias = [node for node in model.graph.node if node.op_type == "Gemm" and len(node.input) > 2]
    assert len(with_bias) <= nodes["Add"] - 2, "no norm comes behind the last sum of layers that begin with one"
    assert not model.functions


def test_in_float16_no_cast_stands_between_the_operators(graph: Path, tmp_path: Path) -> None:
    onnx.save(convert_to_float16(fused(graph)), tmp_path / "half.onnx")
    found = onnx.load(tmp_path / "half.onnx").graph
    made_by = {name: node.op_type for node in found.node for name in node.output}
    operators = [node for node in found.node if node.domain == "com.microsoft"]
    assert {node.op_type for node in operators} == {operator.__name__ for operator in OPERATORS}
    for node in operators:
        assert "Cast" not in [made_by.get(name) for name in node.input], node.op_type


def test_onnxruntime_knows_the_operators_and_lacks_nothing_but_a_kernel_for_the_cpu(
    graph: Path, tmp_path: Path
) -> None:
    onnx.save(convert_to_float16(fused(graph)), tmp_path / "half.onnx")
    onnx.checker.check_model(str(tmp_path / "half.onnx"))
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented, match="PackedMultiHeadAttention"):
        onnxruntime.InferenceSession(tmp_path / "half.onnx", providers=[CPU])


@pytest.mark.parametrize(
    "config",
    [
        with_layers(lambda attention: replace(attention, pattern=Window(3))),
        with_layers(lambda attention: replace(attention, pattern=(Causal(), Causal()))),
        with_layers(lambda attention: replace(attention, rotary_base=10000.0)),
        with_layers(lambda attention: replace(attention, bias=False)),
        with_layers(lambda attention: replace(attention, value_width=8)),
        replace(CONFIGS["tiny"], relative_bias=LogBuckets(8, 16)),
    ],
    ids=["window", "causal", "rotary", "no bias", "value width", "relative bias"],
)
def test_other_attention_is_not_for_it(config: EncoderConfig) -> None:
    assert CONFIGS["tiny"].plain
    assert not config.plain


def test_what_cannot_be_fused_is_refused(tmp_path: Path) -> None:
    config = with_layers(lambda attention: replace(attention, rotary_base=10000.0))
    export_graph(Encoder(config).eval(), tmp_path / "graph.onnx")
    with pytest.raises(ValueError, match="not softmax over all pairs"):
        fused(tmp_path / "graph.onnx")


# --- Served ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fused") / "bundle"
    precisions: tuple[Precision, ...] = ("fp16",)
    export_bundle(randomised(CONFIGS["tiny"]), folder, precisions=precisions)
    return folder


def test_a_bundle_in_float16_has_it_and_a_cpu_leaves_it_alone(bundle: Path) -> None:
    model = Model(bundle, "cpu", "fp16", anywhere=True)
    assert [graph.file for graph in model.manifest.graphs_of("fp16")] == ["fused.fp16.onnx", "model.fp16.onnx"]
    assert not any(graph.fused for graph in model.manifest.graphs_of("fp32"))
    assert len(model.graphs.run(rows())) == len(LENGTHS)
    if without_driver():
        with pytest.raises(DeviceError, match="CUDA"):
            Model(bundle, "cuda", "fp16")


class Recorded:
    """A graph on what says it is CUDA."""

    provider = CUDA

    def __init__(self, file: str) -> None:
        self.file, self.lengths = file, list[list[int]]()

    def run(self, feeds: Arrays, outputs: object) -> Arrays:
        self.lengths.append(np.bincount(feeds["rows"]).tolist())
        assert ("ends" in feeds) == self.file.startswith("fused")
        return {"sentence_embedding": np.zeros((len(feeds["slots"]), 4), np.float32)}


def test_on_cuda_it_takes_the_rows_whose_tokens_are_all_real(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: dict[str, Recorded] = {}

    def open_one(_: Graphs, graph, *others: object) -> Recorded:  # type: ignore[no-untyped-def]
        return opened.setdefault(graph.file, Recorded(graph.file))

    monkeypatch.setattr(Graphs, "_open", open_one)
    graphs = Graphs(BundleFiles(bundle), Model(bundle, "cpu").manifest, "fp16", "answers", "cuda")
    whole, holed = rows(), rows(holes=True)
    assert len(graphs.run([whole[0], holed[1], whole[2], holed[3]])) == len(LENGTHS)
    assert opened["fused.fp16.onnx"].lengths == [[LENGTHS[0], LENGTHS[2]]]
    assert opened["model.fp16.onnx"].lengths == [[LENGTHS[1], LENGTHS[3]]]
    assert graphs.span_limits == []
