"""A float32 graph with its linear layers in int8, for the CPU.

Dynamic quantization: weights are int8 with a scale for each output channel, made here; activations are uint8 between
each token's lowest and highest value, found anew in every run (ZeroQuant: Yao et al., 2022). One scale for a whole
tensor, as `onnxruntime.quantization.quantize_dynamic` would write, lets a token's neighbours in a group change its
answer, and one large value anywhere takes the precision from all tokens.

Weights keep to 7 of their 8 bits. A CPU without VNNI adds two products of uint8 and int8 in 16 bits, and those of all 8
bits saturate there, far from the right sum and without a word; 2 * 255 * 63 fits.

Everything but linear layers stays float32, and so do those that int8 cannot hold (see `export/sensitivity.py`).

Letters: K values of a token in, M values out.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import nn

from model import Encoder

LARGEST_WEIGHT, STEPS = 63, 255
LEAST = 1e-12  # a token of equal values has a scale, too


def linear_layers(encoder: Encoder) -> dict[str, nn.Linear]:
    """Every linear layer by its name."""
    return {name: module for name, module in encoder.named_modules() if isinstance(module, nn.Linear)}


def quantized(weight_MK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights in int8 `[M, K]`, and the scale of each output channel `[M]`."""
    scale_M = np.maximum(np.abs(weight_MK).max(1), LEAST).astype(np.float32) / np.float32(LARGEST_WEIGHT)
    return np.rint(weight_MK / scale_M[:, None]).astype(np.int8), scale_M


def write_int8(encoder: Encoder, kept: Collection[str], source: Path, target: Path) -> None:
    """Writes the float32 graph `source` in int8, its weights as `<target>.data`.

    Args:
        kept: names of linear layers that stay float32.
    """
    model = onnx.load(source)
    quantization = _Quantization(model.graph.initializer, encoder, kept)
    nodes = [new for node in model.graph.node for new in quantization.of(node)]
    used = {name for node in nodes for name in node.input}
    tensors = [tensor for tensor in [*model.graph.initializer, *quantization.made.values()] if tensor.name in used]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(tensors)
    model.graph.ClearField("value_info")
    onnx.save(model, target, save_as_external_data=True, location=target.name + ".data", size_threshold=1024)


def _digest(weight_MK: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(weight_MK, np.float32).tobytes()).digest()


class _Quantization:
    """Puts other nodes in the place of linear layers."""

    def __init__(self, tensors: Iterable[TensorProto], encoder: Encoder, kept: Collection[str]) -> None:
        self._tensors = {tensor.name: tensor for tensor in tensors}
        # The exporter may have transposed and renamed a weight, so that its values say which it is.
        self._weights = {
            _digest(layer.weight.detach().numpy()) for name, layer in linear_layers(encoder).items() if name not in kept
        }
        self._quantized_inputs: set[str] = set()
        self.made: dict[str, TensorProto] = {}

    def of(self, node: NodeProto) -> Iterator[NodeProto]:
        weight_MK = self._weight(node)
        if weight_MK is None:
            yield node
            return
        x, weight = node.input[:2]
        if x not in self._quantized_inputs:  # query, key and value share theirs
            self._quantized_inputs.add(x)
            yield from self._quantize(x)
        yield from self._multiply(node, x, weight, weight_MK)

    def _weight(self, node: NodeProto) -> np.ndarray | None:
        """`[M, K]` of a linear layer that becomes int8."""
        if node.op_type not in ("Gemm", "MatMul") or node.input[1] not in self._tensors:
            return None
        weight = numpy_helper.to_array(self._tensors[node.input[1]])
        if weight.ndim != 2:
            return None
        turned = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        weight_MK = weight if turned else weight.T
        return weight_MK if _digest(weight_MK) in self._weights else None

    def _quantize(self, x: str) -> Iterator[NodeProto]:
        """`round((x - lowest) / scale)`: between a token's lowest value and its highest lie 255 steps."""
        axis = self._constant("int8_axis", np.array([-1]))
        least = self._constant("int8_least", np.float32(LEAST))
        step = self._constant("int8_step", np.float32(1 / STEPS))
        one, zero = self._constant("int8_one", np.float32(1)), self._constant("int8_zero", np.uint8(0))
        yield _node("ReduceMin", [x, axis], f"{x}_lowest", keepdims=1)
        yield _node("ReduceMax", [x, axis], f"{x}_highest", keepdims=1)
        yield _node("Sub", [f"{x}_highest", f"{x}_lowest"], f"{x}_width")
        yield _node("Max", [f"{x}_width", least], f"{x}_range")
        yield _node("Mul", [f"{x}_range", step], f"{x}_scale")
        yield _node("Sub", [x, f"{x}_lowest"], f"{x}_from_0")
        yield _node("Div", [f"{x}_from_0", f"{x}_scale"], f"{x}_steps")
        yield _node("QuantizeLinear", [f"{x}_steps", one, zero], f"{x}_uint8")

    def _multiply(self, node: NodeProto, x: str, weight: str, weight_MK: np.ndarray) -> Iterator[NodeProto]:
        """The product of the steps, in integers, and of the lowest values with the sum of each channel's weights."""
        y = node.output[0]
        int8_MK, scale_M = quantized(weight_MK)
        weights = self._constant(f"{weight}_int8", np.ascontiguousarray(int8_MK.T))
        scales = self._constant(f"{weight}_scale", scale_M)
        sums = self._constant(f"{weight}_sum", int8_MK.sum(1).astype(np.float32) * scale_M)
        bias = node.input[2] if len(node.input) == 3 else ""
        yield _node("MatMulInteger", [f"{x}_uint8", weights], f"{y}_int32")
        yield _node("Cast", [f"{y}_int32"], f"{y}_float", to=TensorProto.FLOAT)
        yield _node("Mul", [f"{y}_float", scales], f"{y}_by_channel")
        yield _node("Mul", [f"{y}_by_channel", f"{x}_scale"], f"{y}_by_token")
        yield _node("Mul", [sums, f"{x}_lowest"], f"{y}_lowest")
        yield _node("Add", [f"{y}_by_token", f"{y}_lowest"], f"{y}_sum" if bias else y)
        if bias:
            yield _node("Add", [f"{y}_sum", bias], y)

    def _constant(self, name: str, values: np.ndarray | np.generic) -> str:
        if name not in self.made:
            self.made[name] = numpy_helper.from_array(np.asarray(values), name)
        return name


def _node(operator: str, inputs: list[str], output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(operator, inputs, [output], f"node_{output}", **attributes)
