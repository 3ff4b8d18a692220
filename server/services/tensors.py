"""Tensors on the wire: the Open Inference Protocol's messages to numpy and back.

Letters: B batch, L length.
"""

import math
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from bundle import Manifest
from bundle.manifest import TensorSpec
from bundle.packing import Arrays
from protos.open_inference_pb2 import InferTensorContents, ModelInferRequest, ModelInferResponse
from server.errors import InvalidArgument
from server.requests import Request, spec_of

# Datatype: its bytes on the wire (always little-endian), and its field in InferTensorContents.
WIRE = {
    "BOOL": (np.dtype("?"), "bool_contents"),
    "INT64": (np.dtype("<i8"), "int64_contents"),
    "FP32": (np.dtype("<f4"), "fp32_contents"),
    "BYTES": (np.dtype(object), "bytes_contents"),
}
KINDS = {"f": "FP32", "i": "INT64", "U": "BYTES"}  # of numpy's dtypes, in an answer
MAX_RANK = 8  # of a tensor; no model has one of more
OVERHEAD = 4096  # bytes of a message for names, shapes and parameters
_LENGTH = struct.Struct("<I")


def _decode_bytes(name: str, raw: bytes, count: int) -> list[bytes]:
    """Elements of a BYTES tensor: each a 4-byte length and then that many bytes."""
    elements: list[bytes] = []
    position = 0
    while position < len(raw):
        if position + _LENGTH.size > len(raw):
            raise InvalidArgument(f"input {name}: {len(raw) - position} stray bytes after element {len(elements)}")
        (length,) = _LENGTH.unpack_from(raw, position)
        position += _LENGTH.size
        if position + length > len(raw):
            raise InvalidArgument(
                f"input {name}: element {len(elements)} says {length} bytes, {len(raw) - position} are left"
            )
        if len(elements) == count:  # millions of empty ones fit into a message
            raise InvalidArgument(f"input {name} has more elements than its shape says: {count}")
        elements.append(raw[position : position + length])
        position += length
    return elements


def _objects(elements: Iterable[bytes]) -> np.ndarray:
    elements = list(elements)
    array = np.empty(len(elements), object)
    array[:] = elements
    return array


def _from_raw(spec: TensorSpec, raw: bytes, count: int) -> np.ndarray:
    dtype, _ = WIRE[spec.datatype]
    if spec.datatype == "BYTES":
        return _objects(_decode_bytes(spec.name, raw, count))
    if spec.datatype == "BOOL":  # any byte may come; to numpy a bool that is neither 0 nor 1 is not what it seems
        return np.asarray(np.frombuffer(raw, np.uint8) != 0)
    if len(raw) % dtype.itemsize:
        raise InvalidArgument(f"input {spec.name} has {len(raw)} bytes, no multiple of {dtype.itemsize}")
    return np.frombuffer(raw, dtype)


def _typed(spec: TensorSpec, contents: InferTensorContents) -> Any:
    """The field with the values."""
    _, field = WIRE[spec.datatype]
    for descriptor, _ in contents.ListFields():
        if descriptor.name != field:
            raise InvalidArgument(f"input {spec.name} has its values in {descriptor.name}, expected {field}")
    return getattr(contents, field)


def _check_count(spec: TensorSpec, shape: list[int], came: int) -> None:
    if math.prod(shape) != came:
        raise InvalidArgument(
            f"input {spec.name} has shape {shape}, which is {math.prod(shape)} values, but {came} came"
        )


def _check_shape(manifest: Manifest, spec: TensorSpec, shape: Sequence[int], max_batch: int) -> None:
    """Refuses what the model cannot take before time is spent on its values, or on multiplying a million sizes."""
    if len(shape) > MAX_RANK:
        raise InvalidArgument(f"input {spec.name} has too many dimensions: {len(shape)}, expected {len(spec.shape)}")
    if min(shape, default=0) < 0:
        raise InvalidArgument(f"input {spec.name} has a negative size in its shape {list(shape)}")
    sizes = [manifest.limits.length if size == -1 else size for size in spec.shape[1:]]
    if math.prod(shape) > max_batch * math.prod(sizes):
        raise InvalidArgument(
            f"input {spec.name} has shape {list(shape)}, which is {math.prod(shape)} values; "
            f"{manifest.name} takes at most {max_batch} rows (--max-batch) of {math.prod(sizes)}"
        )


