"""Attention, norms and GELUs as the library of server/engine/kernels has them, against float64 and onnxruntime's own.

Letters: B rows, L slots, T tokens, D width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from heed.bundle.sequence_packing import Arrays, Bools, pack, split, token_sequence
from heed.export.manifest import position_rule
from heed.export.passes.outline_attention import outline_attention
from heed.export.passes.outline_linear import outline_linear
from heed.export.torch_to_onnx import capture_with_attentions
from heed.model import Encoder
from heed.model.config import AttentionConfig, EncoderConfig, FeedForwardConfig, LayerConfig, NormConfig, TokensConfig
from heed.model.patterns import Causal, Full, Pairs, Pattern, Window
from heed.server.engine.kernels import library
from heed.server.engine.session import CPU, denormals_as_zero, session_options
from tests.bundles import export_graph
from tests.support import make_noisy, rewrite_graph

only_with_library = pytest.mark.skipif(library() is None, reason="server/engine/kernels is of no use here")
BUDGET = 1e-5  # of the largest number


class Graph:
    """One encoder as a graph: as the exporter writes it, and with its parts named."""

    def __init__(self, folder: Path, encoder: Encoder) -> None:
        self.encoder, self.plain, self.named = encoder, folder / "plain.onnx", folder / "named.onnx"
        export_graph(encoder, self.plain)
        self.named.write_bytes(self.plain.read_bytes())
        rewrite_graph(self.named, outline_linear, outline_attention)
        self.operators = [node.op_type for node in onnx.load(self.named, load_external_data=False).graph.node]

    def run(
        self, graph: Path, masks: Sequence[Bools], with_library: bool = False, threads: int = 1
    ) -> list[np.ndarray]:
        """Hidden states of rows of random ids, under these masks."""
        options = session_options(threads)
        if with_library:
            options.register_custom_ops_library(str(library()))
        session = onnxruntime.InferenceSession(graph, options, providers=[CPU])
        rows = [token_sequence(position_rule(self.encoder.config), ids_under(mask), mask) for mask in masks]
        feeds = pack(rows, self.encoder.config.aligned)
        names = {node.name for node in session.get_inputs()}
        with denormals_as_zero():
            (states, *_) = session.run(None, {name: feeds[name] for name in names})
        return split(rows, np.asarray(states))


def ids_under(mask: Bools) -> Arrays:
    random = np.random.default_rng(len(mask) * 1000 + int(mask.sum()))
    return {"input_ids": random.integers(0, 50, len(mask))}


def full(*lengths: int) -> list[Bools]:
    return [np.ones(length, np.bool_) for length in lengths]


def encoder_of(patterns: tuple[Pattern, ...] = (Full(),), width: int = 24, layers: int = 1, **options: Any) -> Encoder:
    heads = options.pop("heads", len(patterns) if len(patterns) > 1 else 3)
    attention = AttentionConfig(heads, patterns if len(patterns) > 1 else patterns[0], **options)
    layer = LayerConfig(attention, FeedForwardConfig(40))
    encoder = Encoder(EncoderConfig(TokensConfig(50), width, (layer,) * layers, max_length=120))
    make_noisy(encoder)
    return encoder.eval()


def assert_close(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert np.abs(one - other).max() <= BUDGET * max(1, np.abs(other).max())


PATTERNS = {"full": Full(), "window": Window(3), "causal": Causal()}


@pytest.fixture(scope="module")
def graph(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """Of a layer whose heads all attend by one of PATTERNS."""
    return Graph(tmp_path_factory.mktemp(request.param), encoder_of((PATTERNS[request.param],)))


# --- Graphs that name their parts, on any CPU ------------------------------------------------------------------------


@pytest.mark.parametrize("graph", PATTERNS, indirect=True)
def test_named_parts_have_the_same_bits_without_the_library(graph: Graph) -> None:
    assert graph.operators.count("Attention") == 1
    assert graph.operators.count("AddNorm") == 2
    assert graph.operators.count("Gelu") == 1
    assert "Softmax" not in graph.operators
    masks = full(1, 7, 30)
    for plain, named in zip(graph.run(graph.plain, masks), graph.run(graph.named, masks), strict=True):
        assert np.array_equal(plain, named)


def test_a_sum_that_others_look_at_is_no_residual_of_a_norm(tmp_path: Path) -> None:
    layer = LayerConfig(AttentionConfig(3), FeedForwardConfig(40), norm_first=True)
    encoder = Encoder(EncoderConfig(TokensConfig(50), 24, (layer,), max_length=120))
    graph = Graph(tmp_path, encoder.eval())
    assert graph.operators.count("AddNorm") == 0
    assert graph.operators.count("LayerNormalization") >= 2


def test_a_graph_that_shows_its_weights_keeps_the_softmax_and_leaves_nothing_of_it_in_the_other(tmp_path: Path) -> None:
    operators = []
    for captured in capture_with_attentions(encoder_of(), tmp_path / "weights"):
        outlined = outline_attention(outline_linear(captured))
        operators.append([node.op_type for node in outlined.graph.node])
    assert [names.count("Softmax") for names in operators] == [0, 1]
    assert [names.count("Attention") for names in operators] == [1, 0]


# --- The library, where it is of use ---------------------------------------------------------------------------------


@only_with_library
@pytest.mark.parametrize("graph", PATTERNS, indirect=True)
def test_named_parts_are_close_with_the_library(graph: Graph) -> None:
    random = np.random.default_rng(0)
    holes = random.random(60) < 0.6
    holes[[0, 59]] = False, True
    masks = [*full(1, 2, 8, 17, 48, 49, 100), holes]
    assert_close(graph.run(graph.named, masks, with_library=True), graph.run(graph.plain, masks))


@only_with_library
def test_heads_that_are_turned_by_their_positions(tmp_path: Path) -> None:
    graph = Graph(tmp_path, encoder_of((Full(),), rotary_base=100))
    assert "Attention" in graph.operators
    masks = full(1, 5, 40)
    assert_close(graph.run(graph.named, masks, with_library=True), graph.run(graph.plain, masks))


@only_with_library
def test_heads_that_share_keys_and_are_normed(tmp_path: Path) -> None:
    graph = Graph(tmp_path, encoder_of((Causal(),), heads=4, key_heads=2, head_norm=NormConfig("rms"), rotary_base=100))
    assert "Attention" in graph.operators
    masks = full(1, 5, 40)
    assert_close(graph.run(graph.named, masks, with_library=True), graph.run(graph.plain, masks))


@only_with_library
def test_heads_of_different_patterns(tmp_path: Path) -> None:
    graph = Graph(tmp_path, encoder_of((Full(), Window(2), Causal()), 24))
    masks = full(1, 5, 40)
    assert_close(graph.run(graph.named, masks, with_library=True), graph.run(graph.plain, masks))


@only_with_library
@pytest.mark.parametrize("graph", ["full", "window"], indirect=True)
def test_a_rows_bits_depend_on_nothing_beside_it(graph: Graph) -> None:
    masks = full(3, 1, 100, 17, 48, 5)
    together = graph.run(graph.named, masks, with_library=True)
    wide = graph.run(graph.named, masks, with_library=True, threads=3)
    for mask, states, same in zip(masks, together, wide, strict=True):
        (alone,) = graph.run(graph.named, [mask], with_library=True)
        assert np.array_equal(alone, states)
        assert np.array_equal(same, states)


def one_node(
    path: Path, node: onnx.NodeProto, inputs: Sequence[str], constants: Arrays
) -> onnxruntime.InferenceSession:
    """A session of one of the library's operators."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in [*inputs, "y"]]
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph([node], "part", values[:-1], values[-1:], tensors)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("heed", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    options = session_options()
    options.register_custom_ops_library(str(library()))
    return onnxruntime.InferenceSession(path, options, providers=[CPU])


@only_with_library
def test_gelu_is_exact_to_a_floats_last_bits(tmp_path: Path) -> None:
    session = one_node(tmp_path / "gelu.onnx", helper.make_node("Gelu", ["x"], ["y"], domain="heed"), ["x"], {})
    x = np.concatenate([np.linspace(-12, 12, 100_003), [0, 1e-30, -1e-30, 50, -50, 1e4, -1e4]]).astype(np.float32)
    exact = x.astype(np.float64) * torch.special.ndtr(torch.from_numpy(x).double()).numpy()
    (y,) = session.run(None, {"x": x})
    assert (np.abs(y - exact) <= 1e-7 * np.maximum(1, np.abs(exact))).all()
    assert np.array_equal(y[-4:], np.array([50, 0, 1e4, 0], np.float32))
    for length in (1, 7, 8, 9):
        assert np.array_equal(session.run(None, {"x": x[:length]})[0], y[:length])
    assert np.isnan(session.run(None, {"x": np.array([np.nan, 1], np.float32)})[0]).tolist() == [True, False]


def attention(path: Path, scale: float = 1.0) -> onnxruntime.InferenceSession:
    """The operator alone."""
    names = ["query", "key", "value", "places", "mask", "any", "back", "scale", "a", "b", "c"]
    node = helper.make_node("Attention", names, ["y"], domain="heed")
    kinds = {name: TensorProto.INT64 if name in ("places", "back") else TensorProto.FLOAT for name in names[:7]}
    values = [helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()]
    one = np.array([1], np.int64)
    constants = {"scale": np.float32(scale), "a": one, "b": one, "c": one}
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "part", values, [answer], tensors)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("heed", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    options = session_options()
    options.register_custom_ops_library(str(library()))
    return onnxruntime.InferenceSession(path, options, providers=[CPU])


def allowed(pattern: Pattern, lengths: Sequence[int]) -> Bools:
    """Which key each query of each row may look at, `[B, L, L]`."""
    columns_L = torch.arange(max(lengths))
    real_BL = columns_L < torch.tensor(lengths)[:, None]
    allowed_LL = pattern.allows(Pairs(columns_L[:, None], columns_L[None]))
    return (allowed_LL & real_BL[:, None, :]).numpy()


@only_with_library
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=list(PATTERNS))
@pytest.mark.parametrize(
    ("heads", "width", "value_width"),
    [(3, 8, 8), (1, 7, 7), (1, 8, 5), (1, 32, 16), (1, 10, 33), (4, 1, 1), (2, 64, 64), (5, 9, 40)],
)
def test_attention_of_any_widths(tmp_path: Path, heads: int, width: int, value_width: int, pattern: Pattern) -> None:
    """Against softmax(q k^T / sqrt(H) + mask) v in float64, rows of lengths around the kernels' tiles in a batch."""
    lengths = [1, 2, 8, 17, 48, 49, 100]
    rows_T = np.repeat(np.arange(len(lengths)), lengths)
    columns_T = np.concatenate([np.arange(length) for length in lengths])
    random = np.random.default_rng(width)
    query, key = (random.normal(size=(len(rows_T), heads, width)).astype(np.float32) for _ in range(2))
    value = random.normal(size=(len(rows_T), heads, value_width)).astype(np.float32)
    allowed_BLL = allowed(pattern, lengths)
    if (allowed_BLL[:, :1] == allowed_BLL).all():
        allowed_BLL = allowed_BLL[:, :1]  # one line of the mask for all queries of a row
    slots = np.zeros(allowed_BLL.shape[::2], np.int64)
    slots[rows_T, columns_T] = np.arange(len(rows_T))
    (answers,) = attention(tmp_path / "attention.onnx", width**-0.5).run(None, {
        "query": query.reshape(len(rows_T), -1),
        "key": key.reshape(len(rows_T), -1),
        "value": value.reshape(len(rows_T), -1),
        "places": slots[:, None] * heads + np.arange(heads)[:, None],
        "mask": np.asarray(np.where(allowed_BLL, 0, -np.inf), np.float32)[:, None],
        "any": np.asarray(allowed_BLL.any(2), np.float32)[:, None, :, None],
        "back": (rows_T[:, None] * heads + np.arange(heads)) * max(lengths) + columns_T[:, None],
    })  # fmt: skip
    for row, length in enumerate(lengths):
        q, k, v = (each[rows_T == row].astype(np.float64).swapaxes(0, 1) for each in (query, key, value))
        scores = q @ k.swapaxes(1, 2) / np.sqrt(width)
        weights = np.exp(scores) * allowed_BLL[row, :length, :length]
        exact = (weights / weights.sum(-1, keepdims=True)) @ v
        assert_close([answers[rows_T == row]], [exact.swapaxes(0, 1).reshape(length, -1)])


