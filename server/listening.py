"""The gRPC server and its port: options, services, reflection."""

import grpc
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from protos import POOL
from server.errors import StartError
from server.settings import Compression, Settings

COMPRESSIONS: dict[Compression, grpc.Compression] = {
    "none": grpc.Compression.NoCompression,
    "deflate": grpc.Compression.Deflate,
    "gzip": grpc.Compression.Gzip,
}


def new_server(settings: Settings) -> grpc.aio.Server:
    """A server without services, with what the settings say about connections and messages."""
    limit = settings.max_message_mib * 2**20
    return grpc.aio.server(
        compression=COMPRESSIONS[settings.compression],
        options=[
            ("grpc.max_receive_message_length", limit),
            ("grpc.max_send_message_length", limit),
            ("grpc.so_reuseport", 0),  # a port in use is an error, not a server to share it with
        ],
    )


def enable_reflection(server: grpc.aio.Server, services: list[str]) -> None:
    """Reflection reads one pool, so the descriptors of the services from elsewhere are added to ours."""
    for descriptor in (health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
        POOL.AddSerializedFile(descriptor.serialized_pb)  # type: ignore[no-untyped-call]
    names = [*services, health.SERVICE_NAME, reflection.SERVICE_NAME]
    reflection.enable_server_reflection(names, server, pool=POOL)


def open_port(server: grpc.aio.Server, settings: Settings) -> str:
    """Returns the address.

    Raises:
        StartError: the port is in use, or the address is not this machine's.
    """
    wanted = f"{settings.host}:{settings.port}"
    try:
        port = server.add_insecure_port(wanted)
    except RuntimeError:
        port = 0
    if port == 0:
        raise StartError(f"cannot listen on {wanted}: the port is in use or the address is not this machine's")
    return f"{settings.host}:{port}"
