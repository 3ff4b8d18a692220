"""stdout and stderr as they may come: closed, full, without a reader, or in an encoding that lacks what is printed.

A server goes on whatever becomes of them, and no command says by its exit code that answers differ because nobody
reads its output.
"""

import errno
import io
import os
import sys
from typing import Any, TextIO


class _Unbreakable(io.FileIO):
    """What cannot be written is dropped."""

    lost: OSError | None = None  # the first error

    def write(self, content: Any, /) -> int:
        try:
            return super().write(content)
        except OSError as error:
            self.lost = self.lost or error
            return memoryview(content).nbytes


def _unbreakable(stream: TextIO | Any, number: int) -> TextIO:
    raw = _Unbreakable(number, "w", closefd=False)
    encoding = getattr(stream, "encoding", "utf-8")
    errors = "replace" if number == 1 else "backslashreplace"
    lines = number == 2 or bool(getattr(stream, "line_buffering", False))
    now = bool(getattr(stream, "write_through", False))
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors, line_buffering=lines, write_through=now)


def make_unbreakable() -> None:
    """From now on."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: a connection would get its number, and what is printed
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout, sys.stderr = _unbreakable(sys.stdout, 1), _unbreakable(sys.stderr, 2)


def lost_output() -> str:
    """Why results are not where they should be; empty if they are, or if who asked for them has left. Each loss is told
    once."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if not isinstance(raw, _Unbreakable):
        return ""
    lost, raw.lost = raw.lost, None
    return "" if lost is None or lost.errno == errno.EPIPE else str(lost.strerror)
