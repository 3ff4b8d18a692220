"""TLS, tokens and limits as callers meet them. Keys and certificates are made by the commands of docs/security.md."""

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import psutil
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from heed.protos import open_inference_pb2 as pb
from heed.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from tests.heed.support import heed
from tests.server.support import ids_request, refusal, text_request
from tests.support import Running, start_server, stop

ROOT = Path(__file__).parent.parent.parent
TOKEN, REPOSITORY_TOKEN = "9f86d081884c7d659a2feaa0c55ad015", "a3bf4f1b2b0b822cd15d6c15b0f00a08"
LOAD = "/inference.GRPCInferenceService/RepositoryModelLoad"
LOAD_TINY = b"\x12\x04tiny"  # a RepositoryModelLoadRequest of that name

Metadata = tuple[tuple[str, str], ...]


def bearer(token: str, scheme: str = "Bearer") -> Metadata:
    return (("authorization", f"{scheme} {token}"),)


def make_certificates(folder: Path) -> Path:
    """ca.pem, server.pem, client.pem, and their keys."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    text = (ROOT / "docs" / "security.md").read_text("utf-8")
    commands = re.search(r"```sh\n(new=.*?)```", text, re.DOTALL)
    assert commands
    subprocess.run(["sh", "-e", "-c", commands[1]], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@contextmanager
def channel(server: Running, ca: Path, client: Path | None = None, name: str = "localhost") -> Iterator[grpc.Channel]:
    """A connection of its own. `client`: the folder of a client's certificate."""
    key, chain = ((client / f"client.{end}").read_bytes() if client else None for end in ("key", "pem"))
    credentials = grpc.ssl_channel_credentials((ca / "ca.pem").read_bytes(), key, chain)
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
    port = server.address.rsplit(":", 1)[1]
    with grpc.secure_channel(f"{name}:{port}", credentials, options) as opened:
        yield opened


def code_of(call: Callable[[], Any]) -> StatusCode:
    try:
        call()
    except grpc.RpcError as error:
        return error.code()
    return StatusCode.OK


def live(opened: grpc.Channel, metadata: Metadata = ()) -> StatusCode:
    stub = GRPCInferenceServiceStub(opened)
    return code_of(lambda: stub.ServerLive(pb.ServerLiveRequest(), timeout=20, metadata=metadata))


def is_ready(stub: GRPCInferenceServiceStub) -> bool:
    try:
        return bool(stub.ServerReady(pb.ServerReadyRequest(), timeout=5).ready)
    except grpc.RpcError:
        return False


@contextmanager
def serving(bundle: Path, log: Path, certificates: Path, *flags: str, client: Path | None = None) -> Iterator[Running]:
    tls = ["--tls-certificate", str(certificates / "server.pem"), "--tls-key", str(certificates / "server.key")]
    server = start_server(bundle, log, "--linger-seconds", "0", *tls, *flags)
    try:
        with channel(server, certificates, client) as opened:
            stub = GRPCInferenceServiceStub(opened)
            until = time.monotonic() + 120
            while not is_ready(stub):
                assert server.process.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.05)
        yield server
        assert stop(server) == 0, log.read_text()
    finally:
        server.process.kill()
        server.process.wait()


class Guarded(NamedTuple):
    server: Running
    stub: GRPCInferenceServiceStub
    channel: grpc.Channel
    tokens: Path


@pytest.fixture(scope="module")
def errors_to_status(
    tiny_bundle: Path, certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guarded]:
    """A server with TLS, tokens and small limits, and a connection to it."""
    folder = tmp_path_factory.mktemp("errors_to_status")
    tokens, repository_tokens = folder / "tokens", folder / "repository_tokens"
    tokens.write_text(f"# ours\n{TOKEN}\n")
    repository_tokens.write_text(REPOSITORY_TOKEN)
    flags = [
        *("--tokens", str(tokens), "--repository-tokens", str(repository_tokens), "--repository-control"),
        *("--max-batch", "8", "--max-text-characters", "200", "--max-message-mib", "1"),
    ]
    log = folder / "log"
    with serving(tiny_bundle, log, certificates, *flags) as server, channel(server, certificates) as opened:
        yield Guarded(server, GRPCInferenceServiceStub(opened), opened, tokens)
    said = log.read_text()
    assert "Traceback" not in said
    for token in (TOKEN, REPOSITORY_TOKEN):
        assert token not in said
        assert token[:8] not in said


