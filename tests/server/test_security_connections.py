"""Connections that misbehave: they are ended or wait, and other callers notice nothing."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc

from heed.protos import open_inference_pb2 as pb
from heed.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from tests.server import http2
from tests.server.http2 import Connection, connected, frame
from tests.server.support import ids_request
from tests.support import Running, free_port, start_server, stop, wait_until_serving

INFER = "/inference.GRPCInferenceService/ModelInfer"
LIVE = "/inference.GRPCInferenceService/ServerLive"
WATCH = "/grpc.health.v1.Health/Watch"

# A server's patience is constants; here they are seconds.
IMPATIENT = """
import heed.server.transport.grpc_server as listening
listening.HANDSHAKE_SECONDS, listening.PING_SECONDS, listening.PONG_SECONDS = 3, 1, 8
listening.SHORTEST_PING_SECONDS /= 20
from heed.__main__ import main
main()
"""


@pytest.fixture(scope="module")
def server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """It loses patience after seconds, and takes two requests at a time."""
    log = tmp_path_factory.mktemp("impatient") / "log"
    port = free_port()
    flags = ["--port", str(port), "--max-concurrent-requests", "2", "--max-streams", "7", "--linger-seconds", "0"]
    command = [sys.executable, "-c", IMPATIENT, "serve", str(tiny_bundle), *flags]
    with log.open("w") as output:
        variables = os.environ | {"HEED_METRICS_PORT": "-1"}
        process = subprocess.Popen(command, stdout=output, stderr=output, text=True, env=variables)
    running = Running(f"127.0.0.1:{port}", process, log)
    try:
        wait_until_serving(running)
        yield running
        assert stop(running) == 0
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()
        process.wait()


@contextmanager
def answered_meanwhile(server: Running) -> Iterator[None]:
    """Another caller asks again and again, and gets the same bits each time."""
    request = ids_request([[2, 5, 9, 3], [7, 7, 3, 3]])
    with grpc.insecure_channel(server.address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        expected = list(stub.ModelInfer(request, timeout=60).raw_output_contents)
        same: list[bool] = []
        enough = threading.Event()

        def call_until_enough() -> None:
            while not enough.is_set():
                same.append(list(stub.ModelInfer(request, timeout=60).raw_output_contents) == expected)

        caller = threading.Thread(target=call_until_enough)
        caller.start()
        try:
            yield
            asked = len(same)
            while caller.is_alive() and len(same) < asked + 3:  # it still gets answers
                time.sleep(0.01)
        finally:
            enough.set()
            caller.join(60)
        assert len(same) >= asked + 3
        assert all(same)


def hello(connection: Connection) -> None:
    connection.send(http2.PREFACE, http2.settings())
    connection.next(http2.SETTINGS)
    connection.send(frame(http2.SETTINGS, http2.ACK))


def is_closed(connection: Connection) -> bool:
    """Whether the server ends it; waits as long as the connection does."""
    for _ in connection.frames():
        pass
    return True


@pytest.mark.parametrize("said", [b"", http2.PREFACE[:9], b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00"])
def test_who_does_not_begin_to_speak_http2_is_cut_off(server: Running, said: bytes) -> None:
    with answered_meanwhile(server), connected(server.address) as connection:
        connection.send(said)
        assert is_closed(connection)


@pytest.mark.parametrize("with_a_call", [False, True])
def test_a_peer_that_has_vanished_is_given_up(server: Running, with_a_call: bool) -> None:
    with answered_meanwhile(server), connected(server.address, seconds=30) as connection:
        hello(connection)
        if with_a_call:
            connection.send(http2.headers(1, INFER))
        connection.next(http2.PING)  # it asks, and gets no answer
        assert is_closed(connection)


def test_a_flood_of_pings_is_ended(server: Running) -> None:
    with answered_meanwhile(server), connected(server.address) as connection:
        hello(connection)
        connection.send(*[frame(http2.PING, payload=bytes(8))] * 10)
        assert connection.next(http2.GOAWAY).error == http2.ENHANCE_YOUR_CALM
        assert is_closed(connection)


def test_who_pings_as_often_as_gos_clients_may_keeps_the_connection(server: Running) -> None:
    """Every 10 s is Go's shortest; here that is half a second, and every second ping comes a tenth too soon."""
    with connected(server.address) as connection:
        hello(connection)
        for pause in (0.45, 0.55) * 4:
            connection.send(frame(http2.PING, payload=b"from Go!"))
            while (one := connection.next(http2.PING)).payload != b"from Go!":
                connection.send(frame(http2.PING, http2.ACK, payload=one.payload))
            time.sleep(pause)
        connection.send(http2.headers(1, LIVE), http2.message(1, b"", end=True))
        assert connection.next(http2.DATA).payload.endswith(b"\x08\x01")


def test_a_connection_may_have_only_so_many_calls(server: Running) -> None:
    with connected(server.address) as connection:
        connection.send(http2.PREFACE, http2.settings())
        assert connection.next(http2.SETTINGS).settings[http2.MAX_CONCURRENT_STREAMS] == 7


