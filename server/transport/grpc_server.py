"""The gRPC server and its port: options, interceptors, reflection."""

import errno
import logging
import socket

import grpc
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from heed.protos import POOL
from heed.server.environment import host_port, is_loopback
from heed.server.errors import StartError
from heed.server.settings import Compression, Settings
from heed.server.transport.accept_loop import AcceptingServer
from heed.server.transport.bearer_tokens import authorization
from heed.server.transport.interceptors import ConcurrencyLimit, CountRefusal, ErrorsToStatuses

COMPRESSIONS: dict[Compression, grpc.Compression] = {
    "none": grpc.Compression.NoCompression,
    "deflate": grpc.Compression.Deflate,
    "gzip": grpc.Compression.Gzip,
}

log = logging.getLogger("heed.security")

# A connection that sends nothing is closed, before it can carry calls and after.
HANDSHAKE_SECONDS = 20  # until TLS and HTTP/2 are agreed on
PING_SECONDS, PONG_SECONDS = 60, 20  # a silent connection is pinged, and closed without an answer
# Callers may ask as well, if not more often than this. Go's clients may ask every 10 s, and some of their pings come a
# little sooner; 5 minutes, gRPC's default, would forbid what keeps a connection open through most load balancers.
SHORTEST_PING_SECONDS = 5

NO_PORT = {
    errno.EADDRINUSE: "the port is in use (--port chooses another)",
    errno.EADDRNOTAVAIL: "this machine has no such address (--host)",
    errno.EACCES: "this user may not listen on ports below 1024 (--port chooses another)",
}


def _options(settings: Settings) -> dict[str, int]:
    """gRPC's channel arguments."""
    limit = settings.max_message_mib * 2**20
    options = {
        "grpc.max_receive_message_length": limit,
        "grpc.max_send_message_length": limit,
        "grpc.max_concurrent_streams": settings.max_streams,
        "grpc.so_reuseport": 0,  # a port in use is an error, not a server to share it with
        "grpc.server_handshake_timeout_ms": HANDSHAKE_SECONDS * 1000,
        "grpc.keepalive_time_ms": PING_SECONDS * 1000,
        "grpc.keepalive_timeout_ms": PONG_SECONDS * 1000,
        "grpc.http2.ping_timeout_ms": PONG_SECONDS * 1000,  # without it gRPC waits a minute
        "grpc.keepalive_permit_without_calls": 1,
        "grpc.http2.min_ping_interval_without_data_ms": round(SHORTEST_PING_SECONDS * 1000),
    }
    if age := settings.max_connection_age_seconds:
        options["grpc.max_connection_age_ms"] = round(age * 1000)
        options["grpc.max_connection_age_grace_ms"] = round(settings.grace_seconds * 1000)
    return options


def new_server(settings: Settings, limit: ConcurrencyLimit, count_refusal: CountRefusal) -> grpc.aio.Server:
    """A server without services, with what the settings say about connections, messages and callers.

    Args:
        limit: bounds the requests in the process.
        count_refusal: is called for each call that is refused before a service sees it.

    Raises:
        StartError: a file of tokens is not what it should be.
    """
    interceptors = [authorization(settings, count_refusal), limit, ErrorsToStatuses(count_refusal)]
    used = [interceptor for interceptor in interceptors if interceptor]
    return AcceptingServer(used, _options(settings), COMPRESSIONS[settings.compression], count_refusal)


def enable_reflection(server: grpc.aio.Server, services: list[str]) -> None:
    """Reflection reads one pool, so the descriptors of the services from elsewhere are added to ours."""
    for descriptor in (health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
        POOL.AddSerializedFile(descriptor.serialized_pb)  # type: ignore[no-untyped-call]
    names = [*services, health.SERVICE_NAME, reflection.SERVICE_NAME]
    reflection.enable_server_reflection(names, server, pool=POOL)


def encryption(settings: Settings) -> str:
    """What a start says of it."""
    if not settings.tls_certificate:
        return "plain text"
    return "mutual TLS" if settings.tls_client_ca else "TLS"


def warn_of_what_is_open(settings: Settings) -> None:
    """And of what else is open to more than this machine."""
    if is_loopback(settings.host):
        return
    if not settings.tls_certificate:
        tokens = "TOKENS, " * bool(settings.tokens or settings.repository_tokens)
        log.warning(
            "%stexts and answers travel as plain text to %s: whoever is on their way reads them; --tls-certificate and "
            "--tls-key encrypt them",
            *(tokens, settings.host),
        )
    if settings.repository_control and not settings.repository_tokens:
        log.warning("whoever reaches %s may load and unload models; --repository-tokens restricts it", settings.host)


def _credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """What to encrypt with; nothing for plain text, which then has no cryptography in memory."""
    if not (settings.tls_certificate or settings.tls_key or settings.tls_client_ca):
        return None
    from heed.server.transport.certificates import server_credentials

    return server_credentials(settings)


def open_port(server: grpc.aio.Server, settings: Settings) -> str:
    """Returns the address.

    Raises:
        StartError: the port is in use, the address is not this machine's, or a file for TLS is not what it should be.
    """
    address = host_port(settings.host, settings.port)
    credentials = _credentials(settings)
    warn_of_what_is_open(settings)
    try:
        port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    except RuntimeError:
        port = 0
    if port == 0:
        raise StartError(f"cannot listen on {address}: {_why_not(settings.host, settings.port)}")
    return host_port(settings.host, port)


def _why_not(host: str, port: int) -> str:
    """What the operating system says to an address; gRPC keeps it for itself."""
    try:
        for family, kind, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind) as listener:
                listener.bind(address)
    except socket.gaierror as error:
        return f"{error.strerror} (--host)"
    except OSError as error:
        return NO_PORT.get(error.errno or 0, str(error.strerror))
    return NO_PORT[errno.EADDRINUSE]  # it was a moment ago
