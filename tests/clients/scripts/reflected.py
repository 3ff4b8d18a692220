"""A client that knows nothing but an address, as grpcurl does.    python -m tests.clients.scripts.reflected HOST:PORT

It reads the services' descriptors from the server, makes messages of them, and calls. It also probes health, as
grpc_health_probe does, by the descriptors that the server gives.
"""

import json
import struct
import sys
from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

OIP, HEALTH = "inference.GRPCInferenceService", "grpc.health.v1.Health"


class Reflected:
    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self._pool = DescriptorPool()
        self.services = [one.name for one in self._ask(list_services="").list_services_response.service]
        self.files = FileDescriptorSet(file=map(self._file_of, (OIP, HEALTH)))
        for file in self.files.file:
            self._pool.Add(file)  # type: ignore[no-untyped-call]

    def _ask(self, **question: Any) -> Any:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(self._channel)
        (answer,) = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(**question)]))
        return answer

    def _file_of(self, symbol: str) -> FileDescriptorProto:
        (file,) = self._ask(file_containing_symbol=symbol).file_descriptor_response.file_descriptor_proto
        return FileDescriptorProto.FromString(file)

    def call(self, service: str, name: str, *requests: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Streams as well as unary calls: on the wire these are streams of one message."""
        method = self._pool.FindServiceByName(service).FindMethodByName(name)  # type: ignore[no-untyped-call]
        made = [GetMessageClass(method.input_type)(**request) for request in requests]
        answers: Any = self._channel.stream_stream(
            f"/{service}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        for answer in answers(iter(made), timeout=60):
            yield MessageToDict(answer, preserving_proto_field_name=True)

    def told(self, service: str, name: str, request: dict[str, Any]) -> dict[str, Any]:
        try:
            return next(self.call(service, name, request))
        except grpc.RpcError as error:
            return {"status": error.code().name, "message": error.details()}


def infer(text: str) -> dict[str, Any]:
    raw = text.encode()
    return {
        "model_name": "tiny",
        "id": text,
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [1]}],
        "raw_input_contents": [struct.pack("<I", len(raw)) + raw],
        "outputs": [{"name": "sentence_embedding"}],
    }


def main(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        server = Reflected(channel)
        answers = {
            "services": server.services,
            "methods": [method.name for method in server.files.file[0].service[0].method],
            "infer": server.told(OIP, "ModelInfer", infer("a dog")),
            "stream": list(server.call(OIP, "ModelStreamInfer", infer("i"), {"model_name": "nobody"}, infer("a dog"))),
            "config": server.told(OIP, "ModelConfig", {"name": "seen"}),
            "statistics": server.told(OIP, "ModelStatistics", {"name": "tiny"}),
            "index": server.told(OIP, "RepositoryIndex", {"ready": True}),
            "elsewhere": server.told(OIP, "RepositoryIndex", {"repository_name": "mine"}),
            "check": {one: server.told(HEALTH, "Check", {"service": one}) for one in ("", OIP, "nobody")},
            "watch": {one: server.told(HEALTH, "Watch", {"service": one}) for one in ("", OIP, "nobody")},
        }
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
