"""Validates the names, types and shapes of a request's tensors against the bundle's signature.

Many requests have these in common, so they are validated once (see `protocols/open_inference/headers.py`). The values
are validated by `preprocess.py`, for each request.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from heed.bundle import Manifest
from heed.bundle.manifest import GraphKind, TensorSpec
from heed.server.errors import InvalidArgument
from heed.server.requests.limits import RequestLimits

DATATYPES = {"BOOL": np.bool_, "INT64": np.int64, "FP32": np.float32, "BYTES": np.object_}

# The main input of a request, and the inputs that may accompany it. A request has one main input.
ACCOMPANYING = {
    "text": ("text_pair",),
    "input_ids": ("attention_mask", "token_type_ids", "adjacency", "global_attention_mask"),
    "features": ("attention_mask", "adjacency", "global_attention_mask"),
    "pixel_values": (),
}
TEXT_OUTPUTS = ("tokens", "offsets")
OF_LOGITS = ("labels", "scores")
ON_REQUEST = {"attentions", "scores", "unnormalized_embedding"}  # outputs that only callers get who name them


class Shaped(Protocol):
    """An array, or one whose values have not been read yet."""

    @property
    def dtype(self) -> np.dtype: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class RequestSpec:
    """A request's main input and its outputs, validated."""

    main: str  # one of `ACCOMPANYING`
    outputs: list[str]  # in the caller's order
    per_token: frozenset[str]  # the outputs with a value or a vector for every token

    @cached_property
    def computed(self) -> frozenset[str]:
        """The graph's outputs that the answer is made of; empty: none, or all."""
        return frozenset("logits" if name in OF_LOGITS else name for name in self.outputs if name not in TEXT_OUTPUTS)

    @cached_property
    def kind(self) -> GraphKind:
        """The kind of graph that computes it."""
        return "attentions" if "attentions" in self.outputs else "answers"


def input_spec(manifest: Manifest, name: str) -> TensorSpec:
    """Raises InvalidArgument if the model has no such input."""
    if spec := manifest.input_specs.get(name):
        return spec
    raise InvalidArgument(f"input {name} is unknown; {manifest.name} takes {', '.join(manifest.input_specs)}")


def shape_text(shape: Iterable[int]) -> str:
    return "[" + ", ".join("any" if size == -1 else str(size) for size in shape) + "]"


def _check_names(manifest: Manifest, inputs: Iterable[str]) -> str:
    """Returns the main input."""
    for name in inputs:
        input_spec(manifest, name)
    choices = [spec.name for spec in manifest.inputs if spec.name in ACCOMPANYING]
    given = [name for name in choices if name in inputs]
    if not given:
        first, *others = choices
        raise InvalidArgument(f"input {first} is missing" + f" (or send {' or '.join(others)})" * bool(others))
    if "text" in given and (others := sorted(set(inputs) - {"text", "text_pair"})):
        raise InvalidArgument(f"input text came together with {', '.join(others)}; send either text or tensors")
    if len(given) > 1:
        raise InvalidArgument(f"inputs {' and '.join(given)} came together; send one of them")
    _check_accompanying(manifest, inputs, given[0])
    return given[0]


def _check_accompanying(manifest: Manifest, inputs: Iterable[str], main: str) -> None:
    for name in inputs:
        if name != main and name not in ACCOMPANYING[main]:
            homes = [home for home, beside in ACCOMPANYING.items() if name in beside and manifest.takes(home)]
            raise InvalidArgument(f"input {name} came with {main}; it goes with {' or '.join(homes) or 'nothing else'}")
    for spec in manifest.inputs:
        if not spec.optional and spec.name not in ACCOMPANYING and spec.name not in inputs:
            raise InvalidArgument(f"input {spec.name} is missing; {manifest.name} needs it beside {main}")


def _check_tensor(spec: TensorSpec, array: Shaped) -> None:
    if array.dtype != DATATYPES[spec.datatype]:
        raise InvalidArgument(f"input {spec.name} must be {spec.datatype}, got {array.dtype}")
    fits = len(array.shape) == len(spec.shape)
    if not fits or any(size not in (-1, came) for size, came in zip(spec.shape, array.shape, strict=True)):
        raise InvalidArgument(
            f"input {spec.name} must have shape {shape_text(spec.shape)} ({len(spec.shape)} dimensions), "
            f"got {shape_text(array.shape)}"
        )
    if 0 in array.shape:
        raise InvalidArgument(f"input {spec.name} is empty: its shape is {shape_text(array.shape)}")


def _check_sizes(manifest: Manifest, inputs: Mapping[str, Shaped], main: str) -> None:
    """Accompanying inputs must be as long as the main one."""
    batch, length = inputs[main].shape[:2]
    if length > manifest.limits.length:
        raise InvalidArgument(
            f"input {main} has {length} columns, {manifest.name} takes at most {manifest.limits.length}"
        )
    for name, array in inputs.items():
        expected = (batch, length, length) if name == "adjacency" else (batch, length)
        if name != main and array.shape != expected:
            raise InvalidArgument(
                f"input {name} has shape {shape_text(array.shape)}, {main} has {shape_text(inputs[main].shape)}; "
                f"they differ, {shape_text(expected)} is expected"
            )


def _default_outputs(manifest: Manifest, main: str) -> list[str]:
    """The outputs for a caller who names none: the cheap ones, and the tokens where tokens are labelled."""
    words = main == "text" and manifest.task == "token_classification"
    left_out = ON_REQUEST if words else ON_REQUEST | set(TEXT_OUTPUTS)
    return [spec.name for spec in manifest.outputs if spec.name not in left_out]


def check_outputs(manifest: Manifest, requested: Iterable[str], main: str) -> list[str]:
    """The outputs to answer with, in the caller's order; the default ones if the caller names none.

    Raises:
        InvalidArgument: one is unknown, named twice, or not available for this main input.
    """
    known = [spec.name for spec in manifest.outputs]
    names: list[str] = []
    for name in requested:
        if name not in known:
            raise InvalidArgument(f"output {name} is unknown; {manifest.name} gives {', '.join(known)}")
        if name in names:
            raise InvalidArgument(f"output {name} is requested twice")
        if name in TEXT_OUTPUTS and main != "text":
            raise InvalidArgument(f"output {name} needs text, but {main} came")
        names.append(name)
    return names or _default_outputs(manifest, main)


def validate(
    manifest: Manifest, limits: RequestLimits, inputs: Mapping[str, Shaped], outputs: Iterable[str] = ()
) -> RequestSpec:
    """
    Args:
        inputs: the request's tensors by name.
        outputs: the names that the caller wants; the cheap ones when empty.

    Raises:
        InvalidArgument: anything is wrong; the message names the tensor, what was expected and what came.
    """
    main = _check_names(manifest, inputs)
    for name, array in inputs.items():
        _check_tensor(manifest.input_specs[name], array)
    requested = check_outputs(manifest, outputs, main)
    if main in ("input_ids", "features"):
        _check_sizes(manifest, inputs, main)
    limits.check_rows(inputs[main].shape[0])
    per_token = frozenset(name for name in requested if manifest.output_specs[name].shape[:2] == [-1, -1])
    return RequestSpec(main, requested, per_token)
