"""What this process may use of the machine it runs on."""

import math
import os
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
