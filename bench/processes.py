"""Servers in processes of their own, and what they use of the machine."""

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from examples.serving import free_port, heed, is_ready
from heed.client import Client

PATIENCE = 120.0  # seconds until a server must be ready
STOP_SECONDS = 40.0  # what a server may take to end: longer than it gives those in flight


class Tree:
    """A process and all that it started."""

    def __init__(self, process: "subprocess.Popen[Any]") -> None:
        self.process = process
        self._root = psutil.Process(process.pid)

    def cpu_seconds(self) -> float:
        return self._total(lambda member: sum(member.cpu_times()[:2]))  # user and system

    def main_thread_seconds(self) -> float:
        """CPU seconds of the first process's first thread, where Python's event loops run."""
        thread = next(each for each in self._root.threads() if each.id == self._root.pid)
        return float(thread.user_time + thread.system_time)

    def memory(self) -> float:
        """Bytes. What is mapped twice or shared is counted once where the system tells (PSS), else each time."""
        return self._total(lambda member: getattr(member.memory_full_info(), "pss", member.memory_info().rss))

    def stop(self) -> None:
        """SIGTERM to the first, which has to take the others along; SIGKILL to whom it left."""
        members = [self._root, *self._children()]
        self.process.terminate()
        _, alive = psutil.wait_procs(members, STOP_SECONDS)
        for member in alive:
            member.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def _children(self) -> list[psutil.Process]:
        try:
            return self._root.children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def _total(self, of: Callable[[psutil.Process], float]) -> float:
        total = 0.0
        for member in [self._root, *self._children()]:
            with suppress(psutil.NoSuchProcess):  # ended meanwhile
                total += of(member)
        return total


@dataclass(frozen=True)
class Served:
    """A running heed."""

    address: str
    model: str
    start_seconds: float  # from the command to the first answer
    tree: Tree
    metrics: str  # address of its metrics; empty: it has none


@contextmanager
def served(bundle: Path, *options: str, metrics: bool = False) -> Iterator[Served]:
    """`heed serve`, ready, until the block ends."""
    metrics_port = free_port(0) if metrics else -1
    address = f"127.0.0.1:{free_port(0)}"
    command = heed("serve", str(bundle), "--port", address.split(":")[1], "--metrics-port", str(metrics_port))
    started = time.perf_counter()
    tree = Tree(subprocess.Popen([*command, "--linger-seconds", "0", *options], stdout=subprocess.DEVNULL))
    try:
        with Client(address, bundle.name) as client:
            while not is_ready(client):
                if tree.process.poll() is not None or time.perf_counter() > started + PATIENCE:
                    raise RuntimeError(f"{' '.join(command)} did not start; its message stands above")
                time.sleep(0.02)
        ready = time.perf_counter() - started
        yield Served(address, bundle.name, ready, tree, f"127.0.0.1:{metrics_port}" if metrics else "")
    finally:
        tree.stop()
