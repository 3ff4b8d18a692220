"""Converts a float32 graph to float16, for CUDA.

Weights, linear layers, the products of attention and what lies between them are float16. What float16 cannot hold stays
float32:

- the mask, a number far beyond float16 (`heed.model.softmax.LOWEST`), what it is added to, and softmax over the sum;
- squares, sums, exponentials and their quotients: every operator that is not listed here;
- the statistics of a LayerNormalization: the operator itself computes them in float32 (its attribute `stash_type`);
- inputs and outputs.

Casts are inserted where one meets the other.
"""

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from heed.export.weights import is_large, tensor_array

FLOAT16, FLOAT32 = TensorProto.FLOAT16, TensorProto.FLOAT
LARGEST, SMALLEST = float(np.finfo(np.float16).max), float(np.finfo(np.float16).smallest_normal)

# Operators that compute in float16 if their inputs are float16: those that move values, and those that compute each
# value from few others without leaving their range.
FOLLOWS = {
    "Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad", "Reshape", "Slice",
    "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
    "Add", "Gelu", "LayerNormalization", "Mul", "Neg", "Relu", "Sigmoid", "Sub", "Tanh", "Where",
    "BiasGelu", "PackedMultiHeadAttention", "SkipLayerNormalization",
}  # fmt: skip
PRODUCTS = {"Gemm", "MatMul"}


def convert_to_float16(model: ModelProto) -> ModelProto:
    _Conversion(model).run()
    return model


def _fits(constant: np.ndarray) -> bool:
    """Whether float16 can hold a constant: no value is too large, and a single one is not too small either."""
    finite = np.abs(constant[np.isfinite(constant)])
    if finite.max(initial=0.0) > LARGEST:
        return False
    return constant.size > 1 or not 0 < finite.max(initial=0.0) < SMALLEST


class _Conversion:
    """Decides for each node, in the graph's order, whether it computes in float16."""

    def __init__(self, model: ModelProto) -> None:
        self._graph = model.graph
        inferred = onnx.shape_inference.infer_shapes(_with_weights_as_inputs(model)).graph
        values = [*inferred.value_info, *inferred.input, *inferred.output]
        self._types = {value.name: value.type.tensor_type.elem_type for value in values}
        self._types |= {tensor.name: tensor.data_type for tensor in self._graph.initializer}
        self._constants = {tensor.name: tensor for tensor in self._graph.initializer if tensor.data_type == FLOAT32}
        self._fitting = {name for name, tensor in self._constants.items() if _fits(tensor_array(tensor))}
        self._float16: set[str] = set()  # values that are float16
        self._units: set[str] = set()  # float32 values between 0 and 1, which lose nothing by a cast to float16
        self._casts: dict[tuple[str, int], str] = {}
        self._nodes: list[NodeProto] = []

    def run(self) -> None:
        for node in self._graph.node:
            if self._computes_in_float16(node):
                self._cast_inputs(node, FLOAT16)
                self._float16.update(name for name in node.output if self._is_float(name))
            else:
                self._cast_inputs(node, FLOAT32)
                if self._is_unit(node):
                    self._units.update(node.output)
            self._nodes.append(node)
        for output in self._graph.output:
            self._restore_output(output.name)
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)
        self._graph.ClearField("value_info")
        self._keep_used_constants()

    def _is_float(self, name: str) -> bool:
        return self._types.get(name) == FLOAT32

    def _can_be_float16(self, name: str) -> bool:
        return name in self._float16 or name in self._units or name in self._fitting

    def _computes_in_float16(self, node: NodeProto) -> bool:
        inputs = [name for name in node.input if self._is_float(name)]
        if node.op_type in PRODUCTS and any(self._is_matrix(name) and self._can_be_float16(name) for name in inputs):
            return True
        if node.op_type == "Gather" and node.input[0] in self._constants:  # a table
            return self._can_be_float16(node.input[0])
        if node.op_type == "Mul" and node.input[0] == node.input[1]:  # squares are for sums
            return False
        return (
            node.op_type in FOLLOWS | PRODUCTS
            and any(name in self._float16 for name in inputs)
            and all(self._can_be_float16(name) for name in inputs)
        )

    def _is_matrix(self, name: str) -> bool:
        return name in self._constants and len(self._constants[name].dims) >= 2

    def _is_unit(self, node: NodeProto) -> bool:
        if node.op_type == "Cast":
            return self._types.get(node.input[0]) == TensorProto.BOOL
        products = node.op_type in FOLLOWS - {"Add", "Sub", "Neg", "LayerNormalization"}
        inputs = [name for name in node.input if self._is_float(name)]
        return node.op_type == "Softmax" or (products and bool(inputs) and all(name in self._units for name in inputs))

    def _cast_inputs(self, node: NodeProto, kind: int) -> None:
        """Lets a node read its floating-point inputs as `kind`."""
        for number, name in enumerate(node.input):
            if self._is_float(name) and (name in self._float16) != (kind == FLOAT16):
                node.input[number] = self._as(name, kind)

    def _as(self, name: str, kind: int) -> str:
        """The same value as `kind`: a constant, or by a cast."""
        if (name, kind) not in self._casts:
            other = self._casts[name, kind] = f"{name}_as_{'half' if kind == FLOAT16 else 'float'}"
            if name in self._constants:
                values = tensor_array(self._constants[name]).astype(np.float16)
                self._graph.initializer.append(numpy_helper.from_array(values, other))
            else:
                self._nodes.append(helper.make_node("Cast", [name], [other], f"cast_{other}", to=kind))
        return self._casts[name, kind]

    def _restore_output(self, output: str) -> None:
        """Casts an output of the graph to float32 if it is float16; the float16 value gets another name."""
        if output not in self._float16:
            return
        inner = f"{output}_half"
        for node in self._nodes:
            for names in (node.input, node.output):
                for number, name in enumerate(names):
                    if name == output:
                        names[number] = inner
        self._nodes.append(helper.make_node("Cast", [inner], [output], f"cast_{output}", to=FLOAT32))

    def _keep_used_constants(self) -> None:
        used = {name for node in self._nodes for name in node.input}
        kept = [tensor for tensor in self._graph.initializer if tensor.name in used]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)


def _with_weights_as_inputs(model: ModelProto) -> ModelProto:
    """A copy without large weights: types do not depend on them, and shape inference copies the whole model."""
    light = ModelProto()
    light.CopyFrom(model)
    for tensor in model.graph.initializer:
        if is_large(tensor):
            light.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    kept = [tensor for tensor in light.graph.initializer if not is_large(tensor)]
    del light.graph.initializer[:]
    light.graph.initializer.extend(kept)
    return light
