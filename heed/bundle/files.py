"""The files of a bundle, as who loads it sees them."""

import hashlib
import mmap
import os
from pathlib import Path

from heed.bundle.digests import Listed, check_digest, check_file
from heed.bundle.errors import BundleError, explain_os_error

CHUNK = 2**20  # bytes that are hashed while the processor's cache still has them


class BundleFiles:
    """Each file is read once. What was compared with its digest is what is held: in this process's own memory, so that
    whoever writes into the folder then, or cuts a file short, changes no answer and ends no process.
    """

    def __init__(self, folder: Path, listed: Listed | None = None) -> None:
        """
        Args:
            listed: the digests that the files must have. None: files are mapped into memory as they are, for one who
                made the bundle, or checked it, a moment ago.
        """
        self.folder = folder
        self._listed = listed
        self._contents: dict[str, memoryview] = {}

    def read(self, name: str) -> memoryview:
        """
        Raises:
            BundleError: there is no such file, it cannot be read, is not listed, or is altered.
        """
        if name not in self._contents:
            if Path(name).name != name or (self._listed is not None and name not in self._listed):
                raise BundleError(f"{self.folder}: {name!r} is no file of the bundle")
            try:
                self._contents[name] = self._mapped(name) if self._listed is None else self._held(name)
            except FileNotFoundError:
                raise BundleError(f"{self.folder / name} is missing") from None
            except OSError as error:
                raise BundleError(explain_os_error(error)) from None
        return self._contents[name]

    def check_others(self) -> None:
        """Raises BundleError if a listed file that was not read is missing or altered."""
        for name, digest in (self._listed or {}).items():
            if name not in self._contents:
                check_file(self.folder / name, digest)

    def _mapped(self, name: str) -> memoryview:
        with (self.folder / name).open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                return memoryview(b"")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def _held(self, name: str) -> memoryview:
        assert self._listed is not None
        path = self.folder / name
        digest = hashlib.sha256()
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            held = memoryview(mmap.mmap(-1, size or 1, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))[:size]
            filled = 0
            while count := file.readinto(held[filled : filled + CHUNK]):
                digest.update(held[filled : filled + count])
                filled += count
        check_digest(path, self._listed[name], digest.hexdigest())
        return held.toreadonly()
