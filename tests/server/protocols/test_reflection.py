"""A client that knows nothing but an address: it reads the services from the server and calls them."""

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from heed.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from tests.server.support import text_request
from tests.support import Running


@pytest.fixture
def channel(tiny_server: Running) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(tiny_server.address) as channel:
        yield channel


class Reflected:
    """Calls made on the spot from what the server says about itself."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.database: Any = ProtoReflectionDescriptorDatabase(channel)
        self.pool: Any = DescriptorPool(self.database)
        self._channel = channel

    def call(self, service: str, method: str, /, **fields: object) -> Any:
        descriptor: MethodDescriptor = self.pool.FindServiceByName(service).FindMethodByName(method)
        request = GetMessageClass(descriptor.input_type)(**fields)
        answer_type = GetMessageClass(descriptor.output_type)
        call: Any = self._channel.unary_unary(
            f"/{service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer_type.FromString,
        )
        return call(request, timeout=20)


def test_it_lists_its_services(channel: grpc.Channel) -> None:
    assert sorted(Reflected(channel).database.get_services()) == [
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "heed.v1.Inference",
        "inference.GRPCInferenceService",
        "tei.v1.Embed",
        "tei.v1.Info",
        "tei.v1.Predict",
        "tei.v1.Rerank",
        "tei.v1.Tokenize",
    ]


@pytest.mark.parametrize(
    ("service", "methods"),
    [
        (
            "inference.GRPCInferenceService",
            [
                "CudaSharedMemoryRegister",
                "CudaSharedMemoryStatus",
                "CudaSharedMemoryUnregister",
                "LogSettings",
                "ModelConfig",
                "ModelInfer",
                "ModelMetadata",
                "ModelReady",
                "ModelStatistics",
                "ModelStreamInfer",
                "RepositoryIndex",
                "RepositoryModelLoad",
                "RepositoryModelUnload",
                "ServerLive",
                "ServerMetadata",
                "ServerReady",
                "SystemSharedMemoryRegister",
                "SystemSharedMemoryStatus",
                "SystemSharedMemoryUnregister",
                "TraceSetting",
            ],
        ),
        (
            "tei.v1.Embed",
            ["Embed", "EmbedAll", "EmbedAllStream", "EmbedSparse", "EmbedSparseStream", "EmbedStream"],
        ),
        ("tei.v1.Tokenize", ["Decode", "DecodeStream", "Tokenize", "TokenizeStream"]),
        ("grpc.health.v1.Health", ["Check", "Watch"]),
    ],
)
def test_it_describes_every_method(channel: grpc.Channel, service: str, methods: list[str]) -> None:
    described = Reflected(channel).pool.FindServiceByName(service).methods_by_name
    assert sorted(set(described) - {"List"}) == methods  # newer versions of the health service have List too


def test_health_can_be_asked(channel: grpc.Channel) -> None:
    assert Reflected(channel).call("grpc.health.v1.Health", "Check", service="").status == 1


def test_metadata_can_be_asked(channel: grpc.Channel) -> None:
    answer = Reflected(channel).call("inference.GRPCInferenceService", "ModelMetadata", name="tiny")
    assert (answer.name, list(answer.versions)) == ("tiny", ["1"])
    takes = {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in answer.inputs}
    assert takes == {
        "input_ids": ("INT64", [-1, -1]),
        "attention_mask": ("INT64", [-1, -1]),
        "token_type_ids": ("INT64", [-1, -1]),
        "text": ("BYTES", [-1]),
        "text_pair": ("BYTES", [-1]),
    }
    gives = {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in answer.outputs}
    assert gives == {
        "last_hidden_state": ("FP32", [-1, -1, 32]),
        "sentence_embedding": ("FP32", [-1, 32]),
        "unnormalized_embedding": ("FP32", [-1, 32]),
        "tokens": ("BYTES", [-1, -1]),
        "offsets": ("INT64", [-1, -1, 2]),
        "attentions": ("FP32", [-1, 2, 4, -1, -1]),
    }
    assert dict(answer.properties) == {"task": "embedding", "max_length": "40"}


def test_inference_can_be_asked_and_gives_the_bits_of_the_generated_client(channel: grpc.Channel) -> None:
    text = {"name": "text", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [b"the quick fox"]}}
    reflected = Reflected(channel).call(
        "inference.GRPCInferenceService",
        "ModelInfer",
        model_name="tiny",
        id="mine",
        inputs=[text],
        outputs=[{"name": "sentence_embedding"}],
    )
    assert reflected.id == "mine"
    (output,) = reflected.outputs
    (raw,) = reflected.raw_output_contents
    assert (output.name, output.datatype, list(output.shape)) == ("sentence_embedding", "FP32", [1, 32])
    assert abs(float(np.linalg.norm(np.frombuffer(raw, "<f4"))) - 1) < 1e-6
    assert raw == all_outputs(channel, "the quick fox")["sentence_embedding"]


def all_outputs(channel: grpc.Channel, text: str) -> dict[str, bytes]:
    answer = GRPCInferenceServiceStub(channel).ModelInfer(text_request(text), timeout=20)
    return {output.name: raw for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)}
