"""The metrics over HTTP: GET /metrics, and nothing else. A probe of anything here must not find what it looks for."""

import socket
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from heed.server.environment import host_port
from heed.server.errors import StartError

PATH = "/metrics"
SECONDS = 20.0  # that a caller may take to send a request


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True  # no scrape holds up the end

    def __init__(self, host: str, port: int) -> None:
        """Raises OSError: the host is unknown or not this machine's, or the port is in use."""
        self.address_family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        super().__init__(address, _Handler)  # type: ignore[arg-type]  # of four parts with IPv6

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing is said of who leaves before the answer."""


class _Handler(WSGIRequestHandler):
    timeout = SECONDS

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are not logged."""


def _application(registry: CollectorRegistry) -> Callable[[Any, Any], Iterable[bytes]]:
    metrics: Any = make_wsgi_app(registry)

    def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] == PATH:
            return metrics(environ, start_response)  # type: ignore[no-any-return]
        start_response("404 Not Found", [("Content-Type", "text/plain")])
        return [b"here are only /metrics; whether the server is ready, grpc.health.v1 says on its gRPC port\n"]

    return answer


def serve_metrics(registry: CollectorRegistry, host: str, port: int) -> str:
    """Answers from now on until the process ends, and returns the address.

    Raises:
        StartError: the port is in use, or the address is not this machine's.
    """
    try:
        server = _Server(host, port)
    except OSError as error:
        raise StartError(
            f"cannot listen on {host_port(host, port)} for metrics: {error.strerror}; --metrics-port chooses another "
            "port, 0 a free one, -1 none, and --metrics-host another address"
        ) from None
    server.set_app(_application(registry))
    Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return host_port(host, server.server_port)
