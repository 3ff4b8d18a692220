"""Bundles of several precisions: what is in them, what they answer, and what is refused."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import heed.export.passes.pipeline
import heed.export.passes.quantize_to_int8
from heed.bundle import Manifest, read_manifest
from heed.bundle.contract import CUDA, Report
from heed.bundle.digests import check_digests
from heed.bundle.manifest import Device
from heed.export.int8_sensitivity import layers_to_keep
from heed.export.passes.convert_to_float16 import convert_to_float16
from heed.export.passes.quantize_to_int8 import linear_layers, quantized
from heed.export.reference import make_contract
from heed.export.weights import tensor_array
from heed.export_verification import try_on_cpu
from heed.exporting import ExportError, export_bundle
from heed.model import Checkpoint, Encoder, EncoderConfig
from heed.model.config import AttentionConfig, FeedForwardConfig, ImagesConfig, LayerConfig, NormConfig, TokensConfig
from heed.server.engine.model import Model
from heed.server.errors import DeviceError
from heed.server.repository.warmup import warm_up

LINEAR_LAYERS = 2 * 6  # of the tiny models: four of attention and two of feed-forward in each layer


@pytest.fixture(scope="module")
def bundle(precise_bundle: Path) -> Path:
    return precise_bundle


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Manifest:
    return read_manifest(bundle)


def graph(bundle: Path, name: str) -> onnx.ModelProto:
    return onnx.load(bundle / name)


def operators(bundle: Path, name: str) -> Counter[str]:
    return Counter(node.op_type for node in graph(bundle, name).graph.node)


# What is in a bundle


def test_every_precision_has_every_graph(bundle: Path, manifest: Manifest) -> None:
    check_digests(bundle)
    assert manifest.precisions == ["fp32", "fp16", "int8"]
    for precision in manifest.precisions:
        fused = ["fused.fp16.onnx"] * (precision == "fp16")
        assert [one.file for one in manifest.graphs_of(precision)] == [*fused, f"model.{precision}.onnx"]
        assert [one.file for one in manifest.graphs_of(precision, "attentions")] == [f"attentions.{precision}.onnx"]
    assert manifest.provenance.command == "heed export SOURCE OUT --name precise --precision fp32,fp16,int8"


def test_what_this_machine_cannot_run_is_not_called_proven(manifest: Manifest) -> None:
    cuda = CUDA in onnxruntime.get_available_providers()
    proven = {precision: manifest.is_proven(precision) for precision in manifest.precisions}
    assert proven == {"fp32": True, "fp16": cuda, "int8": True}


def places(bundle: Path, name: str) -> dict[str, str]:
    """The file of every weight that lies outside its graph."""
    model = onnx.load(bundle / name, load_external_data=False)
    return {tensor.name: tensor.external_data[0].value for tensor in model.graph.initializer if tensor.external_data}


def test_a_weight_that_precisions_share_is_there_once(bundle: Path) -> None:
    table = "encoder.embeddings.inputs.tokens.weight"
    assert places(bundle, "model.fp32.onnx")[table] == places(bundle, "model.int8.onnx")[table] == "weights.fp32.data"
    assert "weights.int8.data" in places(bundle, "model.int8.onnx").values()
    assert set(places(bundle, "model.fp16.onnx").values()) == {"weights.fp16.data"}
    assert places(bundle, "model.int8.onnx").items() <= places(bundle, "attentions.int8.onnx").items()
    assert not list(bundle.glob("*.onnx.data"))


def test_float32_does_not_change_beside_others(bundle: Path, tiny_bundle: Path) -> None:
    for name in ("model.fp32.onnx", "attentions.fp32.onnx", "weights.fp32.data"):
        assert (bundle / name).read_bytes() == (tiny_bundle / name).read_bytes()


# int8


def test_every_linear_layer_is_int8_and_keeps_to_seven_bits(bundle: Path) -> None:
    """Two products of 255 and 63 fit into 16 bits, where CPUs without VNNI add them."""
    assert operators(bundle, "model.int8.onnx")["Int8Linear"] == LINEAR_LAYERS
    weights = [
        numpy_helper.to_array(tensor)
        for tensor in graph(bundle, "model.int8.onnx").graph.initializer
        if tensor.data_type == TensorProto.INT8
    ]
    assert len(weights) == LINEAR_LAYERS
    assert all(np.abs(weight.astype(int)).max() == 63 for weight in weights)
    assert 2 * 255 * 63 < 2**15


def test_each_channel_has_its_own_scale() -> None:
    weight = np.array([[1.02, -2.0], [0.001, 0.002], [0.0, 0.0]], np.float32)
    int8, scale = quantized(weight)
    assert int8.tolist() == [[32, -63], [32, 63], [0, 0]]
    np.testing.assert_allclose(int8 * scale[:, None], weight, atol=0.02)
    np.testing.assert_allclose(int8[1] * scale[1], weight[1], atol=0.00002)


def test_int8_holds_on_the_cpu_and_has_the_same_bits_in_any_group(bundle: Path) -> None:
    """Each token has its own scale, so that nobody's neighbours change it."""
    model = Model(bundle, "auto", "int8")
    assert model.session.provider == "CPUExecutionProvider"
    assert Report(list(model.check_contract(everything=True))).holds
    warmup = warm_up(model)
    assert warmup.bit_equal
    assert warmup.difference == 0


