"""Which variables are meant for heed, and how addresses are written."""

import pytest

from heed.server.environment import host_port, is_loopback, loopback_of, variables

# What Kubernetes gives the pods beside Services named heed and heed-metrics.
LINKS = {
    "HEED_SERVICE_HOST": "10.43.0.5",
    "HEED_SERVICE_PORT": "8001",
    "HEED_SERVICE_PORT_GRPC": "8001",
    "HEED_PORT": "tcp://10.43.0.5:8001",
    "HEED_PORT_8001_TCP": "tcp://10.43.0.5:8001",
    "HEED_PORT_8001_TCP_PROTO": "tcp",
    "HEED_PORT_8001_TCP_PORT": "8001",
    "HEED_PORT_8001_TCP_ADDR": "10.43.0.5",
    "HEED_METRICS_SERVICE_HOST": "10.43.0.6",
    "HEED_METRICS_PORT": "udp://10.43.0.6:8002",
    "HEED_METRICS_PORT_8002_UDP_ADDR": "10.43.0.6",
}


def test_variables_of_services_are_not_settings() -> None:
    assert variables(LINKS) == {}


def test_empty_variables_are_none_and_all_others_are_meant() -> None:
    told = {
        "HEED_PORT": "8001",
        "HEED_METRICS_PORT": "0",
        "HEED_HOST": "",
        "HEED_SUPPORT": "1",
        "HEEDS": "1",
    }
    assert variables(told) == {"HEED_PORT": "8001", "HEED_METRICS_PORT": "0", "HEED_SUPPORT": "1"}


@pytest.mark.parametrize(
    ("host", "written", "asked"),
    [
        ("127.0.0.1", "127.0.0.1:80", "127.0.0.1"),
        ("0.0.0.0", "0.0.0.0:80", "127.0.0.1"),
        ("::", "[::]:80", "::1"),
        ("::1", "[::1]:80", "::1"),
        ("heed.example", "heed.example:80", "heed.example"),
    ],
)
def test_addresses(host: str, written: str, asked: str) -> None:
    assert host_port(host, 80) == written
    assert loopback_of(host) == asked


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False),
     ("::", False), ("10.0.0.7", False), ("heed.example", False)],
)  # fmt: skip
def test_loopback_is_known(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
