"""Messages to numpy and back, and errors."""

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
import numpy as np

from heed.protos import open_inference_pb2 as pb

DTYPES = {
    "BOOL": np.dtype("?"),
    "INT64": np.dtype("<i8"),
    "FP32": np.dtype("<f4"),
    "BYTES": np.dtype(object),
}
LARGEST = 2**63 - 1  # that INT64 holds
DATATYPES = {"b": "BOOL", "i": "INT64", "u": "INT64", "f": "FP32", "O": "BYTES", "U": "BYTES", "S": "BYTES"}

# When to come again, in milliseconds: in a call's trailing metadata (gRFC A6), and in an error of a stream.
PUSHBACK, STREAM_PUSHBACK = "grpc-retry-pushback-ms", "retry_after_ms"

Texts = TypeVar("Texts")
Inputs = Mapping[str, np.ndarray | Iterable[str]]


class CallError(RuntimeError):
    """A call that the server did not answer.

    `code` is the gRPC status. `pushback` is in how many seconds the server wants to be asked again, None if it does not
    say, negative for never.
    """

    def __init__(self, code: grpc.StatusCode, details: str, pushback: float | None = None) -> None:
        super().__init__(f"{code.name}: {details}")
        self.code = code
        self.details = details
        self.pushback = pushback


@dataclass(frozen=True)
class Answer:
    """A model's outputs by name, and what produced them. Texts are str, in an object array."""

    outputs: dict[str, np.ndarray]
    digest: str  # of the bundle
    provider: str
    precision: str
    queue_seconds: float
    compute_seconds: float

    def __getitem__(self, name: str) -> np.ndarray:
        return self.outputs[name]


@dataclass(frozen=True)
class ModelInfo:
    """What a model takes and gives: datatype and shape by name, -1 for any size."""

    name: str
    versions: list[str]
    inputs: dict[str, tuple[str, list[int]]]
    outputs: dict[str, tuple[str, list[int]]]
    task: str = ""
    labels: list[str] = field(default_factory=list)  # in the order of the logits
    max_length: int | None = None  # tokens of a row at most; None: the server does not say


def several(texts: Texts) -> Texts:
    """The same. A single text would be taken for its letters.

    Raises TypeError.
    """
    if isinstance(texts, str | bytes):
        raise TypeError("one text came where several are expected: put it into a list")
    return texts


def texts_and_pairs(texts: Iterable[str], pairs: Iterable[str] | None) -> Inputs:
    """The inputs of a model over texts, or over pairs of them."""
    inputs = {"text": list(several(texts))}
    return inputs if pairs is None else inputs | {"text_pair": list(several(pairs))}


def _encode(name: str, array: np.ndarray, datatype: str) -> bytes:
    if datatype == "BYTES":
        return _encode_bytes(array.flat)
    if array.dtype.kind == "u" and array.size and int(array.max()) > LARGEST:
        raise ValueError(f"input {name} holds {array.max()}, more than INT64 can: {LARGEST} is the largest")
    return array.astype(DTYPES[datatype], copy=False).tobytes()


def _encode_bytes(elements: Iterable[str | bytes]) -> bytes:
    parts = []
    for element in elements:
        raw = _utf8(element) if isinstance(element, str) else element
        if not isinstance(raw, bytes):
            raise TypeError(
                f"a text is expected, got {type(raw).__name__}: {raw!r:.60}; numbers are given as a numpy array of "
                "integers or floats"
            )
        parts += [struct.pack("<I", len(raw)), raw]
    return b"".join(parts)


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair: what Python makes of bytes that are no text
        raise ValueError(
            f"a text cannot be sent as UTF-8: {error.reason} at {error.start}, {text[error.start]!a}"
        ) from None


def as_arrays(inputs: Inputs) -> dict[str, np.ndarray]:
    """Lists of texts as arrays, and arrays as they are.

    Raises TypeError if one holds what cannot be sent.
    """
    arrays = {}
    for name, value in inputs.items():
        array = arrays[name] = value if isinstance(value, np.ndarray) else np.array(list(several(value)), object)
        if array.dtype.kind not in DATATYPES:
            raise TypeError(f"input {name} has dtype {array.dtype}; integers, floats, booleans or texts are expected")
    return arrays


def infer_request(
    model: str, version: str, inputs: Inputs, outputs: Iterable[str], truncate: bool
) -> pb.ModelInferRequest:
    """Arrays and lists of strings as a request. Integers travel as INT64, floats as FP32, texts as BYTES.

    Raises:
        TypeError: an input is of another kind.
        ValueError: an input holds an integer that INT64 cannot, or a text that UTF-8 cannot.
    """
    request = pb.ModelInferRequest(model_name=model, model_version=version)
    for name, array in as_arrays(inputs).items():
        datatype = DATATYPES[array.dtype.kind]
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        request.raw_input_contents.append(_encode(name, array, datatype))
    for name in outputs:
        request.outputs.add(name=name)
    if truncate:
        request.parameters["truncate"].bool_param = True
    return request


def _decode_bytes(raw: bytes) -> list[str]:
    elements, position = [], 0
    while position < len(raw):
        (length,) = struct.unpack_from("<I", raw, position)
        position += 4
        elements.append(raw[position : position + length].decode())
        position += length
    return elements


def _decode(datatype: str, raw: bytes) -> np.ndarray:
    return np.array(_decode_bytes(raw), object) if datatype == "BYTES" else np.frombuffer(raw, DTYPES[datatype])


def read_answer(response: pb.ModelInferResponse) -> Answer:
    parameters = response.parameters
    return Answer(
        outputs={
            tensor.name: _decode(tensor.datatype, raw).reshape(tensor.shape)
            for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True)
        },
        digest=parameters["digest"].string_param,
        provider=parameters["provider"].string_param,
        precision=parameters["precision"].string_param,
        queue_seconds=parameters["queue_ns"].int64_param / 1e9,
        compute_seconds=parameters["compute_ns"].int64_param / 1e9,
    )


def read_model_info(response: pb.ModelMetadataResponse) -> ModelInfo:
    return ModelInfo(
        name=response.name,
        versions=list(response.versions),
        inputs={tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in response.inputs},
        outputs={tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in response.outputs},
        task=response.properties.get("task", ""),
        labels=json.loads(response.properties.get("labels", "[]")),
        max_length=int(response.properties["max_length"]) if "max_length" in response.properties else None,
    )


def call_error(error: grpc.RpcError) -> CallError:
    return CallError(error.code(), error.details() or "", read_pushback(error.trailing_metadata()))


def stream_error(response: pb.ModelStreamInferResponse) -> CallError:
    """An error that is an answer: its status and its pushback are parameters."""
    said = response.infer_response.parameters
    code = grpc.StatusCode[said["status"].string_param or "UNKNOWN"]
    pushback = said[STREAM_PUSHBACK].int64_param / 1e3 if STREAM_PUSHBACK in said else None
    return CallError(code, response.error_message, pushback)


def read_pushback(metadata: Any) -> float | None:
    """In seconds, of trailing metadata. What is no number is never, as gRFC A6 has it."""
    said = dict(metadata or ()).get(PUSHBACK)
    if said is None:
        return None
    try:
        return int(said) / 1e3
    except ValueError:
        return -1.0
