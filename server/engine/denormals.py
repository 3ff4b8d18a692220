"""Numbers below float32's normal range, taken as 0 while a graph runs.

A masked score leaves softmax's exponential below that range, where x86 processors fall back to microcode: the softmax
of padded rows takes several times as long as that of full ones. With them as 0 it does not.

onnxruntime has an option for it (`session.set_denormal_as_zero`), but that reaches its own threads and the thread that
makes a process's first session, not those that call `run`.
"""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

# glibc's fenv_t on x86-64: 7 words of the x87 unit, then MXCSR (System V ABI, and SDM volume 1, 10.2.3).
_WORDS, _MXCSR = 8, 7
_FLUSH = 0x8040  # of MXCSR: flush results to zero, take denormal operands as zero

Environment = ctypes.c_uint32 * _WORDS


def _library() -> ctypes.CDLL | None:
    """Where the processor's state can be set; None where this is not known to help."""
    if platform.machine() != "x86_64" or platform.libc_ver()[0] != "glibc":
        return None
    return ctypes.CDLL("libm.so.6")


_libm = _library()


@contextmanager
def as_zero() -> Iterator[None]:
    """In this thread, until the block ends."""
    if _libm is None:
        yield
        return
    before, inside = Environment(), Environment()
    _libm.fegetenv(before)
    _libm.fegetenv(inside)
    inside[_MXCSR] |= _FLUSH
    _libm.fesetenv(inside)
    try:
        yield
    finally:
        _libm.fesetenv(before)
