"""Names the linear layers of a graph, so that a runtime can bring its own way to compute them.

A product with a constant matrix becomes a call of `heed.Linear`, `heed.Linear16` or `heed.Product`, and the graph says
what they mean in functions (ONNX IR, "Functions"). A runtime that knows nothing of them puts the bodies in their place,
as any onnxruntime does when it loads the file, and gets the bits that it would have got from the plain operators.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnx
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, helper

DOMAIN, VERSION = "heed", 1
MOST_VALUES = 40_000  # of a token: what `server/engine/kernels/packed.h` (MAX_DEPTH) can add up


def name_layers(path: Path, rough: bool = False) -> None:
    """Rewrites the graph `path` in place; its weights stay where they are.

    Args:
        rough: integers of 16 bits are enough, as beside layers in int8. It means the same to other runtimes.
    """
    linear = "Linear16" if rough else "Linear"
    model = onnx.load(path, load_external_data=False)
    matrices = {tensor.name: tensor for tensor in model.graph.initializer if _is_matrix(tensor)}
    constants = {tensor.name for tensor in model.graph.initializer}
    opset = next(opset for opset in model.opset_import if not opset.domain)
    functions: dict[str, FunctionProto] = {}
    for node in model.graph.node:
        weight = matrices.get(node.input[1]) if len(node.input) > 1 else None
        if weight is None or max(weight.dims) > MOST_VALUES:
            continue
        if node.op_type == "Gemm" and _is_linear(node) and node.input[2] in constants:
            _call(node, linear)
            functions[linear] = _function(linear, ["x", "weight", "bias"], "Gemm", opset, transB=1)
        elif node.op_type == "MatMul":
            _call(node, "Product")
            functions["Product"] = _function("Product", ["x", "weight"], "MatMul", opset)
    add_functions(model, functions.values())
    onnx.save(model, path)


def add_functions(model: ModelProto, functions: Iterable[FunctionProto]) -> None:
    """Lets a graph call these."""
    model.functions.extend(functions)
    if model.functions and not any(opset.domain == DOMAIN for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, VERSION))


def _is_matrix(tensor: TensorProto) -> bool:
    return tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2


def _is_linear(node: NodeProto) -> bool:
    """`x weight^T + bias`, nothing scaled."""
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    asked = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0} | attributes
    return len(node.input) == 3 and asked == {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}


def _call(node: NodeProto, function: str) -> None:
    node.op_type, node.domain = function, DOMAIN
    del node.attribute[:]


def _function(
    name: str, inputs: list[str], operator: str, opset: onnx.OperatorSetIdProto, **attributes: Any
) -> FunctionProto:
    body = helper.make_node(operator, inputs, ["y"], **attributes)
    return helper.make_function(DOMAIN, name, inputs, ["y"], [body], [opset])
