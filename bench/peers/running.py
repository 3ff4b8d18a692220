"""A peer at work: started, asked, measured, stopped.

Letters: N requests, D width.
"""

import asyncio
import json
import os
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from math import nan
from pathlib import Path

import grpc
import numpy as np

from bench.peers.catalog import ROOT, Peer
from bench.peers.install import Failure, reason_in
from bench.processes import Tree
from examples.serving import free_port
from heed.client import Answer, AsyncClient, CallError
from heed.load.driver import Ask, Driver, Load, ask_by_client, ask_by_message
from heed.load.workloads import Request
from heed.protos import open_inference_pb2 as pb

MODEL = "minilm"
OUTPUT = "sentence_embedding"
STARTS = 3
START_SECONDS = 60.0


@dataclass(frozen=True)
class Round:
    """What one load came to."""

    rate: float  # answers per second
    p50: float  # seconds; NaN for loops, which nobody waits for
    p99: float
    cpu: float  # seconds for each answer, of the peer's processes
    memory: float  # bytes, after the load


class Running(ABC):
    """A peer in processes of its own."""

    def __init__(self, tree: Tree, log: Path) -> None:
        self._tree = tree
        self._log = log

    @abstractmethod
    def wait(self) -> None:
        """Until it answers.

        Raises:
            Failure: it ended instead, or took too long.
        """

    def stop(self) -> None:
        self._tree.stop()

    @abstractmethod
    def answers(self, count: int) -> np.ndarray:
        """To the first so many requests, one by one and then all at once: `[2 N, D]`, or `[N, D]` of a loop."""

    def round(self, seconds: float) -> Round:
        """One load.

        Raises:
            Failure: calls were not answered.
        """
        before = self._tree.cpu_seconds()
        load = self._load(seconds)
        if load.errors or not load.latencies:
            calls = ", ".join(f"{number} {code}" for code, number in load.errors.items()) or "all"
            raise Failure(f"calls without an answer: {calls}", self._log)
        cpu = (self._tree.cpu_seconds() - before) / len(load.latencies)
        return Round(load.rate, load.percentile(50), load.percentile(99), cpu, self._tree.memory())

    @abstractmethod
    def _load(self, seconds: float) -> Load: ...


class Served(Running):
    """A server, asked over gRPC."""

    def __init__(self, tree: Tree, log: Path, address: str, requests: Sequence[Request], callers: int) -> None:
        super().__init__(tree, log)
        self._address = address
        self._requests = requests
        self._callers = callers

    def answers(self, count: int) -> np.ndarray:
        return asyncio.run(self._answers(count))

    def _load(self, seconds: float) -> Load:
        return asyncio.run(self._closed(seconds))

    def wait(self) -> None:
        asyncio.run(self._first_answer())

    async def _first_answer(self) -> None:
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until and self._tree.process.poll() is None:
            try:
                async with self._asking() as ask:
                    await ask(0)
            except (grpc.aio.AioRpcError, CallError):
                await asyncio.sleep(0.2)
            else:
                return
        raise Failure(reason_in(self._log), self._log)

    @asynccontextmanager
    async def _asking(self) -> AsyncIterator[Ask]:
        """A channel lives and dies with its event loop."""
        async with grpc.aio.insecure_channel(self._address) as channel:
            yield ask_by_message(channel, MODEL, self._requests, [OUTPUT])

    async def _answers(self, count: int) -> np.ndarray:
        async with self._asking() as ask:
            try:
                alone = [await ask(number) for number in range(count)]
                together = await asyncio.gather(*(ask(number) for number in range(count)))
            except CallError as error:
                raise Failure(str(error), self._log) from error
            except grpc.aio.AioRpcError as error:
                details = (error.details() or "").strip().splitlines() or [""]
                raise Failure(f"{error.code().name}: {details[-1]}", self._log) from error
        embeddings = [embedding(answer) for answer in (*alone, *together)]
        if len(widths := {len(embedding_D) for embedding_D in embeddings}) > 1:
            raise Failure(f"answers have {min(widths)} to {max(widths)} values", self._log)
        return np.stack(embeddings)

    async def _closed(self, seconds: float) -> Load:
        async with self._asking() as ask:
            return await Driver(ask).closed(self._callers, seconds)


