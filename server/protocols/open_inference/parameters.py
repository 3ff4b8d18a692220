"""The parameters of the Open Inference Protocol: what is understood, and what is refused by its name.

Nothing is ignored that a caller may count on: a word that is misspelt would change the answer in silence.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from heed.protos.open_inference_pb2 import InferParameter, ModelInferRequest
from heed.server.errors import InvalidArgument
from heed.server.requests.tokenizer import Side

Parameters = Mapping[str, InferParameter]
Check = Callable[[str, InferParameter], Any]

SIDES: dict[str, Side] = {"left": "left", "right": "right"}


def _bool(name: str, parameter: InferParameter) -> bool:
    if parameter.WhichOneof("parameter_choice") != "bool_param":
        raise InvalidArgument(f"{name} must be a bool")
    return parameter.bool_param


def _side(name: str, parameter: InferParameter) -> Side | None:
    """The end at which to cut: true is the right one."""
    if parameter.WhichOneof("parameter_choice") == "bool_param":
        return "right" if parameter.bool_param else None
    if side := SIDES.get(parameter.string_param):
        return side
    raise InvalidArgument(f"{name} must be a bool, or one of the strings left and right")


def _count(name: str, parameter: InferParameter) -> int:
    kind = parameter.WhichOneof("parameter_choice")
    value: int = getattr(parameter, kind) if kind in ("int64_param", "uint64_param") else -1
    if value < 0:
        raise InvalidArgument(f"{name} must be an integer from 0 on")
    return value


def _plain(name: str, parameter: InferParameter) -> str:
    """MLServer's word for values that are what they seem: texts, or numbers."""
    if parameter.string_param not in ("str", "np"):
        raise InvalidArgument(f"{name} must be 'str' or 'np', got {parameter.string_param!r}")
    return parameter.string_param


# What a request may say, and its inputs and outputs. Some of it changes nothing here and so does no harm:
# how values would be encoded over HTTP, and MLServer's codecs.
OF_REQUESTS: dict[str, Check] = {
    "truncate": _side,
    "timeout": _count,
    "priority": _count,
    "triton_enable_empty_final_response": _bool,
    "binary_data_output": _bool,
    "content_type": _plain,
}
OF_INPUTS: dict[str, Check] = {"binary_data_size": _count, "content_type": _plain}
OF_OUTPUTS: dict[str, Check] = {"classification": _count, "binary_data": _bool, "content_type": _plain}

NO_SEQUENCES = "models here remember nothing from one request to the next"
NO_SHARED_MEMORY = "there is no shared memory here, tensors travel in the messages"
REFUSED = {
    "sequence_id": NO_SEQUENCES,
    "sequence_start": NO_SEQUENCES,
    "sequence_end": NO_SEQUENCES,
    "shared_memory_region": NO_SHARED_MEMORY,
    "shared_memory_byte_size": NO_SHARED_MEMORY,
    "shared_memory_offset": NO_SHARED_MEMORY,
}


@dataclass(frozen=True)
class Options:
    """What a request says beside its tensors."""

    truncate: Side | None = None  # texts that are too long, at this end
    seconds: float = math.inf  # that it may wait in the queue
    priority: int = 0  # 1 is the most urgent, 0 the default


DEFAULTS = Options()


def _read(parameters: Parameters, known: Mapping[str, Check], of: str = "") -> dict[str, Any]:
    """
    Args:
        of: which tensor's they are, for messages.

    Raises:
        InvalidArgument: one is unknown, refused, or of the wrong type.
    """
    values = {}
    for name, parameter in parameters.items():
        if reason := REFUSED.get(name):
            raise InvalidArgument(f"parameter {name}{of} is not taken: {reason}; leave it out")
        if name not in known:
            raise InvalidArgument(f"parameter {name!r}{of} is unknown; there are {', '.join(known)}")
        values[name] = known[name](f"parameter {name}{of}", parameter)
    return values


def read_options(request: ModelInferRequest) -> Options:
    """What the request's own parameters say, once those of its inputs are known to say nothing else.

    Raises:
        InvalidArgument: one is unknown, refused, or of the wrong type.
    """
    for tensor in request.inputs:
        if tensor.parameters:
            _read(tensor.parameters, OF_INPUTS, f" of input {tensor.name}")
    if not request.parameters:
        return DEFAULTS
    values = _read(request.parameters, OF_REQUESTS)
    microseconds = values.get("timeout", 0)
    return Options(
        truncate=values.get("truncate"),
        seconds=microseconds / 1e6 if microseconds else math.inf,
        priority=values.get("priority", 0),
    )


def read_classes(request: ModelInferRequest) -> dict[str, int]:
    """How many of the best classes replace an output; empty where no output is replaced.

    Raises:
        InvalidArgument: as above, for the parameters of the outputs.
    """
    classes = {}
    for output in request.outputs:
        if output.parameters:
            values = _read(output.parameters, OF_OUTPUTS, f" of output {output.name}")
            if count := values.get("classification", 0):
                classes[output.name] = count
    return classes
