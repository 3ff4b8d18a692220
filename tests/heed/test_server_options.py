"""How commands reach a server: what is wrong with an address, a file or a token, and what to do about it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from heed.cli.server_options import explain_error
from tests.client.test_security import Authority, secured
from tests.heed.support import heed
from tests.support import Running, free_port

SECRET = "s3cret-token"


@contextmanager
def listening(credentials: grpc.ServerCredentials | None = None) -> Iterator[str]:
    """The address of a server without services."""
    server = grpc.server(ThreadPoolExecutor(1))
    address = "127.0.0.1:0"
    port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def said_to_a_call(address: str, *options: object) -> str:
    done = heed("call", address, "tiny", "-t", "a", "--timeout", "2", *options)
    assert (done.code, done.out) == (2, "")
    return done.said


@pytest.mark.parametrize(
    "address",
    ["localhost", "localhost:", ":8001", "localhost:http", "localhost:65536", "http://localhost:8001", "::1:8001"],
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    assert said_to_a_call(address) == f"error: expected HOST:PORT, localhost:8001 say, got {address}"


@pytest.mark.parametrize("form", ["{}", "dns:///{}", "ipv4:{}"])
def test_every_address_that_grpc_takes_is_one(tiny_server: Running, form: str) -> None:
    assert heed("call", form.format(tiny_server.address), "tiny", "-t", "a").code == 0


def test_an_address_of_version_6_is_one() -> None:
    said = said_to_a_call(f"[::1]:{free_port()}")
    assert "Connection refused; is a server running there?" in said
    assert said.endswith(
        "if that was localhost: this is what its last address said, call 127.0.0.1 to hear the first one"
    )


def test_a_proxy_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("http_proxy", f"http://me:{SECRET}@127.0.0.1:{free_port()}")
    said = said_to_a_call("10.255.255.1:8001")
    assert said.endswith(
        "http_proxy is set: gRPC calls other machines through that proxy; put the server's host into no_proxy"
    )
    assert SECRET not in said
    assert "http_proxy" not in explain_error("NOT_FOUND: no such model")


@pytest.mark.parametrize("token", [SECRET, SECRET * 100, "."])
def test_a_token_in_the_place_of_its_file_is_not_repeated(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEED_TOKEN", token)
    expected = "error: --token (HEED_TOKEN) names a file that holds the token; it names none"
    assert said_to_a_call("localhost:8001") == expected


@pytest.mark.parametrize("option", ["--tls-ca", "--tls-certificate", "--tls-key"])
def test_a_file_that_is_not_there_is_told_with_its_option(option: str, tmp_path: Path) -> None:
    said = said_to_a_call("localhost:8001", option, tmp_path / "none.pem")
    assert said == f"error: {option} {tmp_path}/none.pem: there is no such file"


def test_a_token_that_would_travel_in_plain_text_is_told_with_the_options(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(SECRET)
    said = said_to_a_call("192.0.2.1:8001", "--token", tmp_path / "token")
    assert said.endswith("in plain text; give --tls or --tls-ca")


def test_a_server_that_is_not_there_is_told_with_how_to_start_one(tiny_bundle: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    hint = "Connection refused; is a server running there? heed serve BUNDLE starts one"
    assert said_to_a_call(address).endswith(hint)
    for command in (["bench", address, "tiny"], ["attend", address, "tiny", "a"]):
        assert heed(*command, "--timeout", "2").said.endswith(hint)
    done = heed("verify", tiny_bundle, "--endpoint", address, "--timeout", "2")
    assert done.said.endswith(hint)


def test_a_server_that_speaks_otherwise_is_told_with_the_options(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    trusted = ("--tls-ca", authority.file)
    with listening() as plain:
        assert said_to_a_call(plain, "--tls").endswith("it speaks plain text; leave --tls and --tls-ca out")
    with listening(secured(authority, "127.0.0.1")) as address:
        assert "does it speak TLS (--tls, --tls-ca)" in said_to_a_call(address)
        assert said_to_a_call(address, "--tls").endswith("--tls-ca names who signed its certificate")
    with listening(secured(authority, "elsewhere")) as address:
        assert "its certificate is for another host" in said_to_a_call(address, *trusted)
    with listening(secured(authority, "127.0.0.1", mutual=True)) as address:
        assert "or ask for a certificate (--tls-certificate" in said_to_a_call(address, *trusted)


def test_what_needs_no_explanation_stays() -> None:
    assert explain_error("NOT_FOUND: model 'm' is not served here") == "NOT_FOUND: model 'm' is not served here"
