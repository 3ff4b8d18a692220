"""Certificates and tokens as files: what is refused at a start, and what happens when they change."""

import logging
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)

from heed.server.errors import StartError
from heed.server.settings import Settings
from heed.server.transport.bearer_tokens import TOKENS, Authorization, authorization, read_tokens
from heed.server.transport.certificates import server_credentials
from heed.server.transport.grpc_server import warn_of_what_is_open
from heed.server.transport.reloaded_files import Reloaded

TOKEN = "9f86d081884c7d659a2feaa0c55ad015"
OTHER = "a3bf4f1b2b0b822cd15d6c15b0f00a08"


def pem(key: Any, password: KeySerializationEncryption | None = None) -> bytes:
    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, password or NoEncryption()))


def certificate(key: Any, days: float = 30) -> x509.Certificate:
    """Signed by itself, and good until then."""
    name = x509.Name.from_rfc4514_string("CN=localhost")
    end = datetime.now(UTC) + timedelta(days=days)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 7, end - timedelta(days=60), end)
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, digest)


class Pair:
    """A certificate and its key, in files."""

    def __init__(self, folder: Path) -> None:
        self.certificate, self.key = folder / "server.pem", folder / "server.key"
        self.renew()

    def renew(self, key: Any = None, days: float = 30) -> None:
        key = key or ec.generate_private_key(ec.SECP256R1())
        self.key.write_bytes(pem(key))
        self.certificate.write_bytes(certificate(key, days).public_bytes(Encoding.PEM))

    def settings(self, **values: Any) -> Settings:
        return Settings(bundle=Path("bundle"), tls_certificate=self.certificate, tls_key=self.key, **values)


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


def no_certificate(pair: Pair) -> str:
    pair.certificate.unlink()
    return f"--tls-certificate {pair.certificate} cannot be read: No such file"


def a_folder(pair: Pair) -> str:
    pair.key.unlink()
    pair.key.mkdir()
    return f"--tls-key {pair.key} cannot be read: Is a directory"


def not_pem(pair: Pair) -> str:
    pair.certificate.write_bytes(
        x509.load_pem_x509_certificate(pair.certificate.read_bytes()).public_bytes(Encoding.DER)
    )
    return f"--tls-certificate {pair.certificate} has no certificate in PEM"


def exchanged(pair: Pair) -> str:
    pair.certificate.write_bytes(pair.key.read_bytes())
    return f"--tls-certificate {pair.certificate} has no certificate in PEM"


def half_a_key(pair: Pair) -> str:
    pair.key.write_bytes(pair.key.read_bytes()[:100])
    return f"--tls-key {pair.key} has no private key in PEM"


def encrypted(pair: Pair) -> str:
    pair.key.write_bytes(pem(ec.generate_private_key(ec.SECP256R1()), BestAvailableEncryption(b"secret")))
    return f"--tls-key {pair.key} is encrypted; decrypt it: openssl pkey"


def another_key(pair: Pair) -> str:
    pair.key.write_bytes(pem(ec.generate_private_key(ec.SECP256R1())))
    return f"--tls-key {pair.key} does not belong to the certificate of --tls-certificate {pair.certificate}"


def authority_first(pair: Pair) -> str:
    other = certificate(ec.generate_private_key(ec.SECP256R1())).public_bytes(Encoding.PEM)
    pair.certificate.write_bytes(other + pair.certificate.read_bytes())
    return "the server's own certificate must stand before the others"


def a_kind_that_clients_refuse(pair: Pair) -> str:
    pair.renew(ed25519.Ed25519PrivateKey.generate())
    return "gRPC's clients do not accept; take RSA, or an elliptic curve: P-256 or P-384"


def a_curve_that_clients_refuse(pair: Pair) -> str:
    pair.renew(ec.generate_private_key(ec.SECP521R1()))
    return "gRPC's clients do not accept"


@pytest.mark.parametrize(
    "spoil",
    [
        no_certificate, a_folder, not_pem, exchanged, half_a_key, encrypted, another_key, authority_first,
        a_kind_that_clients_refuse, a_curve_that_clients_refuse,
    ],
)  # fmt: skip
def test_files_that_are_no_certificate_and_key_are_refused_at_the_start(
    pair: Pair, spoil: Callable[[Pair], str]
) -> None:
    assert server_credentials(pair.settings())
    message = spoil(pair)
    with pytest.raises(StartError) as refused:
        server_credentials(pair.settings())
    assert message in str(refused.value)


def test_a_client_authority_must_be_certificates(pair: Pair) -> None:
    assert server_credentials(pair.settings(tls_client_ca=pair.certificate))
    with pytest.raises(StartError, match=f"--tls-client-ca {pair.key} has no certificate in PEM"):
        server_credentials(pair.settings(tls_client_ca=pair.key))


