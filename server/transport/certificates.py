"""TLS: the server's certificate and key, and whose clients are let in. Files that change are read again.

gRPC asks for the certificates at each new connection, from a thread of its own; connections that are open keep theirs.
"""

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import Certificate, load_pem_x509_certificates

from heed.server.errors import StartError
from heed.server.settings import Settings
from heed.server.transport.reloaded_files import Reloaded, read_file

log = logging.getLogger("heed.security")

CERTIFICATE, KEY, CLIENT_CA = "--tls-certificate", "--tls-key", "--tls-client-ca"
CURVES = ("secp256r1", "secp384r1")


def _certificates(setting: str, path: Path, content: bytes) -> list[Certificate]:
    try:
        return load_pem_x509_certificates(content)
    except ValueError:
        raise StartError(
            f"{setting} {path} has no certificate in PEM, which begins with -----BEGIN CERTIFICATE-----"
        ) from None


def _public_key(path: Path, content: bytes) -> Any:
    """That of a private key."""
    try:
        return load_pem_private_key(content, password=None).public_key()
    except TypeError:
        raise StartError(f"{KEY} {path} is encrypted; decrypt it: openssl pkey -in {path} -out PLAIN") from None
    except (ValueError, UnsupportedAlgorithm):
        raise StartError(
            f"{KEY} {path} has no private key in PEM, which begins with -----BEGIN PRIVATE KEY-----"
        ) from None


def _check_kind(path: Path, key: Any) -> None:
    if isinstance(key, RSAPublicKey) or (isinstance(key, EllipticCurvePublicKey) and key.curve.name in CURVES):
        return
    raise StartError(
        f"{KEY} {path} is of a kind that gRPC's clients do not accept; take RSA, or an elliptic curve: P-256 or P-384"
    )


def _warn_of_dates(path: Path, certificate: Certificate) -> None:
    """Only a warning: it may be this machine's clock that is wrong, and a new file mends it without a restart."""
    now = datetime.now(UTC)
    if now > certificate.not_valid_after_utc:
        log.warning("%s %s has expired on %s: clients refuse it", CERTIFICATE, path, certificate.not_valid_after_utc)
    if now < certificate.not_valid_before_utc:
        log.warning("%s %s is not valid before %s", CERTIFICATE, path, certificate.not_valid_before_utc)


def _read_pair(certificate: Path, key: Path) -> tuple[bytes, bytes]:
    """The private key and the chain of certificates, in PEM, that belong together.

    Raises:
        StartError: which file, and what is wrong with it.
    """
    chain = read_file(CERTIFICATE, certificate)
    private = read_file(KEY, key)
    own, *others = _certificates(CERTIFICATE, certificate, chain)
    public = _public_key(key, private)
    _check_kind(key, public)
    if public != own.public_key():
        if any(public == other.public_key() for other in others):
            raise StartError(f"{CERTIFICATE} {certificate}: the server's own certificate must stand before the others")
        raise StartError(f"{KEY} {key} does not belong to the certificate of {CERTIFICATE} {certificate}")
    _warn_of_dates(certificate, own)
    return private, chain


def _read_ca(path: Path | None) -> bytes | None:
    if path is None:
        return None
    content = read_file(CLIENT_CA, path)
    _certificates(CLIENT_CA, path, content)
    return content


def _configuration(certificate: Path, key: Path, client_ca: Path | None) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([_read_pair(certificate, key)], _read_ca(client_ca))


def server_credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """What to encrypt with, and whether clients must prove who they are; nothing if the settings name no certificate.

    Raises:
        StartError: a file is missing or not what it should be.
    """
    certificate, key, client_ca = settings.tls_certificate, settings.tls_key, settings.tls_client_ca
    if certificate is None or key is None:
        if given := [name for name, path in ((CERTIFICATE, certificate), (KEY, key), (CLIENT_CA, client_ca)) if path]:
            raise StartError(f"TLS needs both {CERTIFICATE} and {KEY}; only {' and '.join(given)} came")
        return None
    files = [path for path in (certificate, key, client_ca) if path]
    current = Reloaded(lambda: _configuration(certificate, key, client_ca), files)
    used = current.value

    def changed() -> Any:
        """What to use from now on; None: the same."""
        nonlocal used
        if current.value is used:
            return None
        used = current.value
        return used

    return grpc.dynamic_ssl_server_credentials(used, changed, require_client_authentication=client_ca is not None)
