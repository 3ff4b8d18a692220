"""Checks what a caller sends against the bundle's signature, and leaves its padding out.

Letters: B batch, L length, t tokens of one row.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from bundle import Manifest
from bundle.manifest import TensorSpec
from bundle.packing import Arrays, Ints, Sequence, sequence
from server.errors import InvalidArgument
from server.text import TextEncoder

DATATYPES = {"BOOL": np.bool_, "INT64": np.int64, "FP32": np.float32, "BYTES": np.object_}


@dataclass(frozen=True)
class Request:
    """A request that is known to be right: its rows, and what the caller wants to see of the answers."""

    sequences: list[Sequence]
    length: int  # L of the answers
    outputs: list[str]

    @property
    def tokens(self) -> int:
        return sum(len(sequence) for sequence in self.sequences)


def _shape(shape: Iterable[int]) -> str:
    return "[" + ", ".join("any" if size == -1 else str(size) for size in shape) + "]"


def spec_of(manifest: Manifest, name: str) -> TensorSpec:
    """Raises InvalidArgument if the model has no such input."""
    for spec in manifest.inputs:
        if spec.name == name:
            return spec
    known = ", ".join(spec.name for spec in manifest.inputs)
    raise InvalidArgument(f"input {name} is unknown; {manifest.name} takes {known}")


def _check_names(manifest: Manifest, inputs: Arrays) -> None:
    for name in inputs:
        spec_of(manifest, name)
    if manifest.takes_text and "text" in inputs and len(inputs) > 1:
        others = ", ".join(sorted(inputs.keys() - {"text"}))
        raise InvalidArgument(f"input text came together with {others}; send either text or tensors")
    if "input_ids" not in inputs and "text" not in inputs:
        raise InvalidArgument("input input_ids is missing" + (" (or send text)" if manifest.takes_text else ""))


def _check_shapes(manifest: Manifest, inputs: Arrays) -> None:
    for spec in manifest.inputs:
        if spec.name not in inputs:
            continue
        array = inputs[spec.name]
        if array.dtype != DATATYPES[spec.datatype]:
            raise InvalidArgument(f"input {spec.name} must be {spec.datatype}, got {array.dtype}")
        if array.ndim != len(spec.shape):
            raise InvalidArgument(
                f"input {spec.name} must have shape {_shape(spec.shape)} ({len(spec.shape)} dimensions), "
                f"got {_shape(array.shape)}"
            )
        if 0 in array.shape:
            raise InvalidArgument(f"input {spec.name} is empty: its shape is {_shape(array.shape)}")
        if spec.datatype == "FP32" and not np.isfinite(array).all():
            index = np.argwhere(~np.isfinite(array))[0]
            raise InvalidArgument(
                f"input {spec.name}{index.tolist()} is {array[tuple(index)]}, expected a finite number"
            )


def check_outputs(manifest: Manifest, wanted: Iterable[str]) -> list[str]:
    """The outputs to answer with, in the caller's order; all of them if the caller names none.

    Raises:
        InvalidArgument: one is unknown or named twice.
    """
    known = [spec.name for spec in manifest.outputs]
    names: list[str] = []
    for name in wanted:
        if name not in known:
            raise InvalidArgument(f"output {name} is unknown; {manifest.name} gives {', '.join(known)}")
        if name in names:
            raise InvalidArgument(f"output {name} is requested twice")
        names.append(name)
    return names or known


def _check_range(name: str, array: Ints, size: int, what: str) -> None:
    outside = (array < 0) | (array >= size)
    if outside.any():
        row, column = np.argwhere(outside)[0]
        raise InvalidArgument(
            f"input {name}[{row}, {column}] is {array[row, column]}, outside {what} of 0 to {size - 1}"
        )


def _check_mask(mask: Ints) -> None:
    odd = (mask != 0) & (mask != 1)
    if odd.any():
        row, column = np.argwhere(odd)[0]
        raise InvalidArgument(f"input attention_mask[{row}, {column}] is {mask[row, column]}, expected 0 or 1")
    empty = ~mask.any(axis=1)
    if empty.any():
        raise InvalidArgument(f"input attention_mask: row {np.argmax(empty)} has no real token (all 0)")


def _from_ids(manifest: Manifest, inputs: Arrays) -> tuple[list[Sequence], int]:
    ids = inputs["input_ids"]
    limits = manifest.limits
    if ids.shape[1] > limits.length:
        raise InvalidArgument(
            f"input input_ids has {ids.shape[1]} columns, {manifest.name} takes at most {limits.length}"
        )
    for name in ("attention_mask", "token_type_ids"):
        if name in inputs and inputs[name].shape != ids.shape:
            raise InvalidArgument(
                f"input {name} has shape {_shape(inputs[name].shape)}, input_ids has {_shape(ids.shape)}; they differ"
            )
    mask = inputs.get("attention_mask", np.ones_like(ids))
    types = inputs.get("token_type_ids", np.zeros_like(ids))
    _check_mask(mask)
    _check_range("input_ids", ids, limits.vocabulary, "the vocabulary")
    _check_range("token_type_ids", types, limits.token_types, "the token types")
    real = mask.astype(bool)
    rows = [
        sequence(manifest.position_rule, {"input_ids": ids_L, "token_type_ids": types_L}, real_L)
        for ids_L, types_L, real_L in zip(ids, types, real, strict=True)
    ]
    return rows, ids.shape[1]


def _decoded(raw: str | bytes, where: str) -> str:
    try:
        return raw if isinstance(raw, str) else raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{where} is not UTF-8: {error.reason} at byte {error.start}") from None


def _from_text(
    manifest: Manifest, encoder: TextEncoder, texts: np.ndarray, truncate: bool
) -> tuple[list[Sequence], int]:
    rows = []
    for index, raw in enumerate(texts):
        where = f"input text[{index}]"
        tokens = encoder.encode(_decoded(raw, where), truncate, where)
        real = np.ones(len(tokens.input_ids), np.bool_)
        row = {"input_ids": tokens.input_ids, "token_type_ids": tokens.token_type_ids}
        rows.append(sequence(manifest.position_rule, row, real))
    return rows, max(len(row) for row in rows)


def check_request(
    manifest: Manifest, encoder: TextEncoder | None, inputs: Arrays, outputs: Iterable[str] = (), truncate: bool = False
) -> Request:
    """
    Args:
        inputs: what came, by name. Texts are an object array of bytes or strings.
        outputs: the names the caller wants; all when empty.
        truncate: cut texts that are too long instead of refusing them.

    Raises:
        InvalidArgument: anything is wrong; the message names the tensor, what was expected and what came.
    """
    _check_names(manifest, inputs)
    _check_shapes(manifest, inputs)
    names = check_outputs(manifest, outputs)
    if "text" in inputs and encoder:
        rows, length = _from_text(manifest, encoder, inputs["text"], truncate)
    else:
        rows, length = _from_ids(manifest, inputs)
    return Request(rows, length, names)
