"""Tensors on the wire: the Open Inference Protocol's messages to numpy and back.

Letters: B batch, L length.
"""

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from heed.bundle import Manifest
from heed.bundle.manifest import TensorSpec
from heed.bundle.sequence_packing import Arrays
from heed.protos.open_inference_pb2 import InferTensorContents, ModelInferRequest, ModelInferResponse
from heed.server.errors import InvalidArgument
from heed.server.requests.preprocess import Request
from heed.server.requests.validation import input_spec

# Datatype: its bytes on the wire (always little-endian), and its field in InferTensorContents, if it has one.
WIRE = {
    "BOOL": (np.dtype("?"), "bool_contents"),
    "UINT8": (np.dtype("<u1"), "uint_contents"),
    "UINT16": (np.dtype("<u2"), "uint_contents"),
    "UINT32": (np.dtype("<u4"), "uint_contents"),
    "INT8": (np.dtype("<i1"), "int_contents"),
    "INT16": (np.dtype("<i2"), "int_contents"),
    "INT32": (np.dtype("<i4"), "int_contents"),
    "INT64": (np.dtype("<i8"), "int64_contents"),
    "FP16": (np.dtype("<f2"), ""),
    "BF16": (np.dtype("<u2"), ""),  # numpy has no such type; these are its bits
    "FP32": (np.dtype("<f4"), "fp32_contents"),
    "BYTES": (np.dtype(object), "bytes_contents"),
}
# The datatypes that a client may send instead of a model's own, which holds all their values exactly.
WIDENED = {
    "INT64": ("INT32", "INT16", "INT8", "UINT32", "UINT16", "UINT8", "BOOL"),
    "FP32": ("FP16", "BF16"),
}
KINDS = {"f": "FP32", "i": "INT64", "U": "BYTES"}  # of numpy's dtypes, in an answer
MAX_RANK = 8  # of a tensor; no model has one of more
OVERHEAD = 4096  # bytes of a message for names, shapes and parameters
_LENGTH = struct.Struct("<I")


class WireTensor(NamedTuple):
    """One input, before its values are read."""

    spec: TensorSpec
    datatype: str  # that it comes in
    shape: tuple[int, ...]
    size: int  # the number of its values

    @property
    def dtype(self) -> np.dtype:
        """In which the model takes it."""
        return WIRE[self.spec.datatype][0]


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


def _check_datatype(spec: TensorSpec, came: str) -> None:
    wider = WIDENED.get(spec.datatype, ())
    if came != spec.datatype and came not in wider:
        others = f" (or {', '.join(wider)})" * bool(wider)
        raise InvalidArgument(f"input {spec.name} must be {spec.datatype}{others}, got {came or 'no datatype'}")


def _from_raw(name: str, datatype: str, raw: bytes, count: int) -> np.ndarray:
    dtype, _ = WIRE[datatype]
    if datatype == "BYTES":
        return _objects(_decode_bytes(name, raw, count))
    if datatype == "BOOL":  # any byte may come; to numpy a bool that is neither 0 nor 1 is not what it seems
        return np.asarray(np.frombuffer(raw, np.uint8) != 0)
    if len(raw) % dtype.itemsize:
        raise InvalidArgument(f"input {name} has {len(raw)} bytes, no multiple of {dtype.itemsize}")
    return np.frombuffer(raw, dtype)


def _from_contents(name: str, described: WireTensor, contents: InferTensorContents) -> np.ndarray:
    datatype = described.datatype
    dtype, field = WIRE[datatype]
    if not field:
        raise InvalidArgument(f"input {name} is {datatype}, which has no field in contents; send raw_input_contents")
    for descriptor, _ in contents.ListFields():
        if descriptor.name != field:
            raise InvalidArgument(f"input {name} has its values in {descriptor.name}, expected {field}")
    values = getattr(contents, field)
    _check_count(name, described, len(values))
    if datatype == "BYTES":
        return _objects(values)
    try:
        return np.fromiter(values, dtype, len(values))  # in a third of the time that np.array takes
    except OverflowError:  # small integers travel in fields for larger ones
        raise InvalidArgument(f"input {name} has values in {field} that are no {datatype}") from None


