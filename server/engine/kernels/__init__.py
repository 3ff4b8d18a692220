"""Linear layers and more as this CPU computes them fastest: a library in C that onnxruntime's sessions are given.

`digits.h` and `panels.h` say how they are multiplied and why answers keep their bits, `tokens.c` and `attention.c` what
else is computed; `operators.c` is what onnxruntime calls. The exported graphs name all that (see
`export/passes/outline_linear.py` and `outline_attention.py`), so that the same file runs with and without the library.
"""

import ctypes
import sysconfig
from functools import cache
from pathlib import Path

DIGITS = "tiles of int8 digits"  # what `way` says of CPUs with AMX
LIBRARY = Path(__file__).with_name(f"library{sysconfig.get_config_var('EXT_SUFFIX')}")


# How a graph says that it calls operators of the domain "heed": an OperatorSetIdProto's first field, and its length.
_CALLS = b"\n\x04heed"


@cache
def way() -> str:
    """How linear layers are multiplied here, in words; empty where onnxruntime does it.

    The library is not compiled where there was no C compiler at installation. It is for x86 CPUs: by digits for those
    with tiles of int8 (AMX), by panels for those whose vector unit is AVX2.
    """
    if not LIBRARY.exists():
        return ""
    found = ctypes.CDLL(str(LIBRARY)).heed_kernels
    found.restype = ctypes.c_char_p
    return bytes(found()).decode()


def library() -> Path | None:
    """The compiled library; None if it would be of no use here."""
    return LIBRARY if way() else None


def serves(graph: Path) -> bool:
    """Whether there is a library here, and layers in the graph that it computes: older bundles do not name theirs."""
    return bool(way()) and _CALLS in graph.read_bytes()