def wait_for(stub: GRPCInferenceServiceStub, code: StatusCode, seconds: float = 60) -> str:
    """Asks until the answer has this status, and returns its message."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            stub.ModelInfer(ids_request([[2, 3]]), timeout=20)
            found, message = StatusCode.OK, ""
        except grpc.RpcError as error:
            found, message = error.code(), error.details() or ""
        if found is code:
            return message
        time.sleep(0.01)
    raise AssertionError(f"never {code.name}")


def test_more_requests_than_may_be_in_the_server_are_refused_at_once_but_health_is_told(server: Running) -> None:
    request = ids_request([[2, 3]])
    half = http2.message(1, request.SerializeToString())[9:20]
    with connected(server.address) as slow, grpc.insecure_channel(server.address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        health: Any = health_pb2_grpc.HealthStub(channel)
        hello(slow)
        for stream in (1, 3):
            slow.send(http2.headers(stream, INFER), frame(http2.DATA, 0, stream, half))
        pings = threading.Thread(target=answer_pings, args=[slow])
        pings.start()
        try:
            message = wait_for(stub, StatusCode.RESOURCE_EXHAUSTED)
            assert message.startswith(
                "2 requests are in the server, and it takes 2 at a time (--max-concurrent-requests)"
            )
            told = next(stub.ModelStreamInfer(iter([request]), timeout=20))
            assert told.error_message == message
            assert told.infer_response.parameters["status"].string_param == "RESOURCE_EXHAUSTED"
            assert health.Check(health_pb2.HealthCheckRequest(), timeout=20).status == 1
            assert stub.ServerReady(pb.ServerReadyRequest(), timeout=20).ready
        finally:
            slow.raw.shutdown(socket.SHUT_RDWR)
            pings.join()
        wait_for(stub, StatusCode.OK)  # their places are free again


def answer_pings(connection: Connection) -> None:
    for one in connection.frames():
        if one.kind == http2.PING and not one.flags & http2.ACK:
            connection.send(frame(http2.PING, http2.ACK, payload=one.payload))


def test_who_does_not_read_a_stream_fills_no_memory(tiny_server: Running) -> None:
    """600 answers of 200 kB each wait to be read."""
    request = ids_request([[5 + row] * 40 for row in range(4)])
    request.outputs.add(name="attentions")
    process = psutil.Process(tiny_server.process.pid)
    with answered_meanwhile(tiny_server), grpc.insecure_channel(tiny_server.address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        expected = stub.ModelInfer(request, timeout=60).raw_output_contents
        before = process.memory_info().rss
        answers = stub.ModelStreamInfer(iter([request] * 600))
        first = next(answers)
        peak = 0
        for _ in range(20):
            time.sleep(0.1)
            peak = max(peak, process.memory_info().rss)
        rest = list(answers)
    assert peak - before < 36 * 2**20
    assert len(rest) == 599
    assert all(answer.infer_response.raw_output_contents == expected for answer in [first, *rest])


def test_a_client_that_is_stopped_holds_up_nobody(tiny_server: Running) -> None:
    program = f"""
import grpc
from heed.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from tests.server.support import ids_request
stub = GRPCInferenceServiceStub(grpc.insecure_channel({tiny_server.address!r}))
for answer in stub.ModelStreamInfer(ids_request([[5] * 40] * 20) for _ in range(10**6)):
    print("answered", flush=True)
"""
    client = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    try:
        assert client.stdout
        assert client.stdout.readline()
        psutil.Process(client.pid).suspend()
        with answered_meanwhile(tiny_server):
            time.sleep(1)
    finally:
        client.kill()
        client.wait()
        assert client.stdout
        client.stdout.close()


def test_goaway_at_a_connections_age_and_at_the_end_whoever_does_not_read(tiny_bundle: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    flags = ["--max-connection-age-seconds", "1", "--linger-seconds", "0", "--grace-seconds", "3"]
    server = start_server(tiny_bundle, log, *flags)
    try:
        wait_until_serving(server)
        with connected(server.address) as old:
            hello(old)
            assert old.next(http2.GOAWAY).error == http2.NO_ERROR
        with connected(server.address) as deaf, connected(server.address) as watcher:
            for connection, window in ((deaf, 0), (watcher, 65535)):
                connection.send(http2.PREFACE, http2.settings(window=window), http2.headers(1, WATCH))
                connection.send(http2.message(1, b"", end=True))
            assert watcher.next(http2.DATA).payload.endswith(b"\x08\x01")
            assert stop(server) == 0
            frames = list(watcher.frames())
        told = [one.payload[-2:] for one in frames if one.kind == http2.DATA and one.payload]
        assert told == [b"\x08\x02"]  # NOT_SERVING
        assert http2.GOAWAY in [one.kind for one in frames]
    finally:
        server.process.kill()
        server.process.wait()
    assert "Traceback" not in log.read_text()