@pytest.mark.parametrize("given", ["tls_certificate", "tls_key", "tls_client_ca"])
def test_half_of_what_tls_needs_is_refused(pair: Pair, given: str) -> None:
    flag = "--" + given.replace("_", "-")
    files: Any = {given: pair.certificate}
    with pytest.raises(StartError, match=f"needs both --tls-certificate and --tls-key; only {flag} came"):
        server_credentials(Settings(bundle=Path("bundle"), **files))


def test_an_expired_certificate_is_a_warning(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    server_credentials(pair.settings())
    assert not caplog.records
    pair.renew(days=-1)
    assert server_credentials(pair.settings())
    assert "has expired on" in caplog.text


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("heed.server.transport.reloaded_files.time.monotonic", clock)
    return clock


def test_files_are_read_again_when_they_have_changed_and_not_sooner(tmp_path: Path, clock: Clock) -> None:
    path, reads = tmp_path / "file", []

    def read() -> str:
        reads.append(path.read_text())
        return reads[-1]

    path.write_text("one")
    current = Reloaded(read, [path])
    path.write_text("two!")
    assert current.value == "one"  # it does not look at every call
    clock.now += 1
    assert current.value == "two!"
    for _ in range(3):
        clock.now += 1
        assert current.value == "two!"
    assert reads == ["one", "two!"]
    (tmp_path / "new").write_text("thr!")
    shutil.copystat(path, tmp_path / "new")
    (tmp_path / "new").rename(path)  # of the same size and time
    clock.now += 1
    assert current.value == "thr!"


def test_what_cannot_be_read_leaves_the_old_and_is_told_once(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "tokens"
    path.write_text(TOKEN)
    current = Reloaded(lambda: read_tokens(TOKENS, path), [path])
    for bad in ("", "short", f"{OTHER}\nwith a space in it"):
        path.write_text(bad)
        for _ in range(3):
            clock.now += 1
            assert TOKEN in current.value
            assert OTHER not in current.value
    path.unlink()
    clock.now += 1
    assert TOKEN in current.value
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 4
    path.write_text(OTHER)
    clock.now += 1
    assert TOKEN not in current.value
    assert OTHER in current.value
    assert TOKEN not in caplog.text
    assert OTHER not in caplog.text


def test_a_file_of_tokens_has_comments_and_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_bytes(f"# ours\r\n\n  {TOKEN}  \r\n#{OTHER}\n".encode())
    tokens = read_tokens(TOKENS, path)
    assert TOKEN in tokens
    for other in (OTHER, f"#{OTHER}", TOKEN[:-1], TOKEN + "a", "", "é" * 16):
        assert other not in tokens
    assert TOKEN not in repr(tokens) + str(vars(tokens))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("# nobody\n", "has no token; `openssl rand -hex 32` makes a good one"),
        (f"{TOKEN}\nsecret\n", "line 2: a token is 16 characters or more of ASCII without spaces"),
        (f"{TOKEN} {OTHER}\n", "line 1: a token is 16 characters or more"),
        (f"{TOKEN}é\n", "line 1: a token is 16 characters or more"),
    ],
)
def test_a_file_without_good_tokens_is_refused_and_not_quoted(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "tokens"
    path.write_text(content, "utf-8")
    with pytest.raises(StartError) as refused:
        read_tokens(TOKENS, path)
    assert f"--tokens {path}" in str(refused.value)
    assert message in str(refused.value)
    assert TOKEN not in str(refused.value)
    assert "secret" not in str(refused.value)


def test_control_without_anybody_who_may_is_refused(tmp_path: Path) -> None:
    def checked(**files: Any) -> Authorization | None:
        return authorization(Settings(bundle=tmp_path, repository_control=True, **files), lambda _: None)

    path = tmp_path / "tokens"
    path.write_text(TOKEN)
    with pytest.raises(StartError, match="--repository-control with --tokens needs --repository-tokens too"):
        checked(tokens=path)
    assert checked(tokens=path, repository_tokens=path)
    assert checked() is None


def test_plain_text_is_warned_of_and_tokens_in_it_loudly(
    pair: Pair, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def warnings(settings: Settings) -> str:
        caplog.clear()
        warn_of_what_is_open(settings)
        return caplog.text

    everywhere: Any = {"bundle": tmp_path, "host": "0.0.0.0"}
    assert warnings(Settings(bundle=tmp_path, tokens=tmp_path)) == ""
    assert "texts and answers travel as plain text to 0.0.0.0" in warnings(Settings(**everywhere))
    assert "TOKENS, texts and answers travel as plain text" in warnings(Settings(**everywhere, tokens=tmp_path))
    assert warnings(pair.settings(host="0.0.0.0", tokens=tmp_path)) == ""
    assert "whoever reaches 0.0.0.0 may load and unload" in warnings(
        pair.settings(host="0.0.0.0", repository_control=True)
    )
