"""Ctrl-C and SIGTERM in a command that writes files."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP


@contextmanager
def stopping_at_once(clean_up: Callable[[], bool]) -> Iterator[None]:
    """While inside, a signal cleans up and ends the process at once: exit code 130 for Ctrl-C, 143 for SIGTERM.

    Nothing is raised: some libraries catch every exception, and Python itself drops those that are raised in a
    callback, so the work would go on.

    Args:
        clean_up: is called in the signal handler, perhaps twice. False: it is too late, and the signal is ignored.
    """

    def stop(number: int, _: object) -> None:
        if clean_up():
            if sys.stderr.isatty():
                os.write(2, b"\r\x1b[K\x1b[?25h")  # the spinner's line, and the cursor that it hid
            os.write(2, b"interrupted; nothing was written\n")
            os._exit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # others must not set handlers
        yield
        return
    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
