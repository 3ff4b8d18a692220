"""Start and stop of a server in a process of its own."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from shutil import copytree
from typing import Any, NamedTuple

import grpc
import numpy as np
import onnxruntime
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc

from heed.bundle.digests import SIGNATURE, write_digests
from heed.bundle.signature import read_private_key, sign
from heed.protos import open_inference_pb2 as pb
from heed.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from heed.server.engine.session import CUDA
from tests.server.support import ids_request, refusal, text_request
from tests.support import Keys, Running, free_port, make_keys, run_server, start_server, stop, wait_until_serving

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
LONG = 256  # tokens; such a row takes MiniLM many milliseconds

cpu_build = pytest.mark.skipif(CUDA in onnxruntime.get_available_providers(), reason="onnxruntime is built for CUDA")


class Outcome(NamedTuple):
    code: StatusCode
    message: str
    outputs: list[bytes]


class Caller:
    """A connection that is made as soon as there is somebody to connect to."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.inference = GRPCInferenceServiceStub(channel)
        self._health: Any = health_pb2_grpc.HealthStub(channel)

    def health(self) -> int:
        request = health_pb2.HealthCheckRequest(service="inference.GRPCInferenceService")
        return int(self._health.Check(request, timeout=20, wait_for_ready=True).status)

    def call(self, request: pb.ModelInferRequest, timeout: float = 60) -> Outcome:
        try:
            answer = self.inference.ModelInfer(request, timeout=timeout)
        except grpc.RpcError as error:
            return Outcome(error.code(), error.details() or "", [])
        return Outcome(StatusCode.OK, "", list(answer.raw_output_contents))

    def code(self, request: pb.ModelInferRequest, timeout: float = 60) -> StatusCode:
        return self.call(request, timeout).code


@contextmanager
def calling(address: str) -> Iterator[Caller]:
    with grpc.insecure_channel(address, [("grpc.initial_reconnect_backoff_ms", 20)]) as channel:
        yield Caller(channel)


@contextmanager
def started(bundle: Path, log: Path, *flags: str, env: dict[str, str] | None = None) -> Iterator[Running]:
    """A server that may not be ready, and that is killed if the test does not stop it."""
    server = start_server(bundle, log, *flags, env=env)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()


def exit_of(bundle: Path, log: Path, *flags: str) -> tuple[int, str]:
    """The exit code and everything that was said, in one line, of a server that cannot start."""
    with started(bundle, log, *flags) as server:
        code = server.process.wait(60)
    return code, " ".join(log.read_text().split())


def long_request(seed: int) -> pb.ModelInferRequest:
    ids = np.random.default_rng(seed).integers(0, 30_000, (1, LONG))
    request = ids_request(ids.tolist(), model="minilm")
    request.outputs.add(name="sentence_embedding")
    return request


def test_while_it_loads_it_says_so_and_answers_unavailable(minilm_bundle: Path, tmp_path: Path) -> None:
    with started(minilm_bundle, tmp_path / "log", "--linger-seconds", "0") as server, calling(server.address) as caller:
        assert caller.health() == NOT_SERVING
        assert caller.inference.ServerLive(pb.ServerLiveRequest(), timeout=5).live
        assert not caller.inference.ServerReady(pb.ServerReadyRequest(), timeout=5).ready
        assert not caller.inference.ModelReady(pb.ModelReadyRequest(name="minilm"), timeout=5).ready
        assert caller.inference.ModelMetadata(pb.ModelMetadataRequest(name="minilm"), timeout=5).name == "minilm"
        refused = refusal(caller.inference, text_request("a", model="minilm"))
        assert refused == (StatusCode.UNAVAILABLE, "model 'minilm' is loading; try again, or another server")
        assert refusal(caller.inference, text_request("a", model="big"))[0] is StatusCode.NOT_FOUND
        assert caller.health() == NOT_SERVING  # all of the above was while it was loading

        wait_until_serving(server)
        assert caller.health() == SERVING
        assert caller.inference.ServerReady(pb.ServerReadyRequest(), timeout=5).ready
        assert caller.inference.ModelReady(pb.ModelReadyRequest(name="minilm"), timeout=5).ready
        assert caller.code(text_request("a", model="minilm")) is StatusCode.OK
        assert stop(server) == 0


