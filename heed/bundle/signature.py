"""`SHA256SUMS.sig`: who made a bundle. An Ed25519 signature of `SHA256SUMS`, which covers every other file.

64 bytes, as RFC 8032 has them: `openssl pkeyutl -verify -rawin` reads them too. Digests catch corruption; a signature
catches who can write the folder, digests included, and has not the key.
"""

from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from heed.bundle.digests import DIGESTS, SIGNATURE, check_digests, read_digests
from heed.bundle.errors import BundleError, explain_os_error


def _kind(key: object) -> str:
    """What a key is, for a message: "RSA public key" say."""
    name = type(key).__name__.removeprefix("_")
    side = "public" if "Public" in name else "private"
    return f"{name.removesuffix('Key').removesuffix('Public').removesuffix('Private')} {side} key"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"key {path} cannot be read: {error.strerror}") from None


def _parse(path: Path) -> Any:
    """The private or the public key in a PEM file, of whatever kind."""
    content = _read(path)
    try:
        return load_pem_private_key(content, password=None)
    except TypeError:
        raise BundleError(f"key {path} is encrypted; decrypt it: openssl pkey -in {path} -out PLAIN") from None
    except UnsupportedAlgorithm:
        raise BundleError(f"key {path} is of a kind that is not supported; it must be Ed25519") from None
    except ValueError:
        pass  # no private key, perhaps a public one
    try:
        return load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm):
        raise BundleError(f"key {path} is no key in PEM; `openssl genpkey -algorithm ed25519` makes one") from None


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """Raises BundleError if the file is not an Ed25519 private key in PEM, without a password."""
    key = _parse(path)
    if not isinstance(key, Ed25519PrivateKey):
        raise BundleError(f"key {path} is no Ed25519 private key but an {_kind(key)}")
    return key


def read_public_key(path: Path) -> Ed25519PublicKey:
    """Raises BundleError if the file is not an Ed25519 public key in PEM."""
    key = _parse(path)
    if isinstance(key, Ed25519PrivateKey):
        raise BundleError(
            f"key {path} is the private key, which belongs to whoever signs; "
            f"give the public one: openssl pkey -in {path} -pubout"
        )
    if not isinstance(key, Ed25519PublicKey):
        raise BundleError(f"key {path} is no Ed25519 public key but an {_kind(key)}")
    return key


def sign(folder: Path, key: Ed25519PrivateKey) -> None:
    """Signs a bundle whose digests are written."""
    (folder / SIGNATURE).write_bytes(key.sign((folder / DIGESTS).read_bytes()))


def check_signature(folder: Path, public_key: Path) -> None:
    """Raises BundleError if a bundle is not signed by this key, is not what was signed, or if the key is none.

    Digests are checked too: a signature says nothing of files that are not what `SHA256SUMS` lists.
    """
    check_digests(folder, signed_digests(folder, public_key))


def signed_digests(folder: Path, public_key: Path) -> bytes:
    """What `SHA256SUMS` holds (see `read_digests`), if it is signed by this key.

    Raises:
        BundleError: it is not, or the key is none.
    """
    key = read_public_key(public_key)
    signed = read_digests(folder)
    try:
        signature = (folder / SIGNATURE).read_bytes()
    except FileNotFoundError:
        raise BundleError(f"{folder} is not signed: it has no {SIGNATURE}") from None
    except OSError as error:  # a folder of that name, or not for us to read
        raise BundleError(explain_os_error(error)) from None
    try:
        key.verify(signature, signed)
    except InvalidSignature:
        raise BundleError(
            f"{folder}: {SIGNATURE} is not a signature of this {DIGESTS} by the key of {public_key}; "
            "the bundle was altered after it was signed, or another key signed it"
        ) from None
    return signed
