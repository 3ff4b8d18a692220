"""How many threads a server starts by itself: the affinity mask, cut by the container's quota. And what it keeps of its
memory."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from heed.server.engine.host import usable_cpus


def v2(limits: str) -> dict[str, str]:
    return {"cpu.max": f"{limits}\n"}


def v1(quota: int, period: int = 100_000) -> dict[str, str]:
    return {"cpu/cpu.cfs_quota_us": f"{quota}\n", "cpu/cpu.cfs_period_us": f"{period}\n"}


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process may run on 8 of the machine's CPUs."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4, 12)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, 8, id="no cgroup"),
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
        pytest.param(v2("200000 100000") | v1(500_000), 2, id="v2 before v1"),
    ],
)
def test_the_quota_of_the_container_counts(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert usable_cpus(tmp_path) == expected


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
