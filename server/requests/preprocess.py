"""Checks what a caller sends against the bundle's signature. `rows.py` makes rows of it.

First its form (names, types, shapes), which many requests have in common, and then its values.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np

from heed.bundle import Manifest
from heed.bundle.manifest import GraphKind, TensorSpec
from heed.bundle.packing import Arrays, TokenSequence
from heed.server.errors import InvalidArgument
from heed.server.requests.rows import Rows, always, from_images, from_tensors, from_texts, shape_text
from heed.server.requests.tokenizer import Side, TextTokenizer, TokenizedText

DATATYPES = {"BOOL": np.bool_, "INT64": np.int64, "FP32": np.float32, "BYTES": np.object_}

# What a request is about, and what may come beside it. A request has one of these.
BESIDE = {
    "text": ("text_pair",),
    "input_ids": ("attention_mask", "token_type_ids", "adjacency", "global_attention_mask"),
    "features": ("attention_mask", "adjacency", "global_attention_mask"),
    "pixel_values": (),
}
TEXT_OUTPUTS = ("tokens", "offsets")
ON_REQUEST = {"attentions", "unnormalized_embedding"}  # outputs that only callers get who name them


class Shaped(Protocol):
    """An array, or one whose values have not been read yet."""

    @property
    def dtype(self) -> np.dtype: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class RequestSpec:
    """What a request is about, and what the caller wants to see of the answers; known to be right."""

    main: str  # one of `BESIDE`
    outputs: list[str]

    @cached_property
    def computed(self) -> frozenset[str]:
        """What of the graph's outputs the answer is made of; empty: nothing, or all."""
        return frozenset("logits" if name == "labels" else name for name in self.outputs if name not in TEXT_OUTPUTS)

    @cached_property
    def kind(self) -> GraphKind:
        """The kind of graph that it takes."""
        return "attentions" if "attentions" in self.outputs else "answers"


@dataclass(frozen=True)
class Request:
    """A request that is known to be right, and its rows."""

    form: RequestSpec
    sequences: list[TokenSequence]
    length: int  # L of the answers
    texts: list[TokenizedText] = field(default_factory=list)  # one for each row, if they came as texts

    @property
    def tokens(self) -> int:
        return sum(map(len, self.sequences))

    @property
    def outputs(self) -> list[str]:
        return self.form.outputs


def spec_of(manifest: Manifest, name: str) -> TensorSpec:
    """Raises InvalidArgument if the model has no such input."""
    if spec := manifest.input_specs.get(name):
        return spec
    raise InvalidArgument(f"input {name} is unknown; {manifest.name} takes {', '.join(manifest.input_specs)}")


def _check_names(manifest: Manifest, inputs: Iterable[str]) -> str:
    """What the request is about: one of `BESIDE`."""
    for name in inputs:
        spec_of(manifest, name)
    choices = [spec.name for spec in manifest.inputs if spec.name in BESIDE]
    given = [name for name in choices if name in inputs]
    if not given:
        first, *others = choices
        raise InvalidArgument(f"input {first} is missing" + f" (or send {' or '.join(others)})" * bool(others))
    if "text" in given and (others := sorted(set(inputs) - {"text", "text_pair"})):
        raise InvalidArgument(f"input text came together with {', '.join(others)}; send either text or tensors")
    if len(given) > 1:
        raise InvalidArgument(f"inputs {' and '.join(given)} came together; send one of them")
    _check_beside(manifest, inputs, given[0])
    return given[0]


def _check_beside(manifest: Manifest, inputs: Iterable[str], main: str) -> None:
    for name in inputs:
        if name != main and name not in BESIDE[main]:
            homes = [home for home, beside in BESIDE.items() if name in beside and manifest.takes(home)]
            raise InvalidArgument(f"input {name} came with {main}; it goes with {' or '.join(homes) or 'nothing else'}")
    for spec in manifest.inputs:
        if not spec.optional and spec.name not in BESIDE and spec.name not in inputs:
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
    """What comes beside the tokens must be as long as they are."""
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


def _check_finite(name: str, array: np.ndarray) -> None:
    if not np.isfinite(array).all():
        index = np.argwhere(~np.isfinite(array))[0]
        raise InvalidArgument(f"input {name}{index.tolist()} is {array[tuple(index)]}, expected a finite number")


def _by_default(manifest: Manifest, main: str) -> list[str]:
    """What a caller gets who names no outputs: what costs little, and words where words are what is asked for."""
    words = main == "text" and manifest.task == "token_classification"
    left_out = ON_REQUEST if words else ON_REQUEST | set(TEXT_OUTPUTS)
    return [spec.name for spec in manifest.outputs if spec.name not in left_out]


def check_outputs(manifest: Manifest, wanted: Iterable[str], main: str) -> list[str]:
    """The outputs to answer with, in the caller's order; the default ones if the caller names none.

    Raises:
        InvalidArgument: one is unknown, named twice, or not to be had for such a request.
    """
    known = [spec.name for spec in manifest.outputs]
    names: list[str] = []
    for name in wanted:
        if name not in known:
            raise InvalidArgument(f"output {name} is unknown; {manifest.name} gives {', '.join(known)}")
        if name in names:
            raise InvalidArgument(f"output {name} is requested twice")
        if name in TEXT_OUTPUTS and main != "text":
            raise InvalidArgument(f"output {name} needs text, but {main} came")
        names.append(name)
    return names or _by_default(manifest, main)


def _rows(
    manifest: Manifest,
    encoder: TextTokenizer | None,
    inputs: Arrays,
    main: str,
    truncate: Side | None,
    wanted: Callable[[], bool],
) -> Rows:
    if main == "text":
        assert encoder  # as the manifest takes text
        return from_texts(manifest, encoder, inputs, truncate, wanted)
    if main == "pixel_values":
        return from_images(manifest, inputs)
    return from_tensors(manifest, inputs, main)


def check_form(manifest: Manifest, inputs: Mapping[str, Shaped], outputs: Iterable[str] = ()) -> RequestSpec:
    """
    Args:
        inputs: what came, by name.
        outputs: the names the caller wants; the cheap ones when empty.

    Raises:
        InvalidArgument: anything is wrong; the message names the tensor, what was expected and what came.
    """
    main = _check_names(manifest, inputs)
    for name, array in inputs.items():
        _check_tensor(manifest.input_specs[name], array)
    wanted = check_outputs(manifest, outputs, main)
    if main in ("input_ids", "features"):
        _check_sizes(manifest, inputs, main)
    return RequestSpec(main, wanted)


def read_request(
    manifest: Manifest,
    encoder: TextTokenizer | None,
    form: RequestSpec,
    inputs: Arrays,
    truncate: Side | None = None,
    wanted: Callable[[], bool] = always,
) -> Request:
    """
    Args:
        inputs: of this form. Texts are an object array of bytes or strings.
        truncate: the end at which to cut texts that are too long, instead of refusing them.
        wanted: see `from_texts`.

    Raises:
        DeadlineExceeded: nobody wants it any more.
        InvalidArgument: a value is wrong; the message says where it is, and what was expected.
    """
    for name, array in inputs.items():
        if array.dtype == np.float32:
            _check_finite(name, array)
    rows = _rows(manifest, encoder, inputs, form.main, truncate, wanted)
    return Request(form, rows.sequences, rows.length, rows.texts)


def check_request(
    manifest: Manifest,
    encoder: TextTokenizer | None,
    inputs: Arrays,
    outputs: Iterable[str] = (),
    truncate: Side | None = None,
) -> Request:
    """Both of the above."""
    return read_request(manifest, encoder, check_form(manifest, inputs, outputs), inputs, truncate)