def test_int8_is_not_float32(bundle: Path) -> None:
    """A control: it answers otherwise, by more than float32 may."""
    ids = {"input_ids": np.arange(4, 20)[None]}
    exact, rounded = (Model(bundle, "cpu", precision).answer(ids) for precision in ("fp32", "int8"))
    assert np.abs(exact["last_hidden_state"] - rounded["last_hidden_state"]).max() > 1e-3


@pytest.mark.parametrize(("precision", "device"), [("int8", "cuda"), ("fp16", "cpu")])
def test_a_precision_is_not_served_on_a_device_that_it_is_not_for(bundle: Path, precision: str, device: Device) -> None:
    with pytest.raises(DeviceError, match=f"{precision} is for .*; --device {device} cannot serve it"):
        Model(bundle, device, precision)


# float16


def test_float16_is_near_the_reference_where_it_can_be_tried(bundle: Path) -> None:
    trial = try_on_cpu(bundle, "fp16")
    assert trial.holds
    assert 1e-5 < trial.worst.error < trial.worst.budget == 1e-2


def test_what_float16_cannot_hold_stays_float32(bundle: Path) -> None:
    """The mask is a number beyond float16: it, its sum with the scores, and softmax are float32."""
    model = graph(bundle, "model.fp16.onnx")
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    casts = {node.output[0]: node.attribute[0].i for node in model.graph.node if node.op_type == "Cast"}
    makers = {node.output[0]: node for node in model.graph.node}
    softmaxes = [node for node in model.graph.node if node.op_type == "Softmax"]
    assert len(softmaxes) == 2
    for softmax in softmaxes:
        masked = makers[softmax.input[0]]
        assert masked.op_type == "Add"
        scores, mask = masked.input
        assert casts[scores] == TensorProto.FLOAT
        constants = [name for name in makers[mask].input if name in types]
        assert {types[name] for name in constants} == {TensorProto.FLOAT}
    assert {value.type.tensor_type.elem_type for value in model.graph.output} == {TensorProto.FLOAT}


def test_weights_and_products_are_float16(bundle: Path) -> None:
    model = graph(bundle, "model.fp16.onnx")
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("Gemm", "LayerNormalization"):
            assert {types[name] for name in node.input[1:]} == {TensorProto.FLOAT16}
    matrices = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) == 2}
    assert matrices - {TensorProto.INT64} == {TensorProto.FLOAT16}


def save_graph(path: Path, nodes: list[onnx.NodeProto], **constants: np.ndarray) -> Path:
    """A graph from `x` `[T, 2]` to `y`."""
    value = helper.make_tensor_value_info
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    x, y = value("x", TensorProto.FLOAT, ["T", 2]), value("y", TensorProto.FLOAT, ["T", 2])
    model = helper.make_model(helper.make_graph(nodes, "made", [x], [y], tensors))
    model.opset_import[0].version, model.ir_version = 20, 10
    onnx.save(model, path)
    return path