class AskedByClient(Served):
    """heed, asked as a program asks that uses its client."""

    @asynccontextmanager
    async def _asking(self) -> AsyncIterator[Ask]:
        async with AsyncClient(self._address, MODEL) as client:
            yield ask_by_client(client, self._requests, [OUTPUT])


def embedding(message: object) -> np.ndarray:
    """`[D]`, whichever way the server writes numbers; nothing if it is not there."""
    if isinstance(message, Answer):
        return np.asarray(message[OUTPUT][0])
    assert isinstance(message, bytes)
    response = pb.ModelInferResponse.FromString(message)
    for number, output in enumerate(response.outputs):
        if output.name == OUTPUT:
            if response.raw_output_contents:
                return np.frombuffer(response.raw_output_contents[number], np.float32)
            return np.array(output.contents.fp32_contents, np.float32)
    return np.empty(0, np.float32)


class Loop(Running):
    """A loop in its own process, told by lines."""

    def __init__(self, tree: Tree, log: Path, folder: Path) -> None:
        super().__init__(tree, log)
        self._answered = folder / "answers.npy"

    def answers(self, count: int) -> np.ndarray:
        self._told({"answers": count, "path": str(self._answered)})
        return np.asarray(np.load(self._answered))

    def _load(self, seconds: float) -> Load:
        done = self._told({"seconds": seconds})
        return Load("loop", done["seconds"], [nan] * int(done["answered"]))

    def wait(self) -> None:
        self._line()

    def _told(self, order: dict[str, object]) -> dict[str, float]:
        stdin = self._tree.process.stdin
        assert stdin is not None
        stdin.write(json.dumps(order) + "\n")
        stdin.flush()
        return self._line()

    def _line(self) -> dict[str, float]:
        stdout = self._tree.process.stdout
        assert stdout is not None
        line = stdout.readline()
        if not line:
            raise Failure(reason_in(self._log), self._log)
        return dict(json.loads(line))


@dataclass(frozen=True)
class Place:
    """What all peers are given."""

    folder: Path
    source: Path  # the checkpoint
    bundle: Path
    graph: Path  # padded
    requests: Sequence[Request]
    callers: int

    @property
    def requests_file(self) -> Path:
        return self.folder / "requests.npz"

    def log(self, name: str) -> Path:
        folder = self.folder / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name}.log"

    def save_requests(self) -> None:
        np.savez(self.requests_file, *(request["input_ids"][0] for request in self.requests))


@contextmanager
def started(peer: Peer, python: Path, setting: str, place: Place) -> Iterator[Running]:
    """The peer with one of its settings, from ready to stopped.

    Raises:
        Failure: it did not start, however often.
    """
    running = ready(peer, python, setting, place)
    try:
        yield running
    finally:
        running.stop()


def ready(peer: Peer, python: Path, setting: str, place: Place) -> Running:
    """A start that fails is repeated, as whoever runs servers does: Triton's processes give each other a second."""
    for _ in range(STARTS - 1):
        with suppress(Failure):
            return once_ready(peer, python, setting, place)
    return once_ready(peer, python, setting, place)


def once_ready(peer: Peer, python: Path, setting: str, place: Place) -> Running:
    """One attempt."""
    running = launched(peer, python, setting, place)
    try:
        running.wait()
    except BaseException:
        running.stop()
        raise
    return running


def launched(peer: Peer, python: Path, setting: str, place: Place) -> Running:
    """The peer's process, which may not be ready yet."""
    port, log = free_port(), place.log(peer.name)
    files = {"graph": place.graph, "bundle": place.bundle, "source": place.source, "requests": place.requests_file}
    command = [part.format(port=port, **files) for part in (*peer.command, *peer.settings[setting])]
    work = place.folder / "work" / peer.name
    work.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        process = subprocess.Popen(
            [str(python), *command],
            cwd=work,
            env=os.environ | {"PYTHONPATH": str(ROOT), "ORT_DISABLE_TELEMETRY": "1"},
            stdin=subprocess.PIPE,
            stdout=output if peer.served else subprocess.PIPE,
            stderr=output,
            text=True,
        )
    if peer.served:
        kind = AskedByClient if peer.own_client else Served
        return kind(Tree(process), log, f"127.0.0.1:{port}", place.requests, place.callers)
    return Loop(Tree(process), log, work)
