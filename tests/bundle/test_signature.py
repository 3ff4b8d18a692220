"""What is signed and what is not, and which file is a key."""

import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

import heed.bundle.signature
from heed.bundle import BundleError
from heed.bundle.digests import DIGESTS, SIGNATURE, check_digests, write_digests
from heed.bundle.signature import check_signature, read_private_key, read_public_key, sign
from tests.support import Keys, make_keys

needs_openssl = pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return make_keys(tmp_path)


@pytest.fixture
def folder(tmp_path: Path, keys: Keys) -> Path:
    """A signed bundle of one file."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "a.bin").write_bytes(bytes(range(256)))
    write_digests(folder)
    sign(folder, read_private_key(keys.private))
    return folder


def refused(folder: Path, key: Path) -> str:
    with pytest.raises(BundleError) as caught:
        check_signature(folder, key)
    return str(caught.value)


def test_a_signed_bundle_is_accepted(folder: Path, keys: Keys) -> None:
    check_signature(folder, keys.public)
    check_digests(folder)  # for those who ask for no signature


def test_another_key_did_not_sign_it(folder: Path, tmp_path: Path) -> None:
    other = make_keys(tmp_path, "other").public
    assert f"by the key of {other}" in refused(folder, other)


def test_it_is_told_when_there_is_no_signature(folder: Path, keys: Keys) -> None:
    (folder / SIGNATURE).unlink()
    assert refused(folder, keys.public) == f"{folder} is not signed: it has no SHA256SUMS.sig"
    (folder / DIGESTS).unlink()
    (folder / SIGNATURE).touch()
    assert refused(folder, keys.public).startswith(f"{folder} has no SHA256SUMS")


@pytest.mark.parametrize(
    ("name", "said"), [(SIGNATURE, "cannot be read: Is a directory"), (DIGESTS, "is damaged: it is a folder")]
)
def test_a_folder_in_its_place_is_told(folder: Path, keys: Keys, name: str, said: str) -> None:
    (folder / name).unlink()
    (folder / name).mkdir()
    assert refused(folder, keys.public) == f"{folder / name} {said}"


def test_every_bit_of_the_signature_and_of_the_digests_counts(folder: Path, keys: Keys) -> None:
    for name in (SIGNATURE, DIGESTS):
        whole = (folder / name).read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 1):
            altered = bytearray(whole)
            altered[place] ^= 1
            (folder / name).write_bytes(altered)
            assert "altered after it was signed" in refused(folder, keys.public)
        for other in (b"", whole[:-1], whole + b"\0"):
            (folder / name).write_bytes(other)
            assert "altered after it was signed" in refused(folder, keys.public)
        (folder / name).write_bytes(whole)
    check_signature(folder, keys.public)


def test_files_are_what_the_signed_digests_list(folder: Path, keys: Keys) -> None:
    (folder / "b.data").touch()
    assert "b.data is not listed" in refused(folder, keys.public)
    write_digests(folder)
    assert "altered after it was signed" in refused(folder, keys.public)


def test_files_are_compared_with_the_very_digests_that_are_signed(
    folder: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever can write the folder may write the digests anew just after the signature was found right."""

    def altered_first(folder: Path, *rest: bytes) -> None:
        (folder / "a.bin").write_bytes(b"altered")
        write_digests(folder)
        check_digests(folder, *rest)

    monkeypatch.setattr(heed.bundle.signature, "check_digests", altered_first)
    assert "a.bin is altered" in refused(folder, keys.public)


def test_links_and_ends_of_lines_change_no_signature(folder: Path, keys: Keys, tmp_path: Path) -> None:
    (folder / SIGNATURE).rename(tmp_path / "elsewhere")
    (folder / SIGNATURE).symlink_to(tmp_path / "elsewhere")
    (folder / DIGESTS).write_bytes((folder / DIGESTS).read_bytes().replace(b"\n", b"\r\n"))
    check_signature(folder, keys.public)


@needs_openssl
def test_openssl_makes_keys_and_agrees(folder: Path, tmp_path: Path) -> None:
    def openssl(*arguments: object) -> int:
        command = ["openssl", *map(str, arguments)]
        return subprocess.run(command, cwd=folder, check=False, capture_output=True).returncode

    private, public = tmp_path / "own.pem", tmp_path / "own.pub.pem"
    assert openssl("genpkey", "-algorithm", "ed25519", "-out", private) == 0
    assert openssl("pkey", "-in", private, "-pubout", "-out", public) == 0
    sign(folder, read_private_key(private))
    check_signature(folder, public)
    verify = ["pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin", "-in", DIGESTS, "-sigfile", SIGNATURE]
    assert openssl(*verify) == 0
    (folder / DIGESTS).write_text("")
    assert openssl(*verify) == 1


@needs_openssl
@pytest.mark.parametrize("algorithm", [["rsa"], ["EC", "-pkeyopt", "ec_paramgen_curve:P-256"]])
def test_a_key_of_another_kind_is_named(tmp_path: Path, algorithm: list[str]) -> None:
    path = tmp_path / "key.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", *algorithm, "-out", path], check=True, capture_output=True)
    kind = "RSA" if algorithm == ["rsa"] else "EC"
    with pytest.raises(BundleError, match=f"key.pem is no Ed25519 private key but an {kind} private key"):
        read_private_key(path)
    with pytest.raises(BundleError, match=f"key.pem is no Ed25519 public key but an {kind} private key"):
        read_public_key(path)


@pytest.mark.parametrize("kind", [Ed448PrivateKey, X25519PrivateKey])
def test_a_relative_of_ed25519_is_another_kind(tmp_path: Path, kind: type) -> None:
    keys = make_keys(tmp_path, "relative", kind)
    with pytest.raises(BundleError, match="is no Ed25519 private key but an"):
        read_private_key(keys.private)
    with pytest.raises(BundleError, match="is no Ed25519 public key but an"):
        read_public_key(keys.public)


def test_the_two_sides_of_a_key_are_told_apart(keys: Keys) -> None:
    with pytest.raises(BundleError, match="is no Ed25519 private key but an Ed25519 public key"):
        read_private_key(keys.public)
    with pytest.raises(BundleError, match=r"is the private key, which belongs to whoever signs; .* -pubout"):
        read_public_key(keys.private)


@needs_openssl
def test_a_key_with_a_password_is_told(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    command = ["openssl", "genpkey", "-algorithm", "ed25519", "-aes256", "-pass", "pass:secret", "-out", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    with pytest.raises(BundleError, match="is encrypted; decrypt it: openssl pkey"):
        read_private_key(path)


@pytest.mark.parametrize("content", [b"", b"\x00\xff", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"])
def test_what_is_no_key_at_all_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key.pem").write_bytes(content)
    for read in (read_private_key, read_public_key):
        with pytest.raises(BundleError, match=r"key.pem is no key in PEM; `openssl genpkey"):
            read(tmp_path / "key.pem")


def test_a_key_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"nothing\.pem cannot be read: No such file"):
        read_public_key(tmp_path / "nothing.pem")
    with pytest.raises(BundleError, match="cannot be read: Is a directory"):
        read_public_key(tmp_path)
