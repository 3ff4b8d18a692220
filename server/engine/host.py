"""What this process may use of the machine it runs on."""

import ctypes
import gc
import math
import os
import platform
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def _quota(cgroup: Path) -> float:
    """CPUs that the container's quota allows (cgroup v2, then v1); infinity without one."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota_us = int((cgroup / "cpu/cpu.cfs_quota_us").read_text())
        period_us = int((cgroup / "cpu/cpu.cfs_period_us").read_text())
        return quota_us / period_us if quota_us > 0 else math.inf
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


def usable_cpus(cgroup: Path = CGROUP) -> int:
    """CPUs this process may run on: the affinity mask, cut by the container's quota. At least 1.

    onnxruntime counts the machine's cores instead and would start a thread for each.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(affinity, math.floor(_quota(cgroup))) if _quota(cgroup) != math.inf else affinity)


def _bytes_in(path: Path) -> float:
    """What a file of the cgroup says; infinity where there is no limit, or no such file."""
    try:
        return float(path.read_text().replace("max", "inf"))
    except (OSError, ValueError):
        return math.inf


def usable_memory(cgroup: Path = CGROUP) -> int:
    """Bytes this process may take: the machine's, cut by the container's limit (cgroup v2, then v1)."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(min(machine, _bytes_in(cgroup / "memory.max"), _bytes_in(cgroup / "memory/memory.limit_in_bytes")))


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