def run_in_half(path: Path, x: np.ndarray) -> np.ndarray:
    target = path.with_name("half.onnx")
    onnx.save(convert_to_float16(onnx.load(path)), target)
    session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x})
    assert y.dtype == np.float32
    return np.asarray(y)


IDENTITY = np.eye(2, dtype=np.float32)


def test_squares_beyond_float16_stay_finite(tmp_path: Path) -> None:
    """RMSNorm of values around 1,000: their squares are beyond 65,504."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Mul", ["a", "a"], ["square"]),
        helper.make_node("ReduceMean", ["square", "axis"], ["mean"], keepdims=1),
        helper.make_node("Add", ["mean", "epsilon"], ["safe"]),
        helper.make_node("Sqrt", ["safe"], ["root"]),
        helper.make_node("Div", ["a", "root"], ["y"]),
    ]
    path = save_graph(tmp_path / "rms.onnx", nodes, w=IDENTITY, axis=np.array([-1]), epsilon=np.array(1e-6, np.float32))
    x = np.array([[1000.0, 1000.0], [0.0, 0.0]], np.float32)
    np.testing.assert_allclose(run_in_half(path, x), [[1, 1], [0, 0]])


@pytest.mark.parametrize("constant", [1e-12, 1e30, -1e30])
def test_a_number_that_float16_cannot_hold_is_not_made_one(tmp_path: Path, constant: float) -> None:
    """`(x + c) / c`, which is 1 if c is large and x / c + 1 if it is small."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Add", ["a", "c"], ["sum"]),
        helper.make_node("Div", ["sum", "c"], ["y"]),
    ]
    path = save_graph(tmp_path / "sum.onnx", nodes, w=IDENTITY, c=np.array(constant, np.float32))
    np.testing.assert_allclose(run_in_half(path, np.zeros((1, 2), np.float32)), [[1, 1]])


def test_an_output_that_others_read_is_given_in_float32(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("MatMul", ["y", "w"], ["z"])]
    path = save_graph(tmp_path / "both.onnx", nodes, w=2 * IDENTITY)
    np.testing.assert_array_equal(run_in_half(path, np.ones((1, 2), np.float32)), [[2, 2]])


# What int8 cannot hold


TOKENS = TokensConfig(vocabulary=50, token_types=0)


def encoder_of(layers: int = 3, inputs: TokensConfig | ImagesConfig = TOKENS, length: int = 16) -> Encoder:
    norm = NormConfig(epsilon=1e-5)
    config = EncoderConfig(
        inputs=inputs,
        width=16,
        layers=(LayerConfig(AttentionConfig(heads=2), FeedForwardConfig(24), norm),) * layers,
        max_length=length,
        embedding_norm=norm,
    )
    torch.manual_seed(3)
    encoder = Encoder(config).eval().requires_grad_(False)
    for parameter in encoder.parameters():
        parameter.add_(0.15 * torch.randn(parameter.shape))
    return encoder


def give_outlier(encoder: Encoder, layer: int, value: float = 3000.0) -> None:
    """One value far beyond the others behind the activation, which weighs nothing: the others lose their bits to it."""
    layers = linear_layers(encoder)
    layers[f"blocks.{layer}.feed_forward.up"].bias[0] = value
    layers[f"blocks.{layer}.feed_forward.down"].weight[:, 0] = 0


def test_a_model_that_int8_holds_keeps_nothing_in_float32() -> None:
    encoder = encoder_of()
    assert layers_to_keep(encoder, make_contract(Checkpoint(encoder))) == []


