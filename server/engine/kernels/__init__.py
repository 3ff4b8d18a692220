"""Linear layers, attention, norms and GELU as this CPU computes them fastest: a C library for onnxruntime's sessions.

`dispatch.c` has the table of kernels, a row for each instruction set; `avx2/` and `amx/` have the kernels, and say how
they multiply and why answers keep their bits; `linear.c`, `attention.c` and `elementwise.c` are the operators that
onnxruntime calls. The exported graphs name those (see `export/passes/outline_linear.py` and `outline_attention.py`),
and define them by standard operators, so that the same file runs with the library or without it.

The environment variable HEED_MAX_ISA (none, avx2, avx512, amx) forces a lower instruction set than the CPU has, to test
or to compare. It is read once in a process. With "none" onnxruntime computes everything.
"""

import ctypes
import os
import sysconfig
from enum import StrEnum
from functools import cache
from pathlib import Path

from heed.server.errors import StartError

LIBRARY = Path(__file__).with_name(f"library{sysconfig.get_config_var('EXT_SUFFIX')}")
LIMIT = "HEED_MAX_ISA"

# How a graph says that it calls operators of the domain "heed": an OperatorSetIdProto's first field, and its length.
_CALLS = b"\n\x04heed"


class InstructionSet(StrEnum):
    """What kernels are written for, from the lowest to the highest. CPUs with one have those before it."""

    NONE = "none"
    AVX2 = "avx2"  # with FMA
    AVX512 = "avx512"  # onnxruntime multiplies linear layers, the library computes what lies between them
    AMX = "amx"


_DESCRIPTIONS = {
    InstructionSet.NONE: "",
    InstructionSet.AVX2: "linear layers, attention, norms and GELU by heed's kernels (AVX2)",
    InstructionSet.AVX512: "attention, norms and GELU by heed's kernels (AVX2), linear layers by onnxruntime (AVX-512)",
    InstructionSet.AMX: "linear layers by heed's kernels (AMX), attention, norms and GELU too (AVX2)",
}


@cache
def instruction_set() -> InstructionSet:
    """Whose kernels run here; NONE where the library was not compiled, for want of a C compiler at installation.

    Raises:
        StartError: HEED_MAX_ISA names no instruction set.
    """
    limit = os.environ.get(LIMIT, "")
    if limit and limit not in list(InstructionSet):
        raise StartError(f"{LIMIT} must be one of {', '.join(InstructionSet)}, got {limit!r}")
    if not LIBRARY.exists():
        return InstructionSet.NONE
    found = ctypes.CDLL(str(LIBRARY)).heed_instruction_set
    found.restype = ctypes.c_char_p
    return InstructionSet(found().decode())


def description() -> str:
    """What the library computes here, and with which instructions; empty if nothing."""
    return _DESCRIPTIONS[instruction_set()]


def multiplies() -> bool:
    """Whether linear layers are the library's here, and not onnxruntime's."""
    return instruction_set() in (InstructionSet.AVX2, InstructionSet.AMX)


def library() -> Path | None:
    """The compiled library; None if it would be of no use here."""
    return None if instruction_set() == InstructionSet.NONE else LIBRARY


def serves(graph: bytes) -> bool:
    """Whether there is a library here, and layers in the graph that it computes: older bundles do not name theirs."""
    return library() is not None and _CALLS in graph
