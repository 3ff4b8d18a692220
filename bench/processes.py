"""A server in a process of its own, and what it uses of the machine."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from client import CallError, Client
from examples.serving import free_port

PATIENCE = 120.0  # seconds until a server must be ready


@dataclass(frozen=True)
class Served:
    """A running server."""

    address: str
    model: str
    start_seconds: float  # from the command to the first answer
    process: psutil.Process
    metrics: str = ""  # address of its metrics; empty: it has none

    @property
    def cpu_seconds(self) -> float:
        """What it and its children have computed so far, in CPU seconds."""
        times = [process.cpu_times() for process in self._processes()]
        return sum(each.user + each.system for each in times)

    @property
    def resident(self) -> int:
        """Bytes of memory. A file that is mapped several times, as weights are, is in memory once (PSS)."""
        return sum(int(process.memory_full_info().pss) for process in self._processes())

    def _processes(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]


@contextmanager
def served(bundle: Path, *options: str, metrics: bool = False) -> Iterator[Served]:
    """`heed serve`, ready, until the block ends."""
    metrics_port = free_port(0) if metrics else -1
    address = f"127.0.0.1:{free_port(0)}"
    command = [sys.executable, "-m", "heed", "serve", str(bundle), "--port", address.split(":")[1]]
    started = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--metrics-port", str(metrics_port), "--linger-seconds", "0", *options], stdout=subprocess.DEVNULL
    )
    try:
        with Client(address, bundle.name) as client:
            while not _is_ready(client):
                if process.poll() is not None or time.perf_counter() > started + PATIENCE:
                    raise RuntimeError(f"{' '.join(command)} did not start; its message stands above")
                time.sleep(0.02)
        ready = time.perf_counter() - started
        metrics_address = f"127.0.0.1:{metrics_port}" if metrics else ""
        yield Served(address, bundle.name, ready, psutil.Process(process.pid), metrics_address)
    finally:
        process.terminate()
        process.wait()


def _is_ready(client: Client) -> bool:
    """Whether the server takes calls: no model takes one without inputs."""
    try:
        client.infer({})
    except CallError as error:
        return error.code.name == "INVALID_ARGUMENT"
    return True
