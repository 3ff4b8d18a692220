"""Linear layers of heed's own: as exact as float32, the same bits in any company, and onnxruntime's where they fail."""

import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from bench.layers import write_layers
from heed.bundle.contract import CPU, Report
from heed.export.passes.onnx_functions import add_functions
from heed.export.passes.outline_linear import outline_linear, outline_linear_16_bit
from heed.export.passes.quantize_to_int8 import int8_function, quantized
from heed.exporting import export_bundle
from heed.model import Encoder
from heed.model.config import AttentionConfig, EncoderConfig, FeedForwardConfig, LayerConfig, TokensConfig
from heed.server.engine.kernels import LIBRARY, InstructionSet, instruction_set, multiplies
from heed.server.engine.model import Model
from heed.server.engine.session import Session, session_options
from heed.server.repository.verification import load_and_compare
from tests.support import make_noisy, rewrite_graph

reason = "is of no use on this CPU" if LIBRARY.exists() else "was not compiled"
only_with_library = pytest.mark.skipif(not multiplies(), reason=f"the library of server/engine/kernels {reason}")
BY_AMX = instruction_set() == InstructionSet.AMX
only_by_amx = pytest.mark.skipif(not BY_AMX, reason="this CPU has no tiles of int8 (AMX)")

SIZES = (1, 3, 16, 17, 64, 65, 130)
STEP = 2.0**-23  # of a row's largest value
ROUNDED = 0.5 / 2047  # the same, of weights in PackedS16


class Layer:
    """One linear layer as a graph of its own: as onnxruntime has it, and named."""

    def __init__(
        self, folder: Path, weight_MK: np.ndarray, bias_M: np.ndarray | None = None, rough: bool = False
    ) -> None:
        self.plain = write_layers(folder / "plain.onnx", [(weight_MK, bias_M)])
        self.named = write_layers(folder / "named.onnx", [(weight_MK, bias_M)])
        rewrite_graph(self.named, outline_linear_16_bit if rough else outline_linear)

    @staticmethod
    def run(graph: Path, x: np.ndarray, with_library: bool = False, threads: int = 1) -> np.ndarray:
        return np.asarray(Layer.session(graph, with_library, threads).run(None, {"x": x})[0])

    @staticmethod
    def session(graph: Path, with_library: bool = True, threads: int = 1) -> onnxruntime.InferenceSession:
        options = session_options(threads)
        if with_library:
            options.register_custom_ops_library(str(LIBRARY))
        return onnxruntime.InferenceSession(graph, options, providers=[CPU])


def numbers(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.normal(size=shape).astype(np.float32)


def operators(graph: Path) -> list[str]:
    return [f"{node.domain}.{node.op_type}" for node in onnx.load(graph).graph.node]


# --- Graphs that name their layers, on any CPU -----------------------------------------------------------------------


@pytest.mark.parametrize("with_bias", [True, False])
def test_a_named_layer_has_the_same_bits_without_the_library(tmp_path: Path, with_bias: bool) -> None:
    random = np.random.default_rng(0)
    layer = Layer(tmp_path, numbers(random, 20, 30), numbers(random, 20) if with_bias else None)
    assert operators(layer.named) == ["heed.Linear" if with_bias else "heed.Product"]
    x = numbers(random, 7, 30)
    assert np.array_equal(layer.run(layer.plain, x), layer.run(layer.named, x))


def test_layers_beside_int8_are_named_so_that_16_bits_are_enough(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    weight, bias, x = numbers(random, 40, 300), numbers(random, 40), numbers(random, 33, 300)
    path = write_layers(tmp_path / "rough.onnx", [(weight, bias)])
    plain = Layer.run(path, x)
    rewrite_graph(path, outline_linear_16_bit)
    assert operators(path) == ["heed.Linear16"]
    assert np.array_equal(Layer.run(path, x), plain)
    if BY_AMX:
        off = most_off(Layer.run(path, x, with_library=True), x, weight, bias)
        assert 2.0**-21 < off < 2.0**-15


def test_products_of_two_activations_are_not_named(tmp_path: Path) -> None:
    path = tmp_path / "scores.onnx"
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("q", "k", "y")}
    node = helper.make_node("MatMul", ["q", "k"], ["y"])
    graph = helper.make_graph([node], "scores", [values["q"], values["k"]], [values["y"]])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), path)
    rewrite_graph(path, outline_linear)
    assert operators(path) == [".MatMul"]
    assert not onnx.load(path).functions


def test_every_linear_layer_of_a_bundle_is_named(tiny_bundle: Path) -> None:
    model = onnx.load(tiny_bundle / "model.fp32.onnx", load_external_data=False)
    assert {function.name for function in model.functions} == {"Linear", "Attention", "AddNorm", "Gelu"}
    constants = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("Gemm", "MatMul"):
            assert not constants & set(node.input), f"{node.name} multiplies with a constant"


