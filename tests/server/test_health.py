"""Health streams, which other clients hold open for as long as a server lives."""

import threading
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support import run_server, stop


def test_open_watch_streams_hear_of_the_stop_and_do_not_delay_it(tiny_bundle: Path, tmp_path: Path) -> None:
    heard: list[int] = []
    log = tmp_path / "log"
    with (
        run_server(tiny_bundle, log, "--grace-seconds", "30") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        stub: Any = health_pb2_grpc.HealthStub(channel)
        stream = stub.Watch(health_pb2.HealthCheckRequest())

        def listen() -> None:
            with pytest.raises(grpc.RpcError, match="the server is shutting down; ask another one"):
                heard.extend(answer.status for answer in stream)

        watcher = threading.Thread(target=listen)
        watcher.start()
        while not heard:
            time.sleep(0.01)
        started = time.monotonic()
        assert stop(server) == 0
        assert time.monotonic() - started < 10
        watcher.join()
        assert stream.code() is grpc.StatusCode.UNAVAILABLE
    assert heard == [health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING]
