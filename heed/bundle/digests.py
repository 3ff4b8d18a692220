"""`SHA256SUMS`: one line for every other file of a bundle, as `sha256sum -c` reads it, but for two: the bundle's
signature, and the report of its export. The report holds measurements, which differ from machine to machine; it is for
people to look at, and nothing reads it.

Digests catch corruption. An exporter's mistakes carry right digests; the contract's numbers catch those.
"""

import hashlib
import re
from pathlib import Path

from heed.bundle.errors import BundleError

DIGESTS = "SHA256SUMS"
SIGNATURE = "SHA256SUMS.sig"  # of the digests, so they cannot list it; see `signature.py`
REPORT = "report.html"  # the only file that may be altered, missing or additional
UNLISTED = (DIGESTS, SIGNATURE, REPORT)


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> list[str]:
    """A bundle is flat: a folder or a link inside it does not belong there."""
    for path in folder.iterdir():
        if not path.is_file() or path.is_symlink():
            raise BundleError(f"{path} is not a plain file")
    return sorted(path.name for path in folder.iterdir() if path.name not in UNLISTED)


def _line(digest: str, name: str) -> str:
    return f"{digest}  {name}\n"


def write_digests(folder: Path) -> None:
    lines = [_line(file_digest(folder / name), name) for name in _files(folder)]
    (folder / DIGESTS).write_text("".join(lines), "utf-8")


def bundle_digest(folder: Path) -> str:
    """The digest of the digests: it names the whole bundle."""
    return "sha256:" + file_digest(folder / DIGESTS)


def _listed(folder: Path, content: bytes | None) -> dict[str, str]:
    """The digests by file name."""
    try:
        text = ((folder / DIGESTS).read_bytes() if content is None else content).decode()
    except FileNotFoundError:
        raise BundleError(
            f"{folder} has no {DIGESTS}" if folder.is_dir() else f"{folder}: there is no such folder"
        ) from None
    except (IsADirectoryError, UnicodeDecodeError):
        raise BundleError(f"{folder / DIGESTS} is damaged") from None
    listed = {name: digest for digest, name in re.findall(r"([0-9a-f]{64})  ([^\n]+)\n", text)}
    if "".join(_line(digest, name) for name, digest in listed.items()) != text:  # nothing but such lines, none twice
        raise BundleError(f"{folder / DIGESTS} is damaged")
    return listed


def bundle_files(folder: Path) -> set[str]:
    """The names of the files that belong to a bundle: those that `SHA256SUMS` lists, and those that it cannot list.

    Raises:
        BundleError: the list is missing or damaged.
    """
    return {*_listed(folder, None), *UNLISTED}


def check_digests(folder: Path, content: bytes | None = None) -> None:
    """Raises BundleError if a file is missing, additional or altered; the message names it.

    Args:
        content: of `SHA256SUMS`, for who has read it: read again it could be another.
    """
    listed = _listed(folder, content)
    present = set(_files(folder))
    if missing := sorted(listed.keys() - present):
        raise BundleError(f"{folder / missing[0]} is missing, but {DIGESTS} lists it")
    if additional := sorted(present - listed.keys()):
        raise BundleError(f"{folder / additional[0]} is not listed in {DIGESTS}")
    for name, digest in listed.items():
        found = file_digest(folder / name)
        if found != digest:
            raise BundleError(f"{folder / name} is altered: {DIGESTS} says {digest[:12]}…, the file is {found[:12]}…")