# --- Which kernels run ---


def selected_under(limit: str) -> subprocess.CompletedProcess[str]:
    """What another process selects when it is told HEED_MAX_ISA."""
    code = "from heed.server.engine.kernels import instruction_set; print(instruction_set())"
    environment = os.environ | {"HEED_MAX_ISA": limit}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize("limit", list(InstructionSet))
def test_a_lower_instruction_set_can_be_forced(limit: InstructionSet) -> None:
    order = list(InstructionSet)
    assert selected_under(limit).stdout.strip() == min(instruction_set(), limit, key=order.index)


def test_an_unknown_instruction_set_is_refused() -> None:
    done = selected_under("AVX2")
    assert done.returncode
    assert "HEED_MAX_ISA must be one of none, avx2, avx512, amx, got 'AVX2'" in done.stderr


# --- The library, where it is of use ---------------------------------------------------------------------------------


def most_off(answers: np.ndarray, x: np.ndarray, weight_MK: np.ndarray, bias_M: np.ndarray | float = 0.0) -> float:
    """How far the worst answer is off, as a share of what a step in either fixed point would change it by at most."""
    x, weight_MK = x.astype(np.float64), weight_MK.astype(np.float64)
    sizes, weights = np.abs(x), np.abs(weight_MK)
    scale = sizes.max(1)[:, None] * weights.sum(1) + sizes.sum(1)[:, None] * weights.max(1) + np.abs(bias_M)
    return float((np.abs(answers - (x @ weight_MK.T + bias_M)) / np.maximum(scale, 1e-30)).max())


@only_with_library
@pytest.mark.parametrize(("values", "channels"), [*product(SIZES, SIZES)])
def test_any_size_is_as_exact_as_float32(tmp_path: Path, values: int, channels: int) -> None:
    random = np.random.default_rng(values * 1000 + channels)
    weight, bias = numbers(random, channels, values), numbers(random, channels)
    layer = Layer(tmp_path, weight, bias)
    for tokens in SIZES:
        x = numbers(random, tokens, values)
        assert most_off(layer.run(layer.named, x, with_library=True), x, weight, bias) <= STEP


