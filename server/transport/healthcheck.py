"""Asks a server's health service whether it is ready:    python -m heed.server.transport.healthcheck [HOST:PORT]

With HEED_TLS_CERTIFICATE it is asked over TLS: that certificate is trusted, and with HEED_TLS_CLIENT_CA it is also what
the check shows.

Exit code 0: it is. 1: it is not. One line says what was found. For container health checks, so it needs only what the
server needs. Without an argument it asks at HEED_HOST and HEED_PORT, this machine at 8001 without them.
"""

import sys
from pathlib import Path
from typing import Any

import grpc
from cryptography.x509 import DNSName, ExtensionNotFound, IPAddress, SubjectAlternativeName, load_pem_x509_certificate
from grpc_health.v1 import health_pb2, health_pb2_grpc

from heed.server.environment import host_port, loopback_of, variables

SECONDS = 3.0  # less than a health check is given
# A proxy from the environment is not the way to this machine.
OPTIONS = [("grpc.enable_http_proxy", 0)]


def _name_in(certificate: bytes) -> str:
    """One that the certificate was made for."""
    own = load_pem_x509_certificate(certificate)
    names = own.extensions.get_extension_for_class(SubjectAlternativeName).value
    found = [*names.get_values_for_type(DNSName), *map(str, names.get_values_for_type(IPAddress))]
    return found[0].replace("*", "any")


def _channel(address: str) -> grpc.Channel:
    told = variables()
    if not (certificate := told.get("HEED_TLS_CERTIFICATE")):
        return grpc.insecure_channel(address, options=OPTIONS)
    chain = Path(certificate).read_bytes()
    shown: dict[str, bytes] = {}
    if told.get("HEED_TLS_CLIENT_CA"):
        shown = {"private_key": Path(told["HEED_TLS_KEY"]).read_bytes(), "certificate_chain": chain}
    name = ("grpc.ssl_target_name_override", _name_in(chain))
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(chain, **shown), options=[*OPTIONS, name])


def status(address: str) -> str:
    """SERVING, NOT_SERVING, or why there was no answer."""
    with _channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def own_address() -> str:
    """That of a server with the same environment."""
    told = variables()
    host = told.get("HEED_HOST", "127.0.0.1").strip("[]")
    return host_port(loopback_of(host), int(told.get("HEED_PORT", "8001")))


def main(arguments: list[str]) -> int:
    address = arguments[0] if arguments else own_address()
    try:
        found = status(address)
    except (OSError, ValueError, ExtensionNotFound) as error:
        found = f"HEED_TLS_CERTIFICATE or HEED_TLS_KEY cannot be used: {error}"
    print(f"{address} {found}")
    return 0 if found == "SERVING" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
