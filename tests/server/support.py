"""What several tests of the server need: requests built by hand, and calls that answer with their status."""

from typing import Any

import grpc
import numpy as np

from heed.bundle import Manifest
from heed.bundle.manifest import Graph, Limits, PositionRule, Provenance, TensorSpec
from heed.bundle.sequence_packing import Arrays, TokenSequence, token_sequence
from heed.protos import open_inference_pb2 as pb
from heed.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from heed.server.engine.model import Model
from heed.server.protocols.open_inference.tensors import describe_inputs, read_contents, read_raw
from heed.server.repository.attention_weights import Attentions
from heed.server.repository.registry import ServedModel
from heed.server.scheduling.scheduler import Scheduler
from heed.server.telemetry.metrics import Metrics, ServedVersion

COLUMN = PositionRule(kind="column")


def row(*ids: int) -> TokenSequence:
    """A sequence of real tokens."""
    tokens = {"input_ids": np.array(ids, np.int64), "token_type_ids": np.zeros(len(ids), np.int64)}
    return token_sequence(COLUMN, tokens, np.ones(len(ids), np.bool_))


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


def decoded_inputs(manifest: Manifest, request: pb.ModelInferRequest) -> Arrays:
    """The values of a request's inputs, whatever the model makes of them together."""
    inputs = describe_inputs(manifest, request)
    raws = list(request.raw_input_contents)
    return read_raw(inputs, raws) if raws else read_contents(inputs, request)


# Every input and output that a model may have.
SPECS = {
    spec.name: spec
    for spec in [
        TensorSpec(name="input_ids", datatype="INT64", shape=[-1, -1]),
        TensorSpec(name="attention_mask", datatype="INT64", shape=[-1, -1], optional=True),
        TensorSpec(name="token_type_ids", datatype="INT64", shape=[-1, -1], optional=True),
        TensorSpec(name="features", datatype="FP32", shape=[-1, -1, 2]),
        TensorSpec(name="pixel_values", datatype="FP32", shape=[-1, 3, 4, 6]),
        TensorSpec(name="adjacency", datatype="BOOL", shape=[-1, -1, -1]),
        TensorSpec(name="global_attention_mask", datatype="INT64", shape=[-1, -1], optional=True),
        TensorSpec(name="text", datatype="BYTES", shape=[-1], optional=True),
        TensorSpec(name="text_pair", datatype="BYTES", shape=[-1], optional=True),
        TensorSpec(name="last_hidden_state", datatype="FP32", shape=[-1, -1, 4]),
        TensorSpec(name="sentence_embedding", datatype="FP32", shape=[-1, 4]),
        TensorSpec(name="unnormalized_embedding", datatype="FP32", shape=[-1, 4]),
        TensorSpec(name="logits", datatype="FP32", shape=[-1, -1, 3]),
        TensorSpec(name="labels", datatype="BYTES", shape=[-1, -1]),
        TensorSpec(name="scores", datatype="FP32", shape=[-1, -1, 3]),
        TensorSpec(name="tokens", datatype="BYTES", shape=[-1, -1]),
        TensorSpec(name="offsets", datatype="INT64", shape=[-1, -1, 2]),
        TensorSpec(name="attentions", datatype="FP32", shape=[-1, 2, 3, -1, -1]),
    ]
}
LABELS = ["noun", "verb", "other"]


def manifest_of(
    *inputs: str, outputs: list[str] | None = None, rule: PositionRule = COLUMN, length: int = 40, **fields: Any
) -> Manifest:
    """A manifest with these inputs and outputs, and a graph of each kind that computes them."""
    names = outputs or ["last_hidden_state"]
    computed = [name for name in names if name not in ("labels", "tokens", "offsets", "attentions")]
    graphs = [Graph(precision="fp32", file="model.onnx", outputs=computed)]
    if "attentions" in names:
        outputs_of = [*computed, "attentions"]
        graphs.append(Graph(precision="fp32", file="attentions.onnx", outputs=outputs_of, kind="attentions"))
    values: dict[str, Any] = {
        "task": "encoder",
        "limits": Limits(
            vocabulary=100 * ("input_ids" in inputs),
            token_types=2 * ("token_type_ids" in inputs),
            length=length,
            text_length=length * ("text" in inputs),
        ),
        "labels": LABELS if "labels" in names else [],
        "graphs": graphs,
    }
    return Manifest(
        name="made",
        inputs=[SPECS[name] for name in inputs],
        outputs=[SPECS[name] for name in names],
        position_rule=rule,
        provenance=Provenance(family="bert", source={}, tools={}, command=""),
        **(values | fields),
    )


def served_model(model: Model, scheduler: Scheduler, metrics: Metrics) -> ServedModel:
    """A model with a scheduler of the test's own."""
    labels = ServedVersion(model.manifest.name, "1", model.digest, model.precision, model.session.provider)
    version = metrics.add(labels)
    attentions = Attentions(model, 1000, version.statistics)
    return ServedModel(model, scheduler, attentions, model.preprocessor, version)