def test_the_layer_behind_an_outlier_stays_float32() -> None:
    encoder = encoder_of()
    give_outlier(encoder, 1)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    shares: list[float] = []
    assert layers_to_keep(encoder, make_contract(Checkpoint(encoder)), shares.append) == ["blocks.1.feed_forward.down"]
    assert shares == sorted(shares)
    assert len(shares) > len(linear_layers(encoder))  # each alone, and some together
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_a_model_of_which_too_little_can_be_int8_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = encoder_of()
    for layer in range(3):
        give_outlier(encoder, layer)
    cases = make_contract(Checkpoint(encoder))
    assert layers_to_keep(encoder, cases) == [f"blocks.{layer}.feed_forward.down" for layer in range(3)]
    monkeypatch.setattr("heed.export.int8_sensitivity.LEAST_SHARE", 0.9)
    with pytest.raises(
        ExportError, match="15 of 18 linear layers, 79% of their weights, can be int8 within the budget"
    ):
        layers_to_keep(encoder, cases)


def test_a_layer_that_gives_no_number_stays_float32() -> None:
    """Between 2e38 and -2e38 there are no 255 steps in float32: their size is infinity."""
    encoder = encoder_of()
    layers = linear_layers(encoder)
    layers["blocks.1.attention.value"].bias[:2] = torch.tensor([2e38, -2e38])
    layers["blocks.1.attention.out"].weight[:, :2] = 0
    assert layers_to_keep(encoder, make_contract(Checkpoint(encoder))) == ["blocks.1.attention.out"]


def test_a_model_of_large_images_only_is_tried_too() -> None:
    encoder = encoder_of(layers=2, inputs=ImagesConfig(channels=1, height=42, image_width=42, patch=2), length=442)
    give_outlier(encoder, 1)
    assert layers_to_keep(encoder, make_contract(Checkpoint(encoder))) == ["blocks.1.feed_forward.down"]


def test_a_bundle_with_a_layer_in_float32_says_so_and_holds(tmp_path: Path) -> None:
    encoder = encoder_of(layers=2)
    give_outlier(encoder, 0)
    assert export_bundle(encoder, tmp_path / "mixed", precisions=["int8"]).holds
    graphs = read_manifest(tmp_path / "mixed").graphs_of("int8")
    assert [one.float32_layers for one in graphs] == [["blocks.0.feed_forward.down"]]
    assert operators(tmp_path / "mixed", "model.int8.onnx")["Int8Linear"] == LINEAR_LAYERS - 1
    weight = "encoder.blocks.0.feed_forward.down.weight"
    assert places(tmp_path / "mixed", "model.int8.onnx")[weight] == "weights.fp32.data"


def saturated(layer: int, encoder: Encoder) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Quantization whose products do not fit: in one layer large weights end at a quarter of what they should be."""
    wrong = linear_layers(encoder)[f"blocks.{layer}.feed_forward.up"].weight.numpy()

    def saturating(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        int8, scale = quantized(weight)
        return (int8.clip(-16, 16), scale) if np.array_equal(weight, wrong) else (int8, scale)

    return saturating


def test_a_graph_that_saturates_is_refused_and_the_layer_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = encoder_of(layers=2)
    monkeypatch.setattr(heed.export.passes.quantize_to_int8, "quantized", saturated(1, encoder))
    with pytest.raises(ExportError) as refused:
        export_bundle(encoder, tmp_path / "wrong", precisions=["int8"])
    message = str(refused.value)
    assert "last_hidden_state in int8 in case " in message
    assert "of 1 - cosine is allowed; it begins in layer 2 (1 - cosine of the hidden states: embeddings " in message
    assert message.endswith("; nothing was written")
    assert list(tmp_path.iterdir()) == []


def test_what_is_wrong_in_float16_on_the_cpu_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def halved(model: onnx.ModelProto) -> onnx.ModelProto:
        """Halves a weight. The fused graph, which no CPU runs, has no weight of that name."""
        for tensor in model.graph.initializer:
            if tensor.name == "encoder.blocks.0.attention.value.weight":
                tensor.CopyFrom(numpy_helper.from_array(tensor_array(tensor) / 2, tensor.name))
        return convert_to_float16(model)

    monkeypatch.setattr(heed.export.passes.pipeline, "convert_to_float16", halved)
    with pytest.raises(ExportError, match=r"in fp16 in case .* it begins in layer 1 \(the error of the hidden states"):
        export_bundle(encoder_of(layers=1), tmp_path / "wrong", precisions=["fp16"])
    assert list(tmp_path.iterdir()) == []
