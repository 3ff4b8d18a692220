"""The model behind gRPC, in a process of its own: whether its answers are the CPU's, and how many it gives."""

import asyncio
import os
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from time import monotonic, sleep

import grpc
import numpy as np

from bench.gpu.exporting import NAME
from bench.gpu.rows import Row, Skipped, attempted
from bench.gpu.speed import Subject
from bench.gpu.ways import EMBEDDING
from bench.processes import Tree
from examples.serving import free_port, heed
from heed.bundle.contract import BUDGETS, has_budget
from heed.bundle.manifest import Device
from heed.client import CallError, Client
from heed.client.streams import Streams
from heed.load.driver import Driver, Load, ask_by_stream
from heed.load.workloads import WORKLOADS, Request, id_requests
from heed.server.engine.session import CPU, CUDA

COMPARED = 64  # requests whose answers are compared
# Precision and threads, 0 for the server's own choice, which is two on a GPU: one group is packed while another is
# computed, and each takes a share of what waits. With one thread a group takes all of it.
SERVERS = (("fp32", 0), ("fp16", 0), ("fp16", 1))


@dataclass(frozen=True)
class Loads:
    """What the servers are asked."""

    callers: tuple[int, ...] = (32, 512)  # at once, one row each
    rows: int = 32  # of a request, once more by the fewest callers
    seconds: float = 2.5
    processes: int = 4  # that the callers are in: one alone would be slower than the server
    requests: int = 1024


@dataclass(frozen=True)
class Asked:
    """What every server is asked, and what the CPU answers to the first of it."""

    requests: list[Request]
    reference: np.ndarray
    loads: Loads


def libraries() -> str:
    """The folders of the CUDA libraries that this process has loaded, as LD_LIBRARY_PATH wants them.

    A server does not import torch, and would not find libraries that only torch's package brought.
    """
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    files = [Path(line.split(maxsplit=5)[5]) for line in lines if line.count("/")]
    folders = {str(file.parent) for file in files if file.name.startswith(("libcu", "libnvrtc", "libnvJitLink"))}
    return os.pathsep.join([*sorted(folders), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])])


@contextmanager
def served(bundle: Path, device: Device, precision: str, threads: int, ready: Request) -> Iterator[tuple[str, Tree]]:
    """The address of a server that is ready, and its process. It is always stopped.

    Raises:
        RuntimeError: it ended instead; the message is its last line.
    """
    address = f"127.0.0.1:{free_port(0)}"
    command = heed("serve", str(bundle), "--device", device, "--precision", precision, "--threads", str(threads))
    command += ["--port", address.rpartition(":")[2], "--metrics-port", "-1", "--linger-seconds", "0"]
    with tempfile.TemporaryFile() as said:
        environment = os.environ | {"LD_LIBRARY_PATH": libraries()}
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
        try:
            _wait(process, address, ready)
            yield address, Tree(process)
        except CallError as error:
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()
            raise RuntimeError(f"{error}; the server said: {' '.join(lines[-5:])}") from error
        finally:
            process.terminate()
            process.wait()


def _wait(process: "subprocess.Popen[bytes]", address: str, ready: Request) -> None:
    """Asks until there is an answer. Raises CallError if there will be none."""
    until = monotonic() + 180
    with Client(address, NAME) as client:
        while True:
            try:
                client.infer(ready, [EMBEDDING])
                return
            except CallError:
                if process.poll() is not None or monotonic() > until:
                    raise
                sleep(0.2)


def embeddings(address: str, asked: list[Request]) -> tuple[str, np.ndarray]:
    """Who answers, and what."""
    with Client(address, NAME) as client:
        answers = [client.infer(request, [EMBEDDING]) for request in asked]
    return answers[0].provider, np.concatenate([answer[EMBEDDING] for answer in answers])


def answers_and_speed(subject: Subject, loads: Loads) -> Iterator[Row]:
    """Every server on the device, beside float32 on the CPU."""
    part, config = f"{subject.name}, served", subject.encoder.config
    requests = id_requests(WORKLOADS["sentences"], config.vocabulary, config.token_types, loads.requests)
    requests = [{name: row[:, : config.max_length] for name, row in request.items()} for request in requests]
    with served(subject.file("bundle"), "cpu", "fp32", 0, requests[0]) as (address, _):
        _, reference = embeddings(address, requests[:COMPARED])
    asked = Asked(requests, reference, loads)
    for precision, threads in SERVERS:
        name = precision + f", {threads} threads" * (threads > 0)
        yield from attempted(part, name, partial(_of_server, subject, name, precision, threads, asked), must=True)