def infer(errors_to_status: Guarded, metadata: Metadata) -> tuple[StatusCode, str]:
    try:
        errors_to_status.stub.ModelInfer(ids_request([[2, 5, 3]]), timeout=20, metadata=metadata)
    except grpc.RpcError as error:
        return error.code(), error.details() or ""
    return StatusCode.OK, ""


@pytest.mark.parametrize("metadata", [bearer(TOKEN), bearer(TOKEN, "bearer"), bearer(REPOSITORY_TOKEN)])
def test_a_token_lets_in(errors_to_status: Guarded, metadata: Metadata) -> None:
    assert infer(errors_to_status, metadata) == (StatusCode.OK, "")


@pytest.mark.parametrize("metadata", [(), bearer(TOKEN, "Basic"), (("authorization", TOKEN),), (("token", TOKEN),)])
def test_without_a_token_a_caller_is_told_how_to_send_one(errors_to_status: Guarded, metadata: Metadata) -> None:
    message = "no token came; send the metadata `authorization: Bearer TOKEN` with each call"
    assert infer(errors_to_status, metadata) == (StatusCode.UNAUTHENTICATED, message)


@pytest.mark.parametrize("token", [TOKEN[:-1], TOKEN + "0", TOKEN.upper(), "", f"{TOKEN} {TOKEN}", "x" * 4000])
def test_an_unknown_token_is_refused_and_not_repeated(errors_to_status: Guarded, token: str) -> None:
    code, message = infer(errors_to_status, bearer(token))
    assert code is StatusCode.UNAUTHENTICATED
    assert message == "the token is not one of this server's; whoever runs the server gives them out"


def test_every_method_but_health_asks_for_a_token(errors_to_status: Guarded) -> None:
    for service in pb.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            call: Any = errors_to_status.channel.stream_stream(f"/{service.full_name}/{method.name}")
            expected = StatusCode.OK if method.name in ("ServerLive", "ServerReady") else StatusCode.UNAUTHENTICATED
            assert code_of(lambda: list(call(iter([b""]), timeout=20))) is expected, method.name  # noqa: B023
    health: Any = health_pb2_grpc.HealthStub(errors_to_status.channel)
    assert health.Check(health_pb2.HealthCheckRequest(), timeout=20).status == 1
    assert next(health.Watch(health_pb2.HealthCheckRequest(), timeout=20)).status == 1


def test_reflection_asks_for_a_token(errors_to_status: Guarded) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(errors_to_status.channel)

    def services(metadata: Metadata) -> Any:
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        return list(stub.ServerReflectionInfo(iter([request]), timeout=20, metadata=metadata))

    assert code_of(lambda: services(())) is StatusCode.UNAUTHENTICATED
    assert services(bearer(TOKEN))[0].list_services_response.service


def test_a_stream_needs_a_token(errors_to_status: Guarded) -> None:
    def answers(metadata: Metadata) -> list[pb.ModelStreamInferResponse]:
        requests = iter([ids_request([[2, 5, 3]])] * 3)
        return list(errors_to_status.stub.ModelStreamInfer(requests, timeout=20, metadata=metadata))

    assert code_of(lambda: answers(())) is StatusCode.UNAUTHENTICATED
    assert [answer.error_message for answer in answers(bearer(TOKEN))] == ["", "", ""]


