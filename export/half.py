"""A float32 graph in float16, for CUDA.

Weights, linear layers, the products of attention and what lies between them are float16. What float16 cannot hold stays
float32:

- the mask, a number far beyond float16 (`heed.model.softmax.LOWEST`), what it is added to, and softmax over the sum;
- squares, sums, exponentials, quotients of those: every operator that is not named here;
- the statistics of a LayerNormalization: the operator itself computes them in float32 (its attribute `stash_type`);
- inputs and outputs.

Casts stand where one meets the other.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT
LARGEST, SMALLEST = float(np.finfo(np.float16).max), float(np.finfo(np.float16).smallest_normal)

# Operators that compute in float16 if what comes in is float16: those that move values, and those that compute each
# value from few others without leaving their range.
FOLLOWS = {
    "Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad", "Reshape", "Slice",
    "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
    "Add", "Gelu", "LayerNormalization", "Mul", "Neg", "Relu", "Sigmoid", "Sub", "Tanh", "Where",
    "BiasGelu", "PackedMultiHeadAttention", "SkipLayerNormalization",
}  # fmt: skip
PRODUCTS = {"Gemm", "MatMul"}


def write_half(source: Path | ModelProto, target: Path) -> None:
    """Writes a float32 graph in float16, its weights as `<target>.data`."""
    model = onnx.load(source) if isinstance(source, Path) else source
    _Conversion(model).run()
    onnx.save(model, target, save_as_external_data=True, location=target.name + ".data", size_threshold=1024)


def _holds(constant: np.ndarray) -> bool:
    """Whether float16 can hold a constant: no value is too large, and a single one is not too small either."""
    finite = np.abs(constant[np.isfinite(constant)])
    if finite.max(initial=0.0) > LARGEST:
        return False
    return constant.size > 1 or not 0 < finite.max(initial=0.0) < SMALLEST


class _Conversion:
    """Walks through the nodes in order and decides for each what it computes in."""

    def __init__(self, model: ModelProto) -> None:
        self._graph = model.graph
        inferred = onnx.shape_inference.infer_shapes(_without_weights(model)).graph
        values = [*inferred.value_info, *inferred.input, *inferred.output]
        self._types = {value.name: value.type.tensor_type.elem_type for value in values}
        self._types |= {tensor.name: tensor.data_type for tensor in self._graph.initializer}
        self._constants = {
            tensor.name: numpy_helper.to_array(tensor)
            for tensor in self._graph.initializer
            if tensor.data_type == FLOAT
        }
        self._half: set[str] = set()  # values that are float16
        self._unit: set[str] = set()  # float32 values between 0 and 1, so that nothing is lost by making them float16
        self._cast: dict[tuple[str, int], str] = {}
        self._nodes: list[NodeProto] = []

    def run(self) -> None:
        for node in self._graph.node:
            if self._computes_in_half(node):
                self._take_inputs(node, HALF)
                self._half.update(name for name in node.output if self._is_float(name))
            else:
                self._take_inputs(node, FLOAT)
                if self._gives_units(node):
                    self._unit.update(node.output)
            self._nodes.append(node)
        for output in self._graph.output:
            self._give(output.name)
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)
        self._graph.ClearField("value_info")
        self._keep_used_constants()

    def _is_float(self, name: str) -> bool:
        return self._types.get(name) == FLOAT

    def _can_be_half(self, name: str) -> bool:
        return name in self._half | self._unit or (name in self._constants and _holds(self._constants[name]))

    def _computes_in_half(self, node: NodeProto) -> bool:
        inputs = [name for name in node.input if self._is_float(name)]
        if node.op_type in PRODUCTS and any(self._is_matrix(name) and self._can_be_half(name) for name in inputs):
            return True
        if node.op_type == "Gather" and node.input[0] in self._constants:  # a table
            return self._can_be_half(node.input[0])
        if node.op_type == "Mul" and node.input[0] == node.input[1]:  # squares are for sums
            return False
        return (
            node.op_type in FOLLOWS | PRODUCTS
            and any(name in self._half for name in inputs)
            and all(self._can_be_half(name) for name in inputs)
        )

    def _is_matrix(self, name: str) -> bool:
        return name in self._constants and self._constants[name].ndim >= 2

    def _gives_units(self, node: NodeProto) -> bool:
        if node.op_type == "Cast":
            return self._types.get(node.input[0]) == TensorProto.BOOL
        products = node.op_type in FOLLOWS - {"Add", "Sub", "Neg", "LayerNormalization"}
        inputs = [name for name in node.input if self._is_float(name)]
        return node.op_type == "Softmax" or (products and bool(inputs) and all(name in self._unit for name in inputs))

    def _take_inputs(self, node: NodeProto, kind: int) -> None:
        """Lets a node read its floats as `kind`."""
        for place, name in enumerate(node.input):
            if self._is_float(name) and (name in self._half) != (kind == HALF):
                node.input[place] = self._as(name, kind)

    def _as(self, name: str, kind: int) -> str:
        """The same value as `kind`: a constant, or by a cast."""
        if (name, kind) not in self._cast:
            other = self._cast[name, kind] = f"{name}_as_{'half' if kind == HALF else 'float'}"
            if name in self._constants:
                self._graph.initializer.append(numpy_helper.from_array(self._constants[name].astype(np.float16), other))
            else:
                self._nodes.append(helper.make_node("Cast", [name], [other], f"cast_{other}", to=kind))
        return self._cast[name, kind]

    def _give(self, output: str) -> None:
        """Makes an output of the graph float32 if it is float16: the value gets another name, and a cast gives it."""
        if output not in self._half:
            return
        inner = f"{output}_half"
        for node in self._nodes:
            for names in (node.input, node.output):
                for place, name in enumerate(names):
                    if name == output:
                        names[place] = inner
        self._nodes.append(helper.make_node("Cast", [inner], [output], f"cast_{output}", to=FLOAT))

    def _keep_used_constants(self) -> None:
        used = {name for node in self._nodes for name in node.input}
        kept = [tensor for tensor in self._graph.initializer if tensor.name in used]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)


def _without_weights(model: ModelProto) -> ModelProto:
    """Inputs in the place of large weights, for types do not depend on them and inference copies the whole model."""
    light = ModelProto()
    light.CopyFrom(model)
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) > 1024:
            light.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    kept = [tensor for tensor in light.graph.initializer if len(tensor.raw_data) <= 1024]
    del light.graph.initializer[:]
    light.graph.initializer.extend(kept)
    return light
