"""What this process may use of the machine it runs on."""

import ctypes
import gc
import math
import os
import platform
from pathlib import Path

from heed.server.engine.cgroups import PROC, cpu_quota, memory_limit


def usable_cpus(proc: Path = PROC) -> int:
    """CPUs this process may run on: the affinity mask, cut by the quotas of its cgroups. At least 1.

    onnxruntime counts the machine's cores instead and would start a thread for each.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.floor(min(affinity, cpu_quota(proc))))


def usable_memory(proc: Path = PROC) -> int:
    """Bytes this process may take: the machine's, cut by the limits of its cgroups."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(min(machine, memory_limit(proc)))


def resident_bytes() -> int:
    """Resident memory of this process; 0 where /proc does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


# Seconds after which a thread that wants the interpreter gets it. With Python's own 5 ms a worker that has computed a
# group waits for the front end to answer all of it before it can begin the next.
SWITCH_SECONDS = 0.0005


# glibc's mallopt: blocks of this size and more are given back when they are freed, instead of kept for reuse (man 3
# mallopt). onnxruntime's arenas ask for such blocks; small ones come from the heap as ever.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE_BLOCK = 2**20


def give_freed_memory_back() -> None:
    """From now on. Without it a long request would leave the process as large as it made it."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_TRIM_THRESHOLD, _LARGE_BLOCK)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)


def settle_memory() -> None:
    """Gives back what a start needed and what follows does not, and lets the garbage collector pass over the rest."""
    gc.unfreeze()  # a model that has gone is among what was frozen before
    gc.collect()
    gc.freeze()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
