"""Files that an operator replaces while the server runs."""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from heed.server.errors import StartError

log = logging.getLogger("heed.security")

Read = TypeVar("Read")
Stamp = tuple[int, int, int] | None

LOOK_SECONDS = 1.0  # between looks at the files: a call must not cost one


def read_file(setting: str, path: Path) -> bytes:
    """Raises StartError, naming the setting and the file."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise StartError(f"{setting} {path} cannot be read: {error.strerror}") from None


def _stamp(path: Path) -> Stamp:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


class Reloaded(Generic[Read]):
    """What was read from files, and is read again when they have changed.

    What cannot be read is not taken: files may be half-written, or one of two replaced. What was read before stays, a
    warning says why, and the next look tries again.
    """

    def __init__(self, read: Callable[[], Read], files: list[Path]) -> None:
        """Reads them for the first time, and raises what `read` raises."""
        self._read = read
        self._files = files
        self._looked = time.monotonic()
        self._stamps = self._look_at_files()
        self._value = read()
        self._warned = ""

    @property
    def value(self) -> Read:
        """Looks at the files, but not more often than every second."""
        now = time.monotonic()
        if now - self._looked >= LOOK_SECONDS:
            self._looked = now
            self._look()
        return self._value

    def _look_at_files(self) -> list[Stamp]:
        return [_stamp(path) for path in self._files]

    def _look(self) -> None:
        stamps = self._look_at_files()
        if stamps == self._stamps:
            return
        try:
            self._value = self._read()
        except StartError as error:
            if str(error) != self._warned:
                self._warned = str(error)
                log.warning("%s; what was read before stays in use", error)
            return
        self._stamps, self._warned = stamps, ""
        log.info("read again: %s", ", ".join(map(str, self._files)))