def test_sigterm_while_it_loads_ends_it_soon(minilm_bundle: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with started(minilm_bundle, log, "--linger-seconds", "30") as server, calling(server.address) as caller:
        assert caller.health() == NOT_SERVING
        before = time.monotonic()
        assert stop(server) == 0, log.read_text()
        assert time.monotonic() - before < 5
    assert "READY" not in log.read_text()
    assert "Traceback" not in log.read_text()


def test_everything_in_flight_is_answered_before_it_ends(minilm_bundle: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    flags = ["--linger-seconds", "0.2", "--threads", "1"]
    with (
        started(minilm_bundle, log, *flags) as server,
        calling(server.address) as caller,
        ThreadPoolExecutor(24) as callers,
    ):
        wait_until_serving(server)
        answers = [callers.submit(caller.code, long_request(seed)) for seed in range(24)]
        next(iter_done(answers))  # the first is answered: the others have come
        server.process.terminate()
        time.sleep(0.3)
        assert not all(answer.done() for answer in answers)  # the linger is over, and work is left
        codes = [answer.result() for answer in answers]
        assert server.process.wait(60) == 0
    assert codes == [StatusCode.OK] * 24
    assert "Traceback" not in log.read_text()


NO_ROOM = """
import asyncio
from heed.server.repository.model_repository import ModelRepository
from heed.server.transport.accept_loop import _AcceptLoop
def no_room(*_): raise MemoryError("no room")
async def for_ever(_): await asyncio.sleep(3600)
_AcceptLoop._refuse = no_room
if {loading}: ModelRepository.start = for_ever
from heed.__main__ import main
main()
"""


@pytest.mark.parametrize("loading", [False, True], ids=("while it serves", "while models load"))
def test_it_ends_with_an_error_when_grpc_accepts_no_more_calls(
    tiny_bundle: Path, tmp_path: Path, loading: bool
) -> None:
    log, port = tmp_path / "log", free_port()
    flags = ["--port", str(port), "--metrics-port", "-1", "--linger-seconds", "0", "--grace-seconds", "0"]
    with log.open("w") as output:
        command = [sys.executable, "-c", NO_ROOM.format(loading=loading), "serve", str(tiny_bundle), *flags]
        process = subprocess.Popen(command, stdout=output, stderr=output, text=True)
    server = Running(f"127.0.0.1:{port}", process, log)
    try:
        if not loading:
            wait_until_serving(server)
        with grpc.insecure_channel(server.address) as channel:
            call: Any = channel.unary_unary("/unknown/Method")
            with pytest.raises(grpc.RpcError):
                call(b"", timeout=60, wait_for_ready=True)
        assert process.wait(60) == 2
    finally:
        process.kill()
        process.wait()
    assert "error: gRPC accepts no more calls: MemoryError: no room" in log.read_text().splitlines()[-1]


def iter_done(futures: list[Future[StatusCode]]) -> Iterator[Future[StatusCode]]:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        yield from (future for future in futures if future.done())
        time.sleep(0.001)
    raise AssertionError("nothing was answered")


def test_while_it_lingers_it_answers_and_says_that_it_is_not_serving(tiny_bundle: Path, tmp_path: Path) -> None:
    with started(tiny_bundle, tmp_path / "log", "--linger-seconds", "1.5") as server:
        wait_until_serving(server)
        with calling(server.address) as caller:
            assert caller.health() == SERVING
            server.process.terminate()
            before = time.monotonic()
            while caller.health() == SERVING:
                assert time.monotonic() - before < 1
            assert caller.code(ids_request([[2, 3]])) is StatusCode.OK
            with calling(server.address) as newcomer:
                assert newcomer.code(ids_request([[2, 3]])) is StatusCode.OK
            assert server.process.wait(20) == 0
            assert time.monotonic() - before > 1.4
            assert caller.code(ids_request([[2, 3]])) is StatusCode.UNAVAILABLE


def test_after_the_linger_new_calls_are_unavailable_while_old_ones_finish(minilm_bundle: Path, tmp_path: Path) -> None:
    flags = ["--linger-seconds", "0", "--threads", "1"]
    with (
        started(minilm_bundle, tmp_path / "log", *flags) as server,
        calling(server.address) as caller,
        calling(server.address) as newcomer,
        ThreadPoolExecutor(24) as callers,
    ):
        wait_until_serving(server)
        assert newcomer.health() == SERVING
        answers = [callers.submit(caller.code, long_request(seed)) for seed in range(24)]
        next(iter_done(answers))
        server.process.terminate()
        time.sleep(0.2)
        assert newcomer.code(text_request("a", model="minilm")) is StatusCode.UNAVAILABLE
        assert not all(answer.done() for answer in answers)
        assert [answer.result() for answer in answers] == [StatusCode.OK] * 24
        assert server.process.wait(20) == 0


def test_sigint_stops_it_too(tiny_bundle: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with started(tiny_bundle, log, "--linger-seconds", "0") as server:
        wait_until_serving(server)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(20) == 0
    assert "Traceback" not in log.read_text()


def test_a_second_signal_does_not_cut_the_first_one_short(tiny_bundle: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with started(tiny_bundle, log, "--linger-seconds", "0.5") as server, calling(server.address) as caller:
        wait_until_serving(server)
        server.process.terminate()
        time.sleep(0.1)
        server.process.terminate()
        assert caller.code(ids_request([[2, 3]])) is StatusCode.OK
        assert server.process.wait(20) == 0
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def narrow_server(minilm_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One worker, and a queue of four long rows."""
    flags = ["--threads", "1", "--max-queue-tokens", str(4 * LONG)]
    with run_server(minilm_bundle, tmp_path_factory.mktemp("narrow") / "log", *flags) as server:
        yield server


@contextmanager
def kept_busy(caller: Caller) -> Iterator[None]:
    """The server has long rows at work all the time, and always room for another two."""
    enough = threading.Event()

    def work() -> None:
        while not enough.is_set():
            assert caller.code(long_request(0)) is StatusCode.OK

    with ThreadPoolExecutor(3) as callers:
        workers = [callers.submit(work) for _ in range(3)]
        try:
            time.sleep(0.1)
            yield
        finally:
            enough.set()
        for worker in workers:
            worker.result()


def test_a_deadline_of_the_call_is_kept_while_the_server_is_busy(narrow_server: Running) -> None:
    """Whichever is first: the deadline, or the refusal because it could not be kept."""
    with calling(narrow_server.address) as caller, kept_busy(caller):
        before = time.monotonic()
        code = caller.code(long_request(1), timeout=0.005)
        assert code in (StatusCode.DEADLINE_EXCEEDED, StatusCode.RESOURCE_EXHAUSTED)
        assert time.monotonic() - before < 1
    with calling(narrow_server.address) as caller:
        assert caller.code(long_request(1)) is StatusCode.OK


def test_the_parameter_timeout_limits_the_time_in_the_queue(narrow_server: Running) -> None:
    request = long_request(1)
    request.parameters["timeout"].int64_param = 2000  # microseconds
    with calling(narrow_server.address) as caller:
        assert caller.code(long_request(0)) is StatusCode.OK  # now its pace is known
        with kept_busy(caller):
            code, message = refusal(caller.inference, request)
    assert code is StatusCode.RESOURCE_EXHAUSTED
    assert message.startswith("too much is waiting: 0.")


def test_a_generous_timeout_is_kept(narrow_server: Running) -> None:
    request = long_request(1)
    request.parameters["timeout"].uint64_param = 60_000_000
    with calling(narrow_server.address) as caller, kept_busy(caller):
        assert caller.code(request) is StatusCode.OK


def test_a_full_queue_refuses_some_and_answers_the_others_right(narrow_server: Running) -> None:
    with calling(narrow_server.address) as caller, ThreadPoolExecutor(30) as callers:
        alone = [caller.call(long_request(seed)).outputs for seed in range(3)]
        outcomes = list(callers.map(lambda number: caller.call(long_request(number % 3)), range(30)))
    answered = [index for index, outcome in enumerate(outcomes) if outcome.code is StatusCode.OK]
    assert 5 <= len(answered) < 30  # one at work and four in the queue at least
    for index, outcome in enumerate(outcomes):
        if index in answered:
            assert outcome.outputs == alone[index % 3]
        else:
            assert outcome.code is StatusCode.RESOURCE_EXHAUSTED
            assert "the queue is full" in outcome.message


def test_a_port_in_use_stops_it_with_the_port_in_the_message(tiny_bundle: Path, tmp_path: Path) -> None:
    other = grpc.server(ThreadPoolExecutor(1))  # it would share its port with whoever lets it
    port = other.add_insecure_port("127.0.0.1:0")
    other.start()
    code, said = exit_of(tiny_bundle, tmp_path / "log", "--port", str(port))
    other.stop(None).wait()
    assert code == 2
    assert f"error: cannot listen on 127.0.0.1:{port}: the port is in use" in said
    assert "Traceback" not in said


def test_port_0_serves_on_a_free_port_that_it_names(tiny_bundle: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with started(tiny_bundle, log, "--port", "0", "--linger-seconds", "0") as server:
        until = time.monotonic() + 60
        while "comparisons" not in log.read_text():
            assert time.monotonic() < until
            time.sleep(0.05)
        words = log.read_text().split()
        with calling(words[words.index("listens") + 1]) as caller:
            assert caller.code(ids_request([[2, 3]])) is StatusCode.OK
        assert stop(server) == 0


def test_a_missing_bundle_stops_it_with_the_next_step(tmp_path: Path) -> None:
    code, said = exit_of(tmp_path / "nothing", tmp_path / "log")
    assert code == 2
    assert f"error: {tmp_path}/nothing does not exist; `heed export SOURCE {tmp_path}/nothing` makes" in said
    assert "Traceback" not in said


def test_a_folder_that_is_no_bundle_stops_it_with_the_next_step(tiny: Path, tmp_path: Path) -> None:
    code, said = exit_of(tiny, tmp_path / "log")
    assert code == 2
    assert f"error: {tiny} is a checkpoint, not yet a bundle: `heed export {tiny} BUNDLE`" in said


def test_an_altered_bundle_stops_it_before_it_serves(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = copytree(tiny_bundle, tmp_path / "tiny")
    weights = bytearray((bundle / "weights.fp32.data").read_bytes())
    weights[1000] ^= 1
    (bundle / "weights.fp32.data").write_bytes(weights)
    code, said = exit_of(bundle, tmp_path / "log")
    assert code == 2
    assert f"error: {bundle}/weights.fp32.data is altered" in said
    assert said.count("is altered") == 1
    assert "READY" not in said


def signed(bundle: Path, folder: Path, key: Path) -> Path:
    """A signed copy."""
    copytree(bundle, folder)
    sign(folder, read_private_key(key))
    return folder


def test_a_bundle_that_is_signed_as_required_is_served(tiny_bundle: Path, tmp_path: Path) -> None:
    keys = make_keys(tmp_path)
    bundle = signed(tiny_bundle, tmp_path / "tiny", keys.private)
    flags = ["--require-signature", str(keys.public)]
    with run_server(bundle, tmp_path / "log", *flags) as server, calling(server.address) as caller:
        assert caller.code(ids_request([[2, 3]])) is StatusCode.OK


def unsigned(bundle: Path, keys: Keys) -> str:
    (bundle / SIGNATURE).unlink()
    return "is not signed: it has no SHA256SUMS.sig"


def signed_by_another(bundle: Path, keys: Keys) -> str:
    sign(bundle, read_private_key(make_keys(bundle.parent, "another").private))
    return "another key signed it"


def altered_with_its_digests(bundle: Path, keys: Keys) -> str:
    manifest = bundle / "bundle.json"
    manifest.write_text(manifest.read_text().replace('"mean of', '"mean  of'))
    write_digests(bundle)
    return "altered after it was signed"


def altered(bundle: Path, keys: Keys) -> str:
    (bundle / "tokenizer.json").write_text("{}")
    return "tokenizer.json is altered"


def wrong_side_of_the_key(bundle: Path, keys: Keys) -> str:
    keys.private.replace(keys.public)
    return f"key {keys.public} is the private key"


@pytest.mark.parametrize(
    "spoil", [unsigned, signed_by_another, altered_with_its_digests, altered, wrong_side_of_the_key]
)
def test_what_is_not_signed_as_required_is_never_served(
    tiny_bundle: Path, tmp_path: Path, spoil: Callable[[Path, Keys], str]
) -> None:
    keys = make_keys(tmp_path)
    bundle = signed(tiny_bundle, tmp_path / "tiny", keys.private)
    message = spoil(bundle, keys)
    with started(bundle, tmp_path / "log", env={"HEED_REQUIRE_SIGNATURE": str(keys.public)}) as server:
        assert server.process.wait(60) == 2
    said = " ".join((tmp_path / "log").read_text().split())
    assert message in said
    assert "READY" not in said
    assert "Traceback" not in said


@cpu_build
def test_device_cuda_on_a_cpu_build_stops_it_with_the_reason(tiny_bundle: Path, tmp_path: Path) -> None:
    code, said = exit_of(tiny_bundle, tmp_path / "log", "--device", "cuda")
    assert code == 2
    assert "error: CUDA cannot be used: this onnxruntime is built for the CPU only" in said
    assert "READY" not in said


@cpu_build
def test_device_auto_on_a_cpu_build_serves_on_the_cpu_and_says_why(tiny_bundle: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with run_server(tiny_bundle, log, "--device", "auto") as server, calling(server.address) as caller:
        answer = caller.inference.ModelInfer(ids_request([[2, 3]]), timeout=20)
        assert answer.parameters["provider"].string_param == "CPUExecutionProvider"
    said = " ".join(log.read_text().split())
    assert "runs on CPUExecutionProvider (CUDA cannot be used: this onnxruntime is built for the CPU only" in said


def test_device_cpu_gives_no_excuse(tiny_bundle: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with run_server(tiny_bundle, log, "--device", "cpu"):
        pass
    said = " ".join(log.read_text().split())
    assert "runs on CPUExecutionProvider, " in said
    assert "CUDA" not in said


@pytest.mark.parametrize(
    ("flag", "value"), [("--port", "70000"), ("--threads", "-1"), ("--device", "tpu"), ("--linger-seconds", "-1")]
)
def test_a_setting_out_of_range_is_named(tiny_bundle: Path, tmp_path: Path, flag: str, value: str) -> None:
    code, said = exit_of(tiny_bundle, tmp_path / "log", flag, value)
    assert code == 2
    assert flag in said
    assert value in said
    assert "Traceback" not in said


def test_settings_come_from_the_environment_too(tiny_bundle: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    server = start_server(tiny_bundle, log, env={"HEED_THREADS": "3", "HEED_LINGER_SECONDS": "0"})
    try:
        wait_until_serving(server)
        before = time.monotonic()
        assert stop(server) == 0
        assert time.monotonic() - before < 0.9
    finally:
        server.process.kill()
        server.process.wait()
    assert "CPUExecutionProvider" in log.read_text()
    assert "3 threads" in " ".join(log.read_text().split())