def test_loading_needs_a_token_of_its_own(errors_to_status: Guarded) -> None:
    load: Any = errors_to_status.channel.unary_unary(LOAD)

    def code(metadata: Metadata) -> StatusCode:
        return code_of(lambda: load(LOAD_TINY, timeout=60, metadata=metadata))

    assert code(()) is StatusCode.UNAUTHENTICATED
    assert code(bearer("x" * 32)) is StatusCode.UNAUTHENTICATED
    with pytest.raises(grpc.RpcError) as refused:
        load(LOAD_TINY, timeout=20, metadata=bearer(TOKEN))
    assert refused.value.code() is StatusCode.PERMISSION_DENIED
    assert "may not load or unload models" in (refused.value.details() or "")
    assert code(bearer(REPOSITORY_TOKEN)) is StatusCode.OK


def test_a_new_token_takes_over_while_others_call(errors_to_status: Guarded) -> None:
    new = "5feceb66ffc86f38d952786c6d696c79"
    fresh = errors_to_status.tokens.with_name("fresh")

    def put(text: str) -> None:
        fresh.write_text(text)
        fresh.rename(errors_to_status.tokens)

    put(new)
    try:
        until = time.monotonic() + 30
        while infer(errors_to_status, bearer(new))[0] is not StatusCode.OK:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert infer(errors_to_status, bearer(TOKEN))[0] is StatusCode.UNAUTHENTICATED
    finally:
        put(TOKEN)
    while infer(errors_to_status, bearer(TOKEN))[0] is not StatusCode.OK:
        time.sleep(0.05)


@pytest.fixture
def stub(errors_to_status: Guarded) -> Any:
    """Calls with a token."""

    class Stub:
        def ModelInfer(self, request: pb.ModelInferRequest, timeout: float, **more: Any) -> Any:
            return errors_to_status.stub.ModelInfer(request, timeout=timeout, metadata=bearer(TOKEN), **more)

    return Stub()


def test_a_batch_that_is_too_large_is_refused(stub: Any) -> None:
    assert len(stub.ModelInfer(ids_request([[2, 3]] * 8), timeout=20).raw_output_contents) == 2
    message = "the request has 9 rows, at most 8 are taken (--max-batch); send several requests"
    assert refusal(stub, ids_request([[2, 3]] * 9)) == (StatusCode.INVALID_ARGUMENT, message)
    code, message = refusal(stub, text_request(*["a"] * 9))
    assert code is StatusCode.INVALID_ARGUMENT
    assert "at most 8 rows (--max-batch)" in message


def test_a_text_that_is_too_long_is_refused_before_it_is_cut(stub: Any) -> None:
    def request(text: str) -> pb.ModelInferRequest:
        request = text_request("a", text)
        request.parameters["truncate"].bool_param = True
        return request

    assert stub.ModelInfer(request("é" * 200), timeout=20)
    code, message = refusal(stub, request("é" * 201))
    assert code is StatusCode.INVALID_ARGUMENT
    assert "input text[1] has 201 characters, at most 200 are taken (--max-text-characters)" in message


def test_a_message_that_is_too_large_is_refused_however_small_it_was_packed(
    errors_to_status: Guarded, stub: Any
) -> None:
    request = ids_request([[2, 3]])
    request.id = "0" * 2**27
    process = psutil.Process(errors_to_status.server.process.pid)
    before = process.memory_info().rss
    with pytest.raises(grpc.RpcError) as refused:
        stub.ModelInfer(request, timeout=60, compression=grpc.Compression.Gzip)
    assert refused.value.code() is StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in (refused.value.details() or "")
    assert process.memory_info().rss - before < 2**26
    assert stub.ModelInfer(ids_request([[2, 3]]), timeout=20, compression=grpc.Compression.Gzip)


def test_plain_text_and_other_authorities_get_no_connection(errors_to_status: Guarded, tmp_path: Path) -> None:
    with grpc.insecure_channel(errors_to_status.server.address) as opened:
        assert live(opened) is StatusCode.UNAVAILABLE
    with channel(errors_to_status.server, make_certificates(tmp_path)) as opened:
        assert live(opened) is StatusCode.UNAVAILABLE