def of_two_tokens(**others: np.ndarray) -> Arrays:
    states = np.arange(16, dtype=np.float32).reshape(2, 8)
    return {
        "query": states,
        "key": states,
        "value": states,
        "places": np.array([[[0, 1]]]),
        "mask": np.zeros((1, 1, 1, 2), np.float32),
        "any": np.ones((1, 1, 1, 1), np.float32),
        "back": np.array([[0], [1]]),
    } | others


@only_with_library
@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"places": np.array([[[0, 2]]])}, "places that there are not"),
        ({"places": np.array([[[0, -1]]])}, "places that there are not"),
        ({"back": np.array([[0], [10**7]])}, "places that there are not"),
        ({"back": np.zeros((2, 0), np.int64), "places": np.zeros((1, 0, 2), np.int64)}, "a head and a slot at least"),
    ],
)
def test_attention_looks_nowhere_else(tmp_path: Path, others: dict[str, np.ndarray], message: str) -> None:
    session = attention(tmp_path / "attention.onnx")
    assert session.run(None, of_two_tokens())[0].shape == (2, 8)
    with pytest.raises(Exception, match=message):
        session.run(None, of_two_tokens(**others))


@only_with_library
@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FC00001, 0xFFFFFFFF])
def test_what_is_no_number_is_seen_whatever_its_bits(tmp_path: Path, bits: int) -> None:
    key = np.ones((2, 8), np.float32)
    key.view(np.uint32)[1, 3] = bits
    (answer,) = attention(tmp_path / "attention.onnx").run(None, of_two_tokens(key=key))
    assert np.isnan(answer).all()


