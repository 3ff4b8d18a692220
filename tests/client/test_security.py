"""TLS, certificates of the client's own, and tokens: against a server with certificates made here."""

import datetime
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from heed.client import AsyncClient, CallError, Client, Tls
from heed.client.connection import Token, is_loopback
from tests.client.conftest import Embed
from tests.client.echo import Echo, running

ONE = ["1"]
SECRET = "s3cret-token"


@dataclass(frozen=True)
class Signed:
    """The files of a certificate and its key."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
        constraints = x509.BasicConstraints(ca=True, path_length=None)
        certificate = self._builder(self._name, self._key).add_extension(constraints, critical=True)
        self.file = folder / "ca.pem"
        self.file.write_bytes(certificate.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))

    def sign(self, name: str) -> Signed:
        """A certificate for a host's name or address."""
        key = ec.generate_private_key(ec.SECP256R1())
        try:
            subject: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(name))
        except ValueError:
            subject = x509.DNSName(name)
        builder = self._builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key)
        certificate = builder.add_extension(x509.SubjectAlternativeName([subject]), critical=False)
        signed = Signed(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        signed.certificate.write_bytes(certificate.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))
        signed.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return signed

    def _builder(self, name: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
        return x509.CertificateBuilder(
            self._name, name, key.public_key(), x509.random_serial_number(), now - day, now + day
        )


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


def secured(authority: Authority, name: str, *, mutual: bool = False) -> grpc.ServerCredentials:
    signed = authority.sign(name)
    pair = (signed.key.read_bytes(), signed.certificate.read_bytes())
    return grpc.ssl_server_credentials([pair], authority.file.read_bytes() if mutual else None, mutual)


def test_a_server_is_known_by_who_signed_its_certificate(embed: Embed, authority: Authority, tmp_path: Path) -> None:
    with running(Echo(), credentials=secured(authority, "127.0.0.1")) as address:
        assert embed(address, ["7"], tls=Tls(ca=authority.file))[0].tolist() == [[7]]
        for other in (True, Tls(ca=Authority(tmp_path).file), Tls(ca=authority.file, name="elsewhere"), False):
            with pytest.raises(CallError, match="UNAVAILABLE"):
                embed(address, ONE, tls=other, timeout=3)


def test_a_certificate_may_be_for_another_name_than_the_address(embed: Embed, authority: Authority) -> None:
    with running(Echo(), credentials=secured(authority, "models.example")) as address:
        assert embed(address, ["7"], tls=Tls(ca=authority.file, name="models.example"))[0].tolist() == [[7]]
        with pytest.raises(CallError, match="UNAVAILABLE"):
            embed(address, ONE, tls=Tls(ca=authority.file), timeout=3)


def test_each_of_several_servers_has_a_certificate_of_its_own(embed: Embed, authority: Authority) -> None:
    echoes = [Echo(), Echo()]
    with (
        running(echoes[0], credentials=secured(authority, "127.0.0.1")) as first,
        running(echoes[1], credentials=secured(authority, "localhost")) as second,
    ):
        embed([first, second.replace("127.0.0.1", "localhost")], *[ONE] * 6, tls=Tls(ca=authority.file))
    assert [len(echo.rows) for echo in echoes] == [3, 3]


def test_a_server_that_asks_who_calls_is_told(embed: Embed, authority: Authority) -> None:
    own = authority.sign("caller")
    with running(Echo(), credentials=secured(authority, "127.0.0.1", mutual=True)) as address:
        known = Tls(ca=authority.file, certificate=own.certificate, key=own.key)
        assert embed(address, ["7"], tls=known)[0].tolist() == [[7]]
        with pytest.raises(CallError, match="UNAVAILABLE"):
            embed(address, ONE, tls=Tls(ca=authority.file), timeout=3)


def test_a_certificate_without_its_key_is_refused() -> None:
    with pytest.raises(ValueError, match="a client's certificate and its key come together"):
        Tls(certificate="own.pem")


def test_a_ca_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no-such\.pem"):
        Client("localhost:8001", "m", tls=Tls(ca=tmp_path / "no-such.pem"))


def test_a_token_goes_with_every_call(embed: Embed, authority: Authority) -> None:
    echo = Echo()
    with running(echo, credentials=secured(authority, "127.0.0.1")) as address:
        embed(address, ONE, ONE, tls=Tls(ca=authority.file), token=SECRET)
        with Client(address, "echo", tls=Tls(ca=authority.file), token=SECRET) as client:
            client.info()
    assert set(echo.tokens) == {f"Bearer {SECRET}"}


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text("first\n")
    return file


def test_a_token_file_is_read_again_when_it_changed(token_file: Path) -> None:
    echo = Echo()
    with running(echo) as address, Client(address, "echo", token=token_file) as client:
        client.embed(ONE)
        replacement = token_file.with_suffix(".new")
        replacement.write_text("second")
        replacement.rename(token_file)
        client.embed(ONE)
        token_file.unlink()
        client.embed(ONE)  # with the one there was, until another comes
    assert echo.tokens == ["Bearer first", "Bearer second", "Bearer second"]


async def test_a_token_that_changed_is_not_sent_on_a_stream_of_the_old_one(token_file: Path) -> None:
    echo = Echo()
    with running(echo) as address:
        async with AsyncClient(address, "echo", token=token_file) as client:
            await client.embed(ONE)
            await client.embed(ONE)
            replacement = token_file.with_suffix(".new")
            replacement.write_text("second")
            replacement.rename(token_file)
            await client.embed(ONE)
            await client.embed(ONE)
    assert echo.tokens == ["Bearer first", "Bearer second"]  # one for each stream


def test_a_token_file_that_did_not_change_is_not_read(token_file: Path) -> None:
    token = Token(token_file)
    times = os.stat(token_file).st_atime_ns, os.stat(token_file).st_mtime_ns
    token_file.write_text("FIRST\n")
    os.utime(token_file, ns=times)
    assert token.metadata() == (("authorization", "Bearer first"),)


@pytest.mark.parametrize(
    "address", ["models.example:8001", "10.0.0.1:8001", "dns:///models.example:8001", "[fe80::1]:80"]
)
def test_a_token_does_not_leave_the_machine_in_plain_text(address: str) -> None:
    with pytest.raises(ValueError, match=r"the token would travel to .* in plain text; give tls=True") as refused:
        Client(["localhost:8001", address], "m", token=SECRET)
    assert SECRET not in str(refused.value)
    Client(address, "m", token=SECRET, tls=True).close()
    Client(address, "m", token=SECRET, token_in_clear=True).close()
    Client(address, "m").close()


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("localhost:8001", True), ("127.0.0.1:8001", True), ("127.8.9.1:80", True), ("[::1]:8001", True),
        ("unix:/run/heed", True), ("0.0.0.0:8001", False), ("localhost.example:80", False), ("10.1.1.1:80", False),
        ("dns://10.1.1.1/localhost:80", False),
    ],
)  # fmt: skip
def test_what_stays_on_this_machine(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected


@pytest.mark.parametrize("token", ["", "two words", "line\nbreak", "naïve"])
def test_a_token_that_no_header_can_carry_is_refused_and_not_repeated(token: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(token)
    for given in (token, file):
        with pytest.raises(
            ValueError, match=r"the token.* (is empty|has characters that no header can carry)"
        ) as refused:
            Client("localhost:8001", "m", token=given)
        assert not token or token not in str(refused.value)