def _of_server(subject: Subject, name: str, precision: str, threads: int, asked: Asked) -> Iterator[Row]:
    part, provider = f"{subject.name}, served", CUDA if subject.device == "cuda" else CPU
    if not has_budget(precision, provider):
        raise Skipped(f"{precision} is not for the CPU")
    with served(subject.file("bundle"), subject.device, precision, threads, asked.requests[0]) as (address, server):
        by, answers = embeddings(address, asked.requests[:COMPARED])
        budget = BUDGETS[precision, provider].of(EMBEDDING, asked.reference)
        error = budget.used(answers, asked.reference)
        right = by == provider and error <= budget.limit
        yield Row(part, f"{name}, answers", f"{by}, {error:.1e} from the CPU's, {budget.limit:.0e} allowed", right)
        for load, rows, busy in _drive(address, server, asked):
            yield _told(part, name, load, rows, busy)


def _drive(address: str, server: Tree, asked: Asked) -> Iterator[tuple[Load, int, float]]:
    """One closed loop after the other, a short one first to warm up; and which share of its time the server's front end
    was busy, which is one thread."""
    loads, many = asked.loads, together(asked.requests, asked.loads.rows)
    plans = [(callers, asked.requests, 1) for callers in loads.callers] + [(loads.callers[0], many, loads.rows)]
    with ProcessPoolExecutor(loads.processes, get_context("spawn")) as pool:
        list(pool.map(abs, range(loads.processes)))  # they are there
        for callers, requests, rows in plans:
            share = partial(_closed, address, requests, callers // loads.processes, loads.seconds)
            started, before = monotonic(), server.main_thread_seconds()
            found = list(pool.map(share, range(loads.processes)))
            busy = (server.main_thread_seconds() - before) / (monotonic() - started)
            yield _together(f"{callers} callers", found), rows, busy


def _closed(address: str, requests: list[Request], callers: int, seconds: float, first: int) -> Load:
    """One process's share of the callers, each process beginning elsewhere."""
    own = requests[first:] + requests[:first]

    async def drive() -> Load:
        async with grpc.aio.insecure_channel(address) as channel:
            driver = Driver(ask_by_stream(Streams(channel), NAME, own, [EMBEDDING], deadline=60.0))
            await driver.closed(callers, seconds / 4)
            return await driver.closed(callers, seconds)

    return _loop().run_until_complete(drive())


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """One for all loads of a process: gRPC keeps to the first."""
    return asyncio.new_event_loop()


def _together(name: str, loads: list[Load]) -> Load:
    whole = Load(name, max(load.seconds for load in loads))
    for load in loads:
        whole.latencies += load.latencies
        whole.refusals += load.refusals
        whole.errors += load.errors
    return whole


def together(asked: list[Request], rows: int) -> list[Request]:
    """The same in requests of several padded rows."""
    whole = [asked[first : first + rows] for first in range(0, len(asked), rows)]
    return [{name: _stacked([request[name] for request in some]) for name in some[0]} for some in whole]


def _stacked(rows: list[np.ndarray]) -> np.ndarray:
    length = max(row.shape[1] for row in rows)
    return np.concatenate([np.pad(row, ((0, 0), (0, length - row.shape[1]))) for row in rows])


def _told(part: str, server: str, load: Load, rows: int, busy: float) -> Row:
    rate, middle, late = load.rate * rows, load.percentile(50), load.percentile(99)
    found = f"{rate:,.0f} sequences/s, {1e3 * middle:.1f} ms in the middle, {1e3 * late:.1f} ms for 99 %"
    found += f", front end {busy:.0%} busy"
    if load.errors:
        found += ", " + ", ".join(f"{count} {code}" for code, count in load.errors.items())
    what = f"{server}, {load.name}" + f" with {rows} rows each" * (rows > 1)
    figures = {"sequences/s": rate, "median seconds": middle, "p99 seconds": late, "front end busy": busy}
    return Row(part, what, found, not load.errors, figures)