def _widened(spec: TensorSpec, datatype: str, values: np.ndarray) -> np.ndarray:
    """The same values in the model's datatype."""
    if datatype == spec.datatype:
        return values
    if datatype == "BF16":  # the upper half of a float32
        return (values.astype(np.uint32) << 16).view(np.float32)
    dtype, _ = WIRE[spec.datatype]
    return values.astype(dtype)


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
            f"{manifest.name} takes at most {max_batch} rows (--max-batch) of {math.prod(sizes)}",
            "too_large",
        )


def describe_inputs(manifest: Manifest, request: ModelInferRequest, max_batch: int = 2**31) -> dict[str, WireTensor]:
    """The request's tensors by name, in the order of their values.

    Raises:
        InvalidArgument: one is unknown, named twice, of the wrong datatype, or larger than any that the model takes.
    """
    described: dict[str, WireTensor] = {}
    for tensor in request.inputs:
        spec = input_spec(manifest, tensor.name)
        if tensor.name in described:
            raise InvalidArgument(f"input {tensor.name} came twice")
        _check_datatype(spec, tensor.datatype)
        _check_shape(manifest, spec, tensor.shape, max_batch)
        described[tensor.name] = WireTensor(spec, tensor.datatype, tuple(tensor.shape), math.prod(tensor.shape))
    return described


def _check_count(name: str, described: WireTensor, came: int) -> None:
    if came != described.size:
        raise InvalidArgument(
            f"input {name} has shape {list(described.shape)}, which is {described.size} values, but {came} came"
        )


def _shaped(described: WireTensor, values: np.ndarray) -> np.ndarray:
    return _widened(described.spec, described.datatype, values).reshape(described.shape)


def read_raw(inputs: Mapping[str, WireTensor], raws: Sequence[bytes]) -> Arrays:
    """The values of tensors that came as bytes.

    Raises:
        InvalidArgument: they do not fill their shapes, or are not as many.
    """
    if len(raws) != len(inputs):
        raise InvalidArgument(f"{len(inputs)} inputs came with {len(raws)} raw_input_contents")
    arrays: Arrays = {}
    for (name, described), raw in zip(inputs.items(), raws, strict=True):
        values = _from_raw(name, described.datatype, raw, described.size)
        _check_count(name, described, values.size)
        arrays[name] = _shaped(described, values)
    return arrays


def read_contents(inputs: Mapping[str, WireTensor], request: ModelInferRequest) -> Arrays:
    """The values of tensors that came in fields of theirs. Raises InvalidArgument: they do not fill their shapes, or
    are in another field."""
    return {
        name: _shaped(described, _from_contents(name, described, tensor.contents))
        for (name, described), tensor in zip(inputs.items(), request.inputs, strict=True)
    }


def response_bytes(manifest: Manifest, request: Request) -> int:
    """How large the numbers in an answer will be; texts are not counted."""
    total, specs = 0, manifest.output_specs
    for name in request.spec.outputs:
        spec = specs[name]
        if spec.datatype != "BYTES":
            dtype, _ = WIRE[spec.datatype]
            sizes = [request.length if size == -1 else size for size in spec.shape[1:]]
            total += len(request.rows) * math.prod(sizes) * dtype.itemsize
    return total


def check_response_size(manifest: Manifest, request: Request, limit: int) -> int:
    """How large the answer's numbers will be. Raises InvalidArgument if that is more than the largest message holds,
    before anything is computed."""
    size = response_bytes(manifest, request)
    if size + OVERHEAD > limit:
        raise InvalidArgument(
            f"the answer would have {size} bytes, more than a message holds here ({limit}); "
            f"send fewer or shorter rows, or name fewer outputs than {', '.join(request.spec.outputs)}",
            "too_large",
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
