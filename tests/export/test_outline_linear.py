"""Linear layers are named for kernels, with a bias or without one, and compute what they did."""

from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from heed.export.passes.outline_linear import outline_linear
from heed.server.engine.session import CPU

RANDOM = np.random.default_rng(3)
WEIGHT, BIAS = RANDOM.standard_normal((5, 4), np.float32), RANDOM.standard_normal(5, np.float32)


def graph(operator: str, *constants: str, **attributes: Any) -> ModelProto:
    """Two equal layers, one behind the other."""
    tensors = {"weight": WEIGHT, "turned": WEIGHT.T.copy(), "back": WEIGHT.T.copy(), "bias": BIAS}
    nodes = [
        helper.make_node(operator, ["x", *constants], ["y"], **attributes),
        helper.make_node("Gemm", ["y", "back"], ["z"], transB=1),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["tokens", 4])
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["tokens", 4])
    initializers = [numpy_helper.from_array(tensors[name], name) for name in {*constants, "back"}]
    made = helper.make_graph(nodes, "layers", [x], [z], initializers)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def answer(model: ModelProto) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=[CPU])
    found: np.ndarray = session.run(None, {"x": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)})[0]
    return found


@pytest.mark.parametrize(
    ("model", "operators"),
    [
        pytest.param(graph("Gemm", "weight", "bias", transB=1), ["Linear", "Linear"], id="with a bias"),
        pytest.param(graph("Gemm", "weight", transB=1), ["Linear", "Linear"], id="without one"),
        pytest.param(graph("MatMul", "turned"), ["Product", "Linear"], id="a product"),
        pytest.param(graph("Gemm", "weight", transB=1, alpha=2.0), ["Gemm", "Linear"], id="a scaled one"),
    ],
)
def test_layers_are_named(model: ModelProto, operators: list[str]) -> None:
    before = answer(model)
    outlined = outline_linear(model)
    assert [node.op_type for node in outlined.graph.node] == operators
    assert all(len(node.input) == 3 for node in outlined.graph.node if node.op_type == "Linear")
    assert np.array_equal(answer(outlined), before)
