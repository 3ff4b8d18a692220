"""What several tests of the server need: requests built by hand, and calls that answer with their status."""

import grpc
import numpy as np

from bundle.manifest import PositionRule
from bundle.packing import Sequence, sequence
from protos import open_inference_pb2 as pb
from protos.open_inference_pb2_grpc import GRPCInferenceServiceStub

COLUMN = PositionRule(kind="column")


def row(*ids: int) -> Sequence:
    """A sequence of real tokens."""
    tokens = {"input_ids": np.array(ids, np.int64), "token_type_ids": np.zeros(len(ids), np.int64)}
    return sequence(COLUMN, tokens, np.ones(len(ids), np.bool_))


def add_tensor(request: pb.ModelInferRequest, name: str, rows: list[list[int]]) -> None:
    """Adds an INT64 input with typed contents."""
    tensor = request.inputs.add(name=name, datatype="INT64", shape=np.shape(rows))
    tensor.contents.int64_contents.extend(value for values in rows for value in values)


def ids_request(ids: list[list[int]], mask: list[list[int]] | None = None, model: str = "tiny") -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model)
    add_tensor(request, "input_ids", ids)
    if mask is not None:
        add_tensor(request, "attention_mask", mask)
    return request


def text_request(*texts: str, model: str = "tiny") -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model)
    tensor = request.inputs.add(name="text", datatype="BYTES", shape=[len(texts)])
    tensor.contents.bytes_contents.extend(text.encode() for text in texts)
    return request


def refusal(stub: GRPCInferenceServiceStub, request: pb.ModelInferRequest) -> tuple[grpc.StatusCode, str]:
    """The status and the message that a request is refused with."""
    try:
        stub.ModelInfer(request, timeout=20)
    except grpc.RpcError as error:
        return error.code(), error.details() or ""
    raise AssertionError("the request was answered")
