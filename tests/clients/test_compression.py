"""Compressed messages, counted on their way."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest

from heed.protos import open_inference_pb2 as pb
from heed.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from tests.server.support import ids_request
from tests.support import Running, run_server

# Many equal numbers in both directions.
LARGE = ids_request([[5] * 4] * 1000)
KINDS = [grpc.Compression.NoCompression, grpc.Compression.Deflate, grpc.Compression.Gzip]


class Counted:
    """Between client and server: how many bytes went which way."""

    def __init__(self, address: str) -> None:
        self.sent = self.received = 0
        self._host, self._port = address.split(":")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                caller, _ = self._listener.accept()
                server = socket.create_connection((self._host, int(self._port)))
                for pair in ((caller, server), (server, caller)):
                    threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        to_server = target.getpeername()[1] == int(self._port)
        with suppress(OSError):
            while part := source.recv(65536):
                if to_server:
                    self.sent += len(part)
                else:
                    self.received += len(part)
                target.sendall(part)
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._listener.close()


@contextmanager
def counted(server: Running) -> Iterator[tuple[Counted, GRPCInferenceServiceStub]]:
    between = Counted(server.address)
    with grpc.insecure_channel(between.address) as channel:
        yield between, GRPCInferenceServiceStub(channel)
    between.close()


@pytest.fixture(scope="module")
def gzip_server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with run_server(tiny_bundle, tmp_path_factory.mktemp("gzip") / "log", "--compression", "gzip") as running:
        yield running


def test_requests_may_come_compressed(tiny_server: Running) -> None:
    sent, answers = [], []
    for kind in KINDS:
        with counted(tiny_server) as (between, stub):
            answers.append(stub.ModelInfer(LARGE, compression=kind, timeout=60).raw_output_contents)
            sent.append(between.sent)
    assert answers[0] == answers[1] == answers[2]
    assert max(sent[1:]) < sent[0] / 3


def test_answers_are_compressed_if_the_operator_wants_that(tiny_server: Running, gzip_server: Running) -> None:
    received, answers, streamed = [], [], []
    for server in (tiny_server, gzip_server):
        with counted(server) as (between, stub):
            answers.append(stub.ModelInfer(LARGE, timeout=60).raw_output_contents)
            received.append(between.received)
            (answer,) = stub.ModelStreamInfer(iter([LARGE]), timeout=60)
            streamed.append(between.received - received[-1])
            assert answer.infer_response.raw_output_contents == answers[0]
    assert answers[0] == answers[1]
    assert received[1] < received[0] / 3
    assert streamed[1] < streamed[0] / 3


def test_a_small_message_that_unpacks_to_one_too_large_is_refused(tiny_server: Running) -> None:
    bomb = pb.ModelInferRequest(model_name="tiny", raw_input_contents=[bytes(80 * 2**20)])
    with counted(tiny_server) as (between, stub):
        with pytest.raises(grpc.RpcError) as refused:
            stub.ModelInfer(bomb, compression=grpc.Compression.Gzip, timeout=60)
        assert between.sent < 2**20
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert len(stub.ModelInfer(LARGE, timeout=60).outputs) == 2
