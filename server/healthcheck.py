"""Asks a server's health service whether it is ready:    python -m server.healthcheck [HOST:PORT]

Exit code 0: it is. 1: it is not. One line says what was found. For container health checks, so it needs only what the
server needs. Without an argument it asks this machine at HEED_PORT, or else at 8001.
"""

import os
import sys
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

SECONDS = 3.0  # less than a health check is given
# A proxy from the environment is not the way to this machine.
OPTIONS = [("grpc.enable_http_proxy", 0)]


def status(address: str) -> str:
    """SERVING, NOT_SERVING, or why there was no answer."""
    with grpc.insecure_channel(address, options=OPTIONS) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def main(arguments: list[str]) -> int:
    address = arguments[0] if arguments else f"127.0.0.1:{os.environ.get('HEED_PORT', '8001')}"
    found = status(address)
    print(f"{address} {found}")
    return 0 if found == "SERVING" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
