"""How many threads a server starts by itself: the affinity mask, cut by the container's quota. And what it keeps of its
memory."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from heed.server.engine.host import usable_cpus, usable_memory

Files = dict[str, str]  # by their paths in a cgroup


def v2(limits: str, memory: str = "max") -> Files:
    return {"cpu.max": f"{limits}\n", "memory.max": f"{memory}\n"}


def v1(quota: int, period: int = 100_000, memory: int = 2**63 - 4096) -> Files:
    return {
        "cpu.cfs_quota_us": f"{quota}\n",
        "cpu.cfs_period_us": f"{period}\n",
        "memory.limit_in_bytes": f"{memory}\n",
    }


def write(folder: Path, files: Files) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content)


def proc(tmp_path: Path, cgroup: str, *mounts: str) -> Path:
    """A /proc/self with these lines; `{}` is a folder for hierarchies."""
    folder, root = tmp_path / "proc", str(tmp_path).replace(" ", r"\040")
    write(folder, {"cgroup": cgroup, "mountinfo": "".join(f"{mount.format(root)}\n" for mount in mounts)})
    return folder


DISK = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw"
V2 = "30 22 0:26 / {}/unified rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1 = (
    "31 22 0:27 / {}/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct",
    "32 22 0:28 / {}/memory rw shared:9 - cgroup cgroup rw,memory",
)


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process may run on 8 of the machine's CPUs."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4, 12)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, 8, id="no files"),
        pytest.param(v2("max 100000"), 8, id="v2 without a quota"),
        pytest.param(v2("300000 100000"), 3, id="v2"),
        pytest.param(v2("100000 50000"), 2, id="v2 with another period"),
        pytest.param(v2("250000 100000"), 2, id="v2 fractional, cut"),
        pytest.param(v2("50000 100000"), 1, id="v2 less than one"),
        pytest.param(v2("1600000 100000"), 8, id="v2 more than the affinity allows"),
        pytest.param(v2("nonsense"), 8, id="v2 unreadable"),
        pytest.param(v1(-1), 8, id="v1 without a quota"),
        pytest.param(v1(400_000), 4, id="v1"),
        pytest.param(v1(250_000), 2, id="v1 fractional, cut"),
        pytest.param(v1(10_000), 1, id="v1 less than one"),
        pytest.param(v1(100_000, period=0), 8, id="v1 with a period of 0"),
    ],
)
def test_the_quota_of_the_container_counts(tmp_path: Path, files: Files, expected: int) -> None:
    version_2 = "cpu.max" in files
    write(tmp_path / ("unified" if version_2 else "cpu,cpuacct"), files)
    where = proc(tmp_path, "0::/\n" if version_2 else "2:cpu,cpuacct:/\n", DISK, V2 if version_2 else V1[0])
    assert usable_cpus(where) == expected


GIB = 2**30
NESTED = "0::/system.slice/heed.service\n"
POD = "/kubepods/pod1/abc"


@pytest.mark.parametrize(
    ("cgroup", "mounts", "files"),
    [
        pytest.param(
            NESTED,
            [V2],
            {"unified/system.slice/heed.service": v2("200000 100000", str(GIB))},
            id="v2: a unit of systemd",
        ),
        pytest.param(
            NESTED,
            [V2],
            {
                "unified/system.slice": v2("200000 100000", "max"),
                "unified/system.slice/heed.service": v2("max 100000", str(GIB)),
            },
            id="v2: its quota is that of the slice",
        ),
        pytest.param(
            NESTED,
            [V2],
            {"unified": v2("200000 100000", str(GIB)), "unified/system.slice/heed.service": v2("400000 100000", "max")},
            id="v2: the least of all",
        ),
        pytest.param(
            f"5:memory:{POD}\n4:cpu,cpuacct:{POD}\n0::/\n",
            [*V1, V2],
            {f"cpu,cpuacct{POD}": v1(200_000), "memory/kubepods": v1(-1, memory=GIB), f"memory{POD}": {}},
            id="v1: each controller has a hierarchy",
        ),
        pytest.param(
            f"4:cpu,cpuacct:{POD}\n5:memory:{POD}\n",
            [V1[0].replace("0:27 /", f"0:27 {POD}"), V1[1].replace("0:28 /", f"0:28 {POD}")],
            {"cpu,cpuacct": v1(200_000), "memory": v1(-1, memory=GIB)},
            id="v1: a container sees its own part",
        ),
        pytest.param(
            "0::/../../outside\n",
            [V2],
            {"unified": v2("200000 100000", str(GIB))},
            id="v2: a process whose cgroup is not in the container's namespace",
        ),
    ],
)
def test_the_limits_of_nested_cgroups_count(
    tmp_path: Path, cgroup: str, mounts: list[str], files: dict[str, Files]
) -> None:
    tmp_path = tmp_path / "a folder"
    for name, content in files.items():
        write(tmp_path / name, content)
    where = proc(tmp_path, cgroup, DISK, *mounts)
    assert (usable_cpus(where), usable_memory(where)) == (2, GIB)


def test_where_there_is_no_affinity_the_machine_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert usable_cpus(tmp_path) == 64


def test_there_is_always_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cpus(tmp_path) == 1


KEEPING = """
import numpy as np, psutil
from heed.server.engine.host import give_freed_memory_back
{call}
process, kept = psutil.Process(), []
before = process.memory_info().rss
for _ in range(3):
    blocks = []
    for _ in range(4):
        blocks.append(np.ones(2**20))  # 8 MiB
        kept.append(np.ones(2**12))  # on the heap above it, if that is where it lies
    del blocks
print((process.memory_info().rss - before) // 2**20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps what is freed")
@pytest.mark.parametrize(("call", "kept"), [("give_freed_memory_back()", False), ("", True)])
def test_freed_memory_is_given_back_again_and_again(call: str, kept: bool) -> None:
    """By itself glibc learns from the first large block that is freed to keep the next ones."""
    done = subprocess.run([sys.executable, "-c", KEEPING.format(call=call)], capture_output=True, text=True, check=True)
    assert (int(done.stdout) > 12) == kept