@only_with_library
def test_errors_are_no_larger_than_onnxruntimes(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    weight, bias, x = numbers(random, 384, 1536), numbers(random, 384), numbers(random, 50, 1536)
    layer = Layer(tmp_path, weight, bias)
    exact = x.astype(np.float64) @ weight.T.astype(np.float64) + bias
    ours, theirs = (np.square(layer.run(layer.named, x, each) - exact).mean() for each in (True, False))
    # PackedF32Split rounds less; PackedF32 as much, in another order.
    assert 0 < ours <= (1.0 if BY_AMX else 1.1) * theirs


@only_with_library
@pytest.mark.parametrize("tokens", [1, 5, 16, 200, 900])  # the last in chunks
def test_a_tokens_bits_depend_on_nothing_beside_it(tmp_path: Path, tokens: int) -> None:
    random = np.random.default_rng(2)
    layer = Layer(tmp_path, numbers(random, 40, 700), numbers(random, 40))
    session, x = layer.session(layer.named), numbers(random, tokens, 700)
    together = session.run(None, {"x": x})[0]
    order = random.permutation(tokens)
    assert np.array_equal(session.run(None, {"x": x[order]})[0], together[order])
    for token in order[:10]:
        assert np.array_equal(session.run(None, {"x": x[[token]]})[0], together[[token]])
    assert np.array_equal(layer.run(layer.named, x, with_library=True, threads=3), together)


@only_with_library
@pytest.mark.parametrize(("values", "channels"), [(1, 1), (3, 16), (64, 17), (255, 33), (257, 40), (1537, 100)])
def test_beside_int8_a_rows_values_are_rounded_and_no_sum_is(tmp_path: Path, values: int, channels: int) -> None:
    random = np.random.default_rng(values)
    weight, bias = numbers(random, channels, values), numbers(random, channels)
    layer = Layer(tmp_path, weight, bias, rough=True)
    x = numbers(random, 40, values) * np.float32(2.0) ** random.integers(-20, 20, (40, 1)).astype(np.float32)
    x[7] = 0
    together = layer.run(layer.named, x, with_library=True)
    assert most_off(together, x, weight, bias) <= ROUNDED + STEP
    assert np.array_equal(together[7], bias)
    for token in range(0, 40, 3):
        assert np.array_equal(layer.run(layer.named, x[[token]], with_library=True)[0], together[token])
    assert np.array_equal(layer.run(layer.named, x, with_library=True, threads=3), together)
    x[1, 0], x[2, -1] = np.nan, np.inf
    spoilt = layer.run(layer.named, x, with_library=True)
    assert not np.isfinite(spoilt[1:3]).any()
    assert np.array_equal(np.delete(spoilt, [1, 2], 0), np.delete(together, [1, 2], 0))


@only_with_library
@pytest.mark.parametrize("rough", [False, True])
def test_a_weight_that_is_no_number_spoils_its_channel_only(tmp_path: Path, rough: bool) -> None:
    weight = np.ones((20, 16), np.float32)
    weight[3, 5] = np.nan
    layer = Layer(tmp_path, weight, np.zeros(20, np.float32), rough=rough)
    answers = layer.run(layer.named, np.ones((2, 16), np.float32), with_library=True)
    assert np.isnan(answers[:, 3]).all()
    assert np.allclose(np.delete(answers, 3, 1), 16, rtol=1e-3)


@only_with_library
def test_the_largest_sums_of_words_fit(tmp_path: Path) -> None:
    """All at its largest, all of one sign: 32 bits hold no more."""
    weight, x = np.full((16, 1024), -3, np.float32), np.full((2, 1024), 5, np.float32)
    layer = Layer(tmp_path, weight, np.zeros(16, np.float32), rough=True)
    assert np.allclose(layer.run(layer.named, x, with_library=True), -3 * 5 * 1024, rtol=1e-6)


@only_with_library
@given(
    exponents=st.lists(st.integers(-30, 30), min_size=1, max_size=20),
    values=st.integers(1, 150),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=50, deadline=None)
def test_tokens_of_very_different_sizes(
    tmp_path_factory: pytest.TempPathFactory, exponents: list[int], values: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    x = numbers(random, len(exponents), values) * np.float32(2.0) ** np.array(exponents, np.float32)[:, None]
    weight, bias = numbers(random, 5, values), np.zeros(5, np.float32)
    layer = Layer(tmp_path_factory.mktemp("layer"), weight, bias)
    assert most_off(layer.run(layer.named, x, with_library=True), x, weight) <= STEP


@only_with_library
def test_what_is_no_number_spoils_its_own_row_only(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    layer = Layer(tmp_path, numbers(random, 20, 30), numbers(random, 20))
    x = numbers(random, 6, 30)
    healthy = layer.run(layer.named, x, with_library=True)
    x[1, 3], x[2, 4], x[3, 5], x[4] = np.nan, np.inf, -np.inf, 0
    answers = layer.run(layer.named, x, with_library=True)
    assert not np.isfinite(answers[1:4]).any()
    assert np.array_equal(answers[[0, 5]], healthy[[0, 5]])
    assert np.array_equal(answers[4], layer.run(layer.plain, x)[4]), "a row of zeros gives the bias"


@only_with_library
def test_products_keep_the_dimensions_before_the_last(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    layer = Layer(tmp_path, numbers(random, 20, 30))
    for shape in ((30,), (2, 30), (2, 3, 30), (2, 0, 30)):
        x = numbers(random, *shape)
        ours, theirs = (layer.run(layer.named, x, each) for each in (True, False))
        assert ours.shape == theirs.shape
        assert np.allclose(ours, theirs, atol=1e-5)


@only_with_library
def test_rows_of_another_width_are_refused(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    layer = Layer(tmp_path, numbers(random, 20, 30), numbers(random, 20))
    with pytest.raises(Exception, match=r"rows of 29 values, and the weights have 30"):
        layer.run(layer.named, numbers(random, 2, 29), with_library=True)


@only_with_library
def test_a_bias_of_another_length_is_refused(tmp_path: Path) -> None:
    random = np.random.default_rng(8)
    layer = Layer(tmp_path, numbers(random, 20, 30), numbers(random, 19))
    with pytest.raises(Exception, match="biases and scales must be one number for each channel"):
        layer.session(layer.named)


@only_with_library
def test_a_session_outlives_another_with_the_same_weights(tmp_path: Path) -> None:
    random = np.random.default_rng(6)
    layer = Layer(tmp_path, numbers(random, 20, 30), numbers(random, 20))
    x = numbers(random, 4, 30)
    one, other = layer.session(layer.named), layer.session(layer.named, threads=2)
    before = one.run(None, {"x": x})[0]
    del one
    assert np.array_equal(other.run(None, {"x": x})[0], before)


def int8_layer(path: Path, weight_KM: np.ndarray, scale_M: np.ndarray, bias_M: np.ndarray) -> Path:
    """A layer in int8, and the function that says what it means."""
    node = helper.make_node("Int8Linear", ["x", "w", "scale", "sum", "bias"], ["y"], domain="heed")
    sums = weight_KM.sum(0).astype(np.float32) * scale_M
    tensors = {"w": weight_KM, "scale": scale_M, "sum": sums, "bias": bias_M}
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y"))
    constants = [numpy_helper.from_array(values, name) for name, values in tensors.items()]
    graph = helper.make_graph([node], "layer", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    add_functions(model, [int8_function(model)])
    onnx.save(model, path)
    return path


@only_with_library
def test_layers_in_int8_are_what_their_function_says(tmp_path: Path) -> None:
    random = np.random.default_rng(9)
    for tokens, values, channels in [(1, 5, 3), (13, 4, 16), (40, 202, 33), (17, 384, 100)]:
        weight, scale_M = quantized(numbers(random, channels, values))
        bias, x = numbers(random, channels), numbers(random, tokens, values)
        path = int8_layer(tmp_path / "int8.onnx", weight.T.copy(), scale_M, bias)
        ours, theirs = (Layer.run(path, x, each) for each in (True, False))
        # With AMX a token has 16 bits and not 8: nearer to float32, and further from the function.
        assert np.abs(ours - theirs).max() <= (0.05 if BY_AMX else 1e-5) * np.abs(theirs).max()
        for token in range(tokens):
            assert np.array_equal(Layer.run(path, x[[token]], with_library=True)[0], ours[token])
        x[0, 0] = np.nan
        spoilt = Layer.run(path, x, with_library=True)
        assert not np.isfinite(spoilt[0]).any()
        assert np.array_equal(spoilt[1:], ours[1:])


@only_by_amx
def test_int8_weights_are_taken_as_they_are(tmp_path: Path) -> None:
    """Products of whole numbers that two digits hold: nothing is rounded, not the last bit."""
    random = np.random.default_rng(7)
    for tokens, values, channels in [(1, 5, 3), (17, 64, 16), (40, 200, 33)]:
        weight = random.integers(-127, 128, (values, channels)).astype(np.int8)
        scale, bias = np.ones(channels, np.float32), random.integers(-9, 10, channels).astype(np.float32)
        x = random.integers(-0x7E00, 0x7F00, (tokens, values)).astype(np.float32)
        x[:, 0] = 0x7F00  # the largest, so that one step is 1
        int8_layer(tmp_path / "int8.onnx", weight, scale, bias)
        exact = x.astype(np.int64) @ weight.astype(np.int64) + bias.astype(np.int64)
        answers = Layer.run(tmp_path / "int8.onnx", x, with_library=True)
        assert np.allclose(answers, exact, rtol=2.0**-22, atol=2.0**-22 * np.abs(exact).max())


# --- In a model ------------------------------------------------------------------------------------------------------


@only_with_library
def test_a_model_says_whether_it_has_them(tiny_bundle: Path) -> None:
    assert Session(tiny_bundle / "model.fp32.onnx", "cpu").has_kernels
    assert not Session(tiny_bundle / "model.fp32.onnx", "cpu", kernels=False).has_kernels


def outlying() -> Encoder:
    """A pre-norm model in which one value of each token is far beyond the others, and its weights as far below."""
    layer = LayerConfig(AttentionConfig(4), FeedForwardConfig(48), norm_first=True)
    encoder = Encoder(EncoderConfig(TokensConfig(100), 32, (layer, layer), max_length=20))
    make_noisy(encoder)
    for name, weight in encoder.named_parameters():
        if name.endswith("attention_norm.weight"):
            weight.data[0] *= 1e7
        elif name.endswith(("query.weight", "key.weight", "value.weight")):
            weight.data[:, 0] *= 1e-7
    return encoder.eval()


@only_by_amx
def test_where_digits_cannot_keep_the_budget_onnxruntime_computes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    export_bundle(outlying(), tmp_path / "outlying")
    digits = Model(tmp_path / "outlying", "cpu")
    assert not Report(list(digits.check_contract(everything=False))).holds
    caplog.clear()
    model, report = load_and_compare(tmp_path / "outlying")
    assert report.holds
    assert not model.session.has_kernels
    assert "is left to onnxruntime" in caplog.text


def test_a_graph_that_names_no_layers_has_none(tmp_path: Path) -> None:
    layer = Layer(tmp_path, np.ones((3, 4), np.float32), np.zeros(3, np.float32))
    assert not Session(layer.plain, "cpu").has_kernels
    assert Session(layer.named, "cpu").has_kernels == (instruction_set() != InstructionSet.NONE)


def test_they_can_be_left_out(tiny_bundle: Path) -> None:
    model, report = load_and_compare(tiny_bundle, kernels=False)
    assert report.holds
    assert not model.session.has_kernels
