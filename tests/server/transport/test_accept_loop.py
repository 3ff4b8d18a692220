"""Whatever fields a call's headers have, the server goes on accepting connections and calls."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from operator import length_hint
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2_grpc

from heed.server.errors import ServerFailure
from heed.server.protocols.health import SERVING, Health
from heed.server.settings import Settings
from heed.server.transport import accept_loop
from heed.server.transport.accept_loop import accepted_until_stopped
from heed.server.transport.grpc_server import new_server, open_port
from heed.server.transport.interceptors import ConcurrencyLimit
from tests.server import http2
from tests.server.http2 import END_HEADERS, END_STREAM, PING, Connection, frame
from tests.server.test_security_calls import make_certificates

CHECK = b"/grpc.health.v1.Health/Check"
TOKEN = "9f86d081884c7d659a2feaa0c55ad015"
VALUES = (b"", b"\xff", b"\0\n", b"a" * 5000, b"-1")
FIELDS = (
    *(b":method", b":scheme", b":path", b":authority", b"content-type", b"te", b"user-agent", b"authorization"),
    *(b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding", b"grpc-trace-bin", b"grpc-tags-bin", b"grpc-status"),
    *(
        b"grpc-previous-rpc-attempts",
        b"x-custom",
        b"x-custom-bin",
        b"host",
        b"connection",
        b"content-length",
        b"cookie",
    ),
    *(b":unknown", b"", b"\xff", b"Upper", b"x\0y", b":status", b"grpc-internal-encoding-request", b"lb-token"),
)


def strange_calls() -> list[list[tuple[bytes, bytes]]]:
    """One with each field and value, with usual fields twice and missing, and with odd names of methods."""
    usual = http2.call_fields(CHECK)
    found = [[*(usual | {name: value}).items()] for name in FIELDS for value in VALUES]
    found += [[*usual.items(), (name, value)] for name, value in usual.items()]
    found += [[(name, b"\xff"), *usual.items()] for name in usual]
    found += [[(name, value) for name, value in usual.items() if name != missing] for missing in usual]
    found += [[*(usual | {b":path": path}).items()] for path in (b"/a/\xff", CHECK + b"\xff", CHECK[1:], b"*", b"/")]
    return [*found, []]


@pytest_asyncio.fixture(params=["plain text", "TLS"])
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[str, ssl.SSLContext | None]]:
    """One that wants tokens; its address, and how to speak to it."""
    (tmp_path / "tokens").write_text(TOKEN)
    settings: dict[str, Any] = {"bundle": tmp_path, "port": 0, "tokens": tmp_path / "tokens"}
    context = None
    if request.param == "TLS":
        make_certificates(tmp_path)
        settings |= {"tls_certificate": tmp_path / "server.pem", "tls_key": tmp_path / "server.key"}
        context = ssl.create_default_context(cafile=tmp_path / "ca.pem")
        context.set_alpn_protocols(["h2"])
    health = Health([])
    health.report(SERVING)
    made = Settings(**settings)
    running = new_server(made, ConcurrencyLimit(10), lambda reason: None)
    health_pb2_grpc.add_HealthServicer_to_server(health, running)
    address = open_port(running, made)
    await running.start()
    yield address, context
    assert await running.wait_for_termination(0.01)  # it runs
    await running.stop(0)


@contextmanager
def connected(address: str, context: ssl.SSLContext | None) -> Iterator[Connection]:
    host, port = address.rsplit(":", 1)
    raw = socket.create_connection((host, int(port)), timeout=20)
    with context.wrap_socket(raw, server_hostname="localhost") if context else raw as stream:
        connection = Connection(stream)
        connection.send(http2.PREFACE, http2.settings())
        yield connection


def send(connection: Connection, calls: Iterator[list[tuple[bytes, bytes]]]) -> None:
    """Sends calls and waits until each was read; some of them end the connection."""
    with suppress(ConnectionError, AssertionError):
        for stream, fields in zip(count(1, 2), calls, strict=False):
            connection.send(http2.raw_headers(stream, fields, END_HEADERS | END_STREAM), frame(PING, payload=bytes(8)))
            connection.next(PING)


def send_all_and_check(address: str, context: ssl.SSLContext | None) -> bool:
    """Whether a usual call on a new connection is answered after all others."""
    calls = iter(strange_calls())
    while length_hint(calls):
        with connected(address, context) as connection:
            send(connection, calls)
    with connected(address, context) as connection:
        connection.send(http2.headers(1, CHECK.decode()), http2.message(1, b"", end=True))
        return connection.next(http2.DATA).payload.endswith(b"\x08\x01")


async def test_no_header_ends_it(server: tuple[str, ssl.SSLContext | None]) -> None:
    assert await asyncio.to_thread(send_all_and_check, *server)


def unknown_method(channel: grpc.aio.Channel) -> Any:
    return channel.unary_unary("/unknown/Method")


async def test_a_loop_that_ends_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(accept_loop._AcceptLoop, "_refuse", fail)
    running = new_server(Settings(bundle=Path()), ConcurrencyLimit(10), lambda reason: None)
    port = running.add_insecure_port("127.0.0.1:0")
    await running.start()
    ended = asyncio.create_task(accepted_until_stopped(running))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await unknown_method(channel)(b"", timeout=0.1)
    with pytest.raises(ServerFailure, match="gRPC accepts no more calls: MemoryError: no room"):
        await asyncio.wait_for(ended, 20)
    await running.stop(0)


async def test_unknown_methods_are_refused_and_counted() -> None:
    counted: list[str] = []
    running = new_server(Settings(bundle=Path()), ConcurrencyLimit(10), counted.append)
    port = running.add_insecure_port("127.0.0.1:0")
    await running.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError, match="no service of this server has such a method") as refused:
            await unknown_method(channel)(b"", timeout=20)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert counted == ["unimplemented"]
    await running.stop(0)