@pytest.fixture(scope="module")
def mutual(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Path]]:
    """A server that knows its callers by their certificates, and the folder where they lie."""
    folder = make_certificates(tmp_path_factory.mktemp("mutual"))
    flags = ["--tls-client-ca", str(folder / "ca.pem")]
    with serving(tiny_bundle, folder / "log", folder, *flags, client=folder) as server:
        yield server, folder


def test_mutual_tls_lets_in_only_clients_of_its_authority(mutual: tuple[Running, Path], certificates: Path) -> None:
    server, folder = mutual
    assert "gRPC, mutual TLS" in server.log.read_text()
    for client, expected in (
        (folder, StatusCode.OK),
        (None, StatusCode.UNAVAILABLE),
        (certificates, StatusCode.UNAVAILABLE),
    ):
        with channel(server, folder, client) as opened:
            assert live(opened) is expected, client


def test_new_certificates_take_over_once_they_fit_and_open_connections_go_on(
    mutual: tuple[Running, Path], tmp_path: Path
) -> None:
    server, folder = mutual
    new = make_certificates(tmp_path)
    old = shutil.copytree(folder, tmp_path / "old")

    def code(of: Path) -> StatusCode:
        with channel(server, of, of) as opened:
            return live(opened)

    with channel(server, old, old) as opened:
        assert live(opened) is StatusCode.OK
        shutil.copy(new / "server.key", folder)
        (folder / "server.pem").write_bytes((new / "server.pem").read_bytes()[:200])
        time.sleep(1.1)
        assert code(old) is StatusCode.OK  # half-written
        shutil.copy(new / "server.pem", folder)
        (folder / "ca.pem").write_bytes((new / "ca.pem").read_bytes())
        until = time.monotonic() + 30
        while code(new) is not StatusCode.OK:
            assert time.monotonic() < until, server.log.read_text()
            time.sleep(0.1)
        assert code(old) is StatusCode.UNAVAILABLE
        assert live(opened) is StatusCode.OK
    said = server.log.read_text()
    assert said.count("what was read before stays in use") == 1
    assert "read again: " in said


def test_a_server_that_cannot_read_its_key_does_not_start(
    tiny_bundle: Path, certificates: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    server = start_server(
        tiny_bundle, log, "--tls-certificate", str(certificates / "server.pem"), "--tls-key", str(tmp_path / "no.key")
    )
    assert server.process.wait(60) == 2
    said = " ".join(log.read_text().split())
    assert f"error: --tls-key {tmp_path / 'no.key'} cannot be read: No such file or directory" in said
    assert "Traceback" not in said


def test_commands_reach_a_server_that_asks_for_a_token(
    errors_to_status: Guarded, certificates: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(TOKEN)
    ca = ("--tls-ca", certificates / "ca.pem")
    address = errors_to_status.server.address.replace("127.0.0.1", "localhost")
    done = heed("call", address, "tiny", "-t", "the fox", *ca, "--token", tmp_path / "token")
    assert done.code == 0, done.err
    assert "sentence_embedding" in done.shown
    done = heed("verify", tiny_bundle, "--endpoint", address, "--timeout", 30, *ca, "--token", tmp_path / "token")
    assert done.code == 0, done.err
    done = heed("call", address, "tiny", "-t", "the fox", *ca)
    assert done.code == 2
    assert "UNAUTHENTICATED" in done.said


def test_commands_say_what_is_wrong_with_their_files(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    call = ("call", "192.0.2.1:8001", "tiny", "-t", "the fox")
    done = heed(*call, "--token", tmp_path / "token")
    assert done.code == 2
    assert "plain text" in done.said
    assert TOKEN not in done.said
    done = heed(*call, "--tls-ca", tmp_path / "none.pem")
    assert done.code == 2
    assert "none.pem" in done.said
    done = heed(*call, "--tls-key", tmp_path / "token")
    assert done.code == 2
    assert "one of them is missing" in done.said
