"""The metrics' port has the metrics, and nothing that a probe could take for a server that is ready."""

import socket
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from prometheus_client import CollectorRegistry, Gauge

from heed.server.errors import StartError
from heed.server.telemetry.metrics_endpoint import serve_metrics


@pytest.fixture(scope="module")
def registry() -> CollectorRegistry:
    made = CollectorRegistry()
    Gauge("answer", "of all", registry=made).set(42)
    return made


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "::"])
def test_metrics_are_at_their_path_alone(registry: CollectorRegistry, host: str) -> None:
    if ":" in host and not socket.has_ipv6:
        pytest.skip("no IPv6")
    address = serve_metrics(registry, host, 0)
    with urlopen(f"http://{address}/metrics", timeout=20) as page:
        assert b"answer 42.0" in page.read()
    for path in ("/", "/health", "/ready", "/v2/health/ready", "/metrics/x"):
        with pytest.raises(HTTPError, match="404"):
            urlopen(f"http://{address}{path}", timeout=20)


def test_an_address_that_cannot_be_used_is_told(registry: CollectorRegistry) -> None:
    port = int(serve_metrics(registry, "127.0.0.1", 0).rsplit(":", 1)[1])
    with pytest.raises(StartError, match=rf"cannot listen on 127.0.0.1:{port} for metrics: Address already in use; "):
        serve_metrics(registry, "127.0.0.1", port)
    with pytest.raises(StartError, match=r"cannot listen on \[2001:db8::1\]:0 for metrics: "):
        serve_metrics(registry, "2001:db8::1", 0)
    with pytest.raises(StartError, match=r"cannot listen on no.such.host.invalid:0 for metrics: "):
        serve_metrics(registry, "no.such.host.invalid", 0)
