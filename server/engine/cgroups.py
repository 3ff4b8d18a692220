"""What the cgroups of this process allow: its own and those above it, of version 1 and 2 (man 7 cgroups).

/proc/self/cgroup says where a process is in a hierarchy, /proc/self/mountinfo which part of the hierarchy is mounted
where. In a container that is the container's part alone, or all of it (`docker run --cgroupns=host`); under systemd a
limit may be that of a slice above.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

PROC = Path("/proc/self")
# Of mountinfo: id, parent, device, root, mount point, options, " - ", kind, source, the hierarchy's options.
MOUNT = re.compile(r"\S+ \S+ \S+ (\S+) (\S+) .* - (cgroup2?) \S+ (\S+)")


class _Mount(NamedTuple):
    root: PurePosixPath  # the cgroup that is mounted
    point: Path
    kind: str  # cgroup (version 1) or cgroup2
    options: list[str]  # of version 1: its controllers among them


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return []


def _unescaped(path: str) -> str:
    """Spaces and such are octal in mountinfo."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)


def _mounts(proc: Path) -> Iterator[_Mount]:
    for line in _lines(proc / "mountinfo"):
        if found := MOUNT.match(line):
            root, point, kind, options = found.groups()
            yield _Mount(PurePosixPath(_unescaped(root)), Path(_unescaped(point)), kind, options.split(","))


def _path_in(proc: Path, mount: _Mount) -> PurePosixPath:
    """Where this process is in the hierarchy of a mount."""
    for line in _lines(proc / "cgroup"):
        number, controllers, path = line.split(":", 2)
        if number == "0" if mount.kind == "cgroup2" else set(controllers.split(",")) & set(mount.options):
            return PurePosixPath(path)
    return mount.root


def _folders(proc: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's cgroup and of those above it, as far as they are mounted."""
    for mount in _mounts(proc):
        if mount.kind == "cgroup" and controller not in mount.options:
            continue
        path = _path_in(proc, mount)
        inside = path.relative_to(mount.root) if path.is_relative_to(mount.root) else PurePosixPath()
        yield from (mount.point / part for part in (inside, *inside.parents))


def _numbers(path: Path) -> list[float]:
    """The numbers of a file, of which `max` is infinity; none if there is no such file, or if it has others."""
    try:
        return [math.inf if word == "max" else float(word) for word in path.read_text().split()]
    except (OSError, ValueError):
        return []


def _quota(folder: Path) -> float:
    """CPUs that one cgroup allows."""
    match [_numbers(folder / name) for name in ("cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us")]:
        case ([quota, period], _, _) | (_, [quota], [period]) if quota > 0 and period > 0:  # v1 says -1: no limit
            return quota / period
    return math.inf


def cpu_quota(proc: Path = PROC) -> float:
    """CPUs that the cgroups of this process allow together; infinity without a limit."""
    return min((_quota(folder) for folder in _folders(proc, "cpu")), default=math.inf)


def memory_limit(proc: Path = PROC) -> float:
    """Bytes that the cgroups of this process allow; infinity without a limit."""
    limits = [
        limit
        for folder in _folders(proc, "memory")
        for name in ("memory.max", "memory.limit_in_bytes")
        for limit in _numbers(folder / name)
    ]
    return min(limits, default=math.inf)
