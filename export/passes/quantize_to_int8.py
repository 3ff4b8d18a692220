"""Quantizes the linear layers of a float32 graph to int8, for the CPU.

Dynamic quantization: weights are int8 with a scale for each output channel, made here; activations are uint8 between
each token's lowest and highest value, found anew in every run (ZeroQuant: Yao et al., 2022). One scale for a whole
tensor, as `onnxruntime.quantization.quantize_dynamic` would write, lets a token's neighbours in a batch change its
answer, and one large value anywhere takes the precision from all tokens.

Weights keep to 7 of their 8 bits. A CPU without VNNI adds two products of uint8 and int8 in 16 bits, and those of all 8
bits saturate there, far from the right sum and without a word; 2 * 255 * 63 fits.

Everything but linear layers stays float32, and so do those that int8 cannot hold (see `export/int8_sensitivity.py`).

Each layer becomes a call of the function `heed.Int8Linear` (see `onnx_functions.py`).

Letters: K values of a token in, M values out.
"""

import hashlib
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import nn

from heed.export.passes.onnx_functions import DOMAIN, add_functions, standard_opset
from heed.export.weights import tensor_array
from heed.model import Encoder

LARGEST_WEIGHT, STEPS = 63, 255
LEAST = 1e-12  # a token of equal values has a scale, too


def linear_layers(encoder: Encoder) -> dict[str, nn.Linear]:
    """Every linear layer by its name."""
    return {name: module for name, module in encoder.named_modules() if isinstance(module, nn.Linear)}


def quantized(weight_MK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights in int8 `[M, K]`, and the scale of each output channel `[M]`."""
    scale_M = np.maximum(np.abs(weight_MK).max(1), LEAST).astype(np.float32) / np.float32(LARGEST_WEIGHT)
    return np.rint(weight_MK / scale_M[:, None]).astype(np.int8), scale_M


def quantize_to_int8(model: ModelProto, encoder: Encoder, float32_layers: Collection[str]) -> ModelProto:
    """
    Args:
        encoder: whose layers the graph computes.
        float32_layers: names of linear layers that stay float32.
    """
    quantization = _Quantization(model.graph.initializer, encoder, float32_layers)
    nodes = [quantization.quantized_node(node) for node in model.graph.node]
    used = {name for node in nodes for name in node.input}
    tensors = [tensor for tensor in [*model.graph.initializer, *quantization.constants.values()] if tensor.name in used]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(tensors)
    model.graph.ClearField("value_info")
    add_functions(model, [int8_function(model)] if quantization.constants else [])
    return model


def _digest(weight_MK: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(weight_MK, np.float32).tobytes()).digest()


class _Quantization:
    """Replaces the nodes of linear layers."""

    def __init__(self, tensors: Iterable[TensorProto], encoder: Encoder, float32_layers: Collection[str]) -> None:
        self._tensors = {tensor.name: tensor for tensor in tensors}
        # The exporter may have transposed and renamed a weight, so it is identified by its values.
        self._weights = {
            _digest(layer.weight.detach().numpy())
            for name, layer in linear_layers(encoder).items()
            if name not in float32_layers
        }
        self.constants: dict[str, TensorProto] = {}

    def quantized_node(self, node: NodeProto) -> NodeProto:
        """The node that computes the layer in int8; the same node if it is not a layer to quantize."""
        weight_MK = self._weight(node)
        if weight_MK is None:
            return node
        x, weight = node.input[:2]
        y = node.output[0]
        int8_MK, scale_M = quantized(weight_MK)
        inputs = [
            x,
            self._constant(f"{weight}_int8", np.ascontiguousarray(int8_MK.T)),
            self._constant(f"{weight}_scale", scale_M),
            self._constant(f"{weight}_sum", int8_MK.sum(1).astype(np.float32) * scale_M),
            node.input[2] if len(node.input) == 3 else self._constant(f"{weight}_no_bias", np.zeros_like(scale_M)),
        ]
        return helper.make_node("Int8Linear", inputs, [y], f"node_{y}", domain=DOMAIN)

    def _weight(self, node: NodeProto) -> np.ndarray | None:
        """`[M, K]`; None if the node is not a linear layer to quantize."""
        if node.op_type not in ("Gemm", "MatMul") or node.input[1] not in self._tensors:
            return None
        weight = tensor_array(self._tensors[node.input[1]])
        if weight.ndim != 2:
            return None
        turned = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        weight_MK = weight if turned else weight.T
        return weight_MK if _digest(weight_MK) in self._weights else None

    def _constant(self, name: str, values: np.ndarray) -> str:
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(values, name)
        return name


def int8_function(model: ModelProto) -> FunctionProto:
    """`heed.Int8Linear` in ONNX's own operators.

    `steps = round((x - lowest) / scale)`: between a token's lowest value and its highest lie 255. The product of the
    steps is one of integers, that of the lowest values takes no more than the sum of each channel's weights.
    """
    nodes = [
        _fixed("axis", np.array([-1])),
        _fixed("least", np.float32(LEAST)),
        _fixed("step", np.float32(1 / STEPS)),
        _fixed("one", np.float32(1)),
        _fixed("zero", np.uint8(0)),
        _node("ReduceMin", ["x", "axis"], "lowest", keepdims=1),
        _node("ReduceMax", ["x", "axis"], "highest", keepdims=1),
        _node("Sub", ["highest", "lowest"], "width"),
        _node("Max", ["width", "least"], "range"),
        _node("Mul", ["range", "step"], "x_scale"),
        _node("Sub", ["x", "lowest"], "from_0"),
        _node("Div", ["from_0", "x_scale"], "steps"),
        _node("QuantizeLinear", ["steps", "one", "zero"], "x_uint8"),
        _node("MatMulInteger", ["x_uint8", "weight"], "y_int32"),
        _node("Cast", ["y_int32"], "y_float", to=TensorProto.FLOAT),
        _node("Mul", ["y_float", "scale"], "by_channel"),
        _node("Mul", ["by_channel", "x_scale"], "by_token"),
        _node("Mul", ["sum", "lowest"], "y_lowest"),
        _node("Add", ["by_token", "y_lowest"], "without_bias"),
        _node("Add", ["without_bias", "bias"], "y"),
    ]
    inputs = ["x", "weight", "scale", "sum", "bias"]
    return helper.make_function(DOMAIN, "Int8Linear", inputs, ["y"], nodes, [standard_opset(model)])


def _fixed(name: str, value: np.ndarray | np.generic) -> NodeProto:
    return _node("Constant", [], name, value=numpy_helper.from_array(np.asarray(value)))


def _node(operator: str, inputs: list[str], output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(operator, inputs, [output], **attributes)
