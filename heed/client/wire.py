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

# When to try again, in milliseconds: in a call's trailing metadata (gRFC A6), and a parameter of an error on a stream.
PUSHBACK, STREAM_PUSHBACK = "grpc-retry-pushback-ms", "retry_after_ms"
# Why a request was refused, in a word: in a call's trailing metadata, and a parameter of an error on a stream.
REASON, STREAM_REASON = "heed-reason", "reason"

Texts = TypeVar("Texts")
Inputs = Mapping[str, np.ndarray | Iterable[str]]


class CallError(RuntimeError):
    """A call that the server refused, or did not answer.

    Attributes:
        code: the gRPC status.
        details: the server's message.
        pushback: in how many seconds the server may be called again, by its own account; negative for never, None if
            it does not say.
        reason: why heed's server refused the request, in a word that programs can rely on, `queue_full` or `loading`
            say; None if it does not say.
    """

    def __init__(
        self, code: grpc.StatusCode, details: str, pushback: float | None = None, reason: str | None = None
    ) -> None:
        super().__init__(f"{code.name}: {details}")
        self.code = code
        self.details = details
        self.pushback = pushback
        self.reason = reason

    def __reduce__(self) -> tuple[type["CallError"], tuple[grpc.StatusCode, str, float | None, str | None]]:
        return type(self), (self.code, self.details, self.pushback, self.reason)  # pickle would pass the message alone


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
    """The texts, unchanged. Raises TypeError for a single text: it would be taken for a list of its letters."""
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
    """Lists of texts as arrays, and arrays unchanged. Raises TypeError if one holds what cannot be sent."""
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
    trailers = error.trailing_metadata()
    return CallError(error.code(), error.details() or "", read_pushback(trailers), read_reason(trailers))


def stream_error(response: pb.ModelStreamInferResponse) -> CallError:
    """Of an answer on a stream that is an error: status, pushback and reason are parameters."""
    parameters = response.infer_response.parameters
    code = grpc.StatusCode[parameters["status"].string_param or "UNKNOWN"]
    pushback = parameters[STREAM_PUSHBACK].int64_param / 1e3 if STREAM_PUSHBACK in parameters else None
    return CallError(code, response.error_message, pushback, parameters[STREAM_REASON].string_param or None)


def read_pushback(trailers: Any) -> float | None:
    """In seconds, of trailing metadata. What is not a number means never, by gRFC A6."""
    milliseconds = dict(trailers or ()).get(PUSHBACK)
    if milliseconds is None:
        return None
    try:
        return int(milliseconds) / 1e3
    except ValueError:
        return -1.0


def read_reason(trailers: Any) -> str | None:
    reason: str | None = dict(trailers or ()).get(REASON)
    return reason