def _values(spec: TensorSpec, tensor: ModelInferRequest.InferInputTensor, raw: bytes | None) -> np.ndarray:
    shape = list(tensor.shape)
    if raw is not None:
        values = _from_raw(spec, raw, math.prod(shape))
        _check_count(spec, shape, values.size)
    else:
        typed = _typed(spec, tensor.contents)
        _check_count(spec, shape, len(typed))
        dtype, _ = WIRE[spec.datatype]
        values = _objects(typed) if spec.datatype == "BYTES" else np.fromiter(typed, dtype, len(typed))
    try:
        return values.reshape(shape)
    except ValueError:  # what numpy cannot hold
        raise InvalidArgument(f"input {spec.name} has too many dimensions, or too large ones: {shape}") from None


def decode_inputs(manifest: Manifest, request: ModelInferRequest, max_batch: int = 2**31) -> Arrays:
    """The request's tensors by name.

    Raises:
        InvalidArgument: one is unknown, named twice, of the wrong datatype, larger than `max_batch` rows can be, or its
            values do not fill its shape.
    """
    raws = request.raw_input_contents
    if raws and any(tensor.HasField("contents") for tensor in request.inputs):
        raise InvalidArgument("raw_input_contents came together with contents; a request has either")
    if raws and len(raws) != len(request.inputs):
        raise InvalidArgument(f"{len(request.inputs)} inputs came with {len(raws)} raw_input_contents")
    arrays: Arrays = {}
    for index, tensor in enumerate(request.inputs):
        spec = spec_of(manifest, tensor.name)
        if tensor.name in arrays:
            raise InvalidArgument(f"input {tensor.name} came twice")
        if tensor.datatype != spec.datatype:
            raise InvalidArgument(
                f"input {tensor.name} must be {spec.datatype}, got {tensor.datatype or 'no datatype'}"
            )
        _check_shape(manifest, spec, tensor.shape, max_batch)
        arrays[tensor.name] = _values(spec, tensor, raws[index] if raws else None)
    return arrays


def response_bytes(manifest: Manifest, request: Request) -> int:
    """How large the numbers in an answer will be; texts are not counted."""
    total = 0
    for spec in manifest.outputs:
        if spec.name in request.outputs and spec.datatype != "BYTES":
            dtype, _ = WIRE[spec.datatype]
            sizes = [request.length if size == -1 else size for size in spec.shape[1:]]
            total += len(request.sequences) * math.prod(sizes) * dtype.itemsize
    return total


def check_response_size(manifest: Manifest, request: Request, limit: int) -> int:
    """How large the answer's numbers will be. Raises InvalidArgument if that is more than the largest message holds,
    before anything is computed."""
    size = response_bytes(manifest, request)
    if size + OVERHEAD > limit:
        raise InvalidArgument(
            f"the answer would have {size} bytes, more than a message holds here ({limit}); "
            f"send fewer or shorter rows, or name fewer outputs than {', '.join(request.outputs)}"
        )
    return size


def _encode_bytes(texts: Iterable[str]) -> bytes:
    raws = [text.encode() for text in texts]
    return b"".join(part for raw in raws for part in (_LENGTH.pack(len(raw)), raw))


def encode_outputs(response: ModelInferResponse, arrays: Arrays) -> None:
    """Adds outputs, always raw: some clients read nothing else."""
    for name, array in arrays.items():
        datatype = KINDS[array.dtype.kind]
        texts = datatype == "BYTES"
        response.outputs.add(name=name, datatype=datatype, shape=array.shape)
        raw = _encode_bytes(array.flat) if texts else array.astype(WIRE[datatype][0], copy=False).tobytes()
        response.raw_output_contents.append(raw)
