"""`SHA256SUMS`: one line for every other file of a bundle, as `sha256sum -c` reads it, but for two: the bundle's
signature, and the report of its export. The report holds measurements, which differ from machine to machine; it is for
people to look at, and nothing reads it.

Digests catch corruption. An exporter's mistakes carry right digests; the contract's numbers catch those.

What is listed must match, through links as well. What is not listed and could be loaded is refused. Whatever else lies
in the folder (`lost+found`, `.git`, a README) is no part of the bundle.
"""

import hashlib
import re
from pathlib import Path

from heed.bundle.errors import BundleError, explain_missing, explain_os_error
from heed.bundle.manifest import MANIFEST, TOKENIZER

DIGESTS = "SHA256SUMS"
SIGNATURE = "SHA256SUMS.sig"  # of the digests, so they cannot list it; see `signature.py`
REPORT = "report.html"  # the only file of a bundle that may be altered or missing
UNLISTED = (DIGESTS, SIGNATURE, REPORT)
TEXT_BYTES = 2**24  # no text in a bundle is larger
# What heed or onnxruntime could load. None of it has a name with a leading dot, as Kubernetes' `..data` has.
LOADED = re.compile(rf"[^.].*\.(onnx|data|npz)|{re.escape(MANIFEST)}|{re.escape(TOKENIZER)}")
Listed = dict[str, str]  # the digests by file name


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _line(digest: str, name: str) -> str:
    return f"{digest}  {name}\n"


def write_digests(folder: Path) -> None:
    """Of all files in the folder: a bundle is flat."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name not in UNLISTED)
    lines = [_line(file_digest(folder / name), name) for name in names]
    (folder / DIGESTS).write_bytes("".join(lines).encode())


def read_digests(folder: Path) -> bytes:
    """What `SHA256SUMS` holds; with the ends of lines that it was written with, if git changed them on the way.

    Raises:
        BundleError: it is missing, or cannot be read.
    """
    try:
        return (folder / DIGESTS).read_bytes().replace(b"\r\n", b"\n")
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(explain_missing(folder, DIGESTS)) from None
    except IsADirectoryError:
        raise BundleError(f"{folder / DIGESTS} is damaged: it is a folder") from None
    except OSError as error:
        raise BundleError(explain_os_error(error)) from None


def digest_of(content: bytes) -> str:
    """The digest of the digests: it names the whole bundle."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def bundle_digest(folder: Path) -> str:
    """The same, of a bundle's folder."""
    return digest_of(read_digests(folder))


def listed_files(folder: Path, content: bytes) -> Listed:
    """What `SHA256SUMS` lists.

    Raises:
        BundleError: its content is not such a list.
    """
    lines = re.findall(rb"([0-9a-f]{64})  ([^\n/]+)\n", content)
    whole = b"".join(digest + b"  " + name + b"\n" for digest, name in lines) == content
    try:
        listed = {name.decode(): digest.decode() for digest, name in lines}
    except UnicodeDecodeError:
        listed = {}
    if not whole or len(listed) != len(lines) or listed.keys() & set(UNLISTED):
        raise BundleError(f"{folder / DIGESTS} is damaged: its lines must be DIGEST  FILE, one for each file")
    return listed


def bundle_files(folder: Path) -> set[str]:
    """The names of the files that belong to a bundle: those that `SHA256SUMS` lists, and those that it cannot list.

    Raises:
        BundleError: the list is missing or damaged.
    """
    return {*listed_files(folder, read_digests(folder)), *UNLISTED}


def check_names(folder: Path, listed: Listed) -> list[str]:
    """Returns the names of what lies in the folder and is no part of the bundle.

    Raises:
        BundleError: a file is missing, or one that could be loaded is not listed; the message names it.
    """
    try:
        present = {path.name for path in folder.iterdir()} - set(UNLISTED)
        for name in sorted(listed):
            _check_file(folder / name)
    except OSError as error:
        raise BundleError(explain_os_error(error)) from None
    others = sorted(present - listed.keys())
    if loaded := [name for name in others if LOADED.fullmatch(name)]:
        raise BundleError(f"{folder / loaded[0]} is not listed in {DIGESTS}, and could be loaded; remove it")
    return others


def _check_file(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise BundleError(
            f"{path} is a link to {path.readlink()}, where nothing is: copy bundles with what links lead to (cp -L)"
        )
    if not path.exists():
        raise BundleError(f"{path} is missing, but {DIGESTS} lists it")
    if not path.is_file():
        raise BundleError(f"{path} is not a file, but {DIGESTS} lists it")
    path.open("rb").close()  # readable


def check_digest(path: Path, expected: str, found: str) -> None:
    """Raises BundleError if a file has another digest than its bundle lists."""
    if found == expected:
        return
    content = path.read_bytes() if path.stat().st_size <= TEXT_BYTES else b""
    if b"\r\n" in content and hashlib.sha256(content.replace(b"\r\n", b"\n")).hexdigest() == expected:
        raise BundleError(
            f"{path} is altered: something, git perhaps, changed its ends of lines; write `* -text` into "
            ".gitattributes beside it and check it out again, or copy the bundle without git"
        )
    raise BundleError(f"{path} is altered: {DIGESTS} says {expected[:12]}…, the file is {found[:12]}…")


def check_digests(folder: Path, content: bytes | None = None) -> list[str]:
    """Returns the names of what lies in the folder and is no part of the bundle.

    Args:
        content: of `SHA256SUMS`, for who has read it: read again it could be another.

    Raises:
        BundleError: a file is missing, additional or altered; the message names it.
    """
    listed = listed_files(folder, read_digests(folder) if content is None else content)
    others = check_names(folder, listed)
    for name, digest in listed.items():
        check_file(folder / name, digest)
    return others


def check_file(path: Path, digest: str) -> None:
    """Raises BundleError if a file has not this digest, or cannot be read."""
    try:
        check_digest(path, digest, file_digest(path))
    except OSError as error:
        raise BundleError(explain_os_error(error)) from None
