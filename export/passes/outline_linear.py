"""Replaces linear layers by calls of functions, so that a runtime can bring kernels of its own for them.

A product with a constant matrix becomes a call of `heed.Linear`, `heed.Linear16` or `heed.Product`. See
`onnx_functions.py`.
"""

from typing import Any

import numpy as np
import onnx
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from heed.export.passes.onnx_functions import DOMAIN, add_functions, standard_opset

MOST_VALUES = 40_000  # of a token: what `server/engine/kernels/packed.h` (MAX_DEPTH) can add up


def outline_linear(model: ModelProto) -> ModelProto:
    """Calls `heed.Linear` for layers, with a bias of zeros if there is none, and `heed.Product` for other products."""
    return _outline(model, "Linear")


def outline_linear_16_bit(model: ModelProto) -> ModelProto:
    """The same with `heed.Linear16`: a kernel may compute it with integers of 16 bits, which is exact enough for the
    float32 layers of an int8 graph. Other runtimes compute the same as for `heed.Linear`."""
    return _outline(model, "Linear16")


def _outline(model: ModelProto, linear: str) -> ModelProto:
    matrices = {tensor.name: tensor for tensor in model.graph.initializer if _is_matrix(tensor)}
    constants = {tensor.name for tensor in model.graph.initializer}
    opset = standard_opset(model)
    functions: dict[str, FunctionProto] = {}
    for node in model.graph.node:
        weight = matrices.get(node.input[1]) if len(node.input) > 1 else None
        if weight is None or max(weight.dims) > MOST_VALUES:
            continue
        if node.op_type == "Gemm" and _is_linear(node) and constants.issuperset(node.input[2:]):
            if len(node.input) == 2:
                node.input.append(_zeros(model, weight.dims[0], constants))
            _call(node, linear)
            functions[linear] = _function(linear, ["x", "weight", "bias"], "Gemm", opset, transB=1)
        elif node.op_type == "MatMul":
            _call(node, "Product")
            functions["Product"] = _function("Product", ["x", "weight"], "MatMul", opset)
    add_functions(model, functions.values())
    return model


def _zeros(model: ModelProto, count: int, constants: set[str]) -> str:
    """The name of a constant of zeros, one for all layers of a width."""
    name = f"no_bias_{count}"
    if name not in constants:
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(count, np.float32), name))
        constants.add(name)
    return name


def _is_matrix(tensor: TensorProto) -> bool:
    return tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2


def _is_linear(node: NodeProto) -> bool:
    """`x weight^T + bias` or `x weight^T`, nothing scaled."""
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    actual = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0} | attributes
    return actual == {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}


def _call(node: NodeProto, function: str) -> None:
    node.op_type, node.domain = function, DOMAIN
    del node.attribute[:]


def _function(
    name: str, inputs: list[str], operator: str, opset: onnx.OperatorSetIdProto, **attributes: Any
) -> FunctionProto:
    body = helper.make_node(operator, inputs, ["y"], **attributes)
    return helper.make_function(DOMAIN, name, inputs, ["y"], [body], [opset])
