"""The health check of the container: its exit code is all that counts."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from heed.server.transport import healthcheck
from tests.support import Running, free_port

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def servicer() -> health.HealthServicer:
    return health.HealthServicer()


@pytest.fixture
def port(servicer: health.HealthServicer) -> Iterator[int]:
    """Of a server that has nothing but a health service."""
    server = grpc.server(ThreadPoolExecutor(1))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None).wait()


def test_it_asks_the_address_it_is_given(servicer: health.HealthServicer, port: int) -> None:
    assert healthcheck.main([f"127.0.0.1:{port}"]) == 0
    servicer.set("", NOT_SERVING)
    assert healthcheck.main([f"127.0.0.1:{port}"]) == 1
    servicer.set("", SERVING)
    assert healthcheck.main([f"127.0.0.1:{port}"]) == 0


def test_it_asks_the_port_of_the_settings(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEED_PORT", str(port))
    assert healthcheck.main([]) == 0


@pytest.mark.parametrize(
    ("told", "asked"),
    [
        ({}, "127.0.0.1:8001"),
        ({"HEED_HOST": "0.0.0.0", "HEED_PORT": ""}, "127.0.0.1:8001"),
        ({"HEED_HOST": "[::1]", "HEED_PORT": "9000"}, "[::1]:9000"),
        ({"HEED_HOST": "::"}, "[::1]:8001"),
        ({"HEED_PORT": "tcp://10.43.0.5:9000"}, "127.0.0.1:8001"),
    ],
)
def test_it_asks_where_the_variables_say(told: dict[str, str], asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEED_HOST", "HEED_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert healthcheck.own_address() == asked


def test_nobody_there_is_not_ready(capsys: pytest.CaptureFixture[str]) -> None:
    assert healthcheck.main([f"127.0.0.1:{free_port()}"]) == 1
    assert "UNAVAILABLE" in capsys.readouterr().out


def test_a_proxy_is_not_asked(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    assert healthcheck.main([f"127.0.0.1:{port}"]) == 0


def test_as_a_command(tiny_server: Running) -> None:
    command = [sys.executable, "-m", "heed.server.transport.healthcheck", tiny_server.address]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{tiny_server.address} SERVING\n")
