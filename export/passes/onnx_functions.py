"""The functions that a graph defines (ONNX IR, "Functions"), in heed's own domain.

A graph calls `heed.Linear`, `heed.Attention` and others, and says in a function of that name what the call means. The
server's kernels compute a call at once (`server/engine/kernels`). Any other onnxruntime puts the function's nodes in
the call's place when it loads the file, and gets the same bits as from a graph without functions.
"""

from collections.abc import Iterable

import onnx
from onnx import FunctionProto, ModelProto, helper

DOMAIN, VERSION = "heed", 1


def standard_opset(model: ModelProto) -> onnx.OperatorSetIdProto:
    """The version of ONNX's own operators that a graph uses."""
    return next(opset for opset in model.opset_import if not opset.domain)


def add_functions(model: ModelProto, functions: Iterable[FunctionProto]) -> None:
    """Defines functions in a graph, so that its nodes can call them."""
    model.functions.extend(functions)
    if model.functions and not any(opset.domain == DOMAIN for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, VERSION))