@only_with_library
@pytest.mark.parametrize("width", [1, 7, 8, 30, 384])
def test_the_norm_of_a_sum(tmp_path: Path, width: int) -> None:
    random = np.random.default_rng(width)
    weight, bias, x, y = (
        random.normal(size=size).astype(np.float32) for size in (width, width, (5, width), (5, width))
    )
    node = helper.make_node("AddNorm", ["x", "z", "weight", "bias"], ["y"], domain="heed", epsilon=1e-3)
    session = one_node(tmp_path / "norm.onnx", node, ["x", "z"], {"weight": weight, "bias": bias})
    both = x.astype(np.float64) + y
    off = both - both.mean(1, keepdims=True)
    exact = off / np.sqrt(np.square(off).mean(1, keepdims=True) + 1e-3) * weight + bias
    (answers,) = session.run(None, {"x": x, "z": y})
    assert np.abs(answers - exact).max() <= 2e-6
    for row in range(5):
        assert np.array_equal(session.run(None, {"x": x[[row]], "z": y[[row]]})[0], answers[[row]])
    with pytest.raises(Exception, match="two tensors of one shape"):
        session.run(None, {"x": x, "z": y[:1]})
    if width > 1:
        x[2, 0] = 1e20  # its square is infinite, and would make the row its bias
        (spoilt,) = session.run(None, {"x": x, "z": y})
        assert np.isnan(spoilt[2]).all()
        others = [0, 1, 3, 4]
        assert np.array_equal(spoilt[others], answers[others])
