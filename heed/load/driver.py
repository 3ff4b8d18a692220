"""A load generator: closed loops, where each caller waits for its answer before it sends the next request, and open
loops, where requests are sent at random moments (Poisson) whatever the answers take.

In an open loop, latency counts from the moment a request was due: a server that stalls still gets the requests that are
due meanwhile (no coordinated omission).
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import grpc
import numpy as np

from heed.client import AsyncClient, CallError
from heed.client.streams import Streams
from heed.client.wire import call_error, infer_request
from heed.load.workloads import SEED, Request
from heed.protos import open_inference_pb2 as pb

# Sends the request with a number and waits for its answer. Raises CallError or grpc.RpcError.
Ask = Callable[[int], Awaitable[object]]

INFER = "/inference.GRPCInferenceService/ModelInfer"


def ask_by_client(client: AsyncClient, requests: Sequence[Request], outputs: Sequence[str]) -> Ask:
    """Sends the requests in turn, over and over, by heed's client."""
    return lambda number: client.infer(requests[number % len(requests)], outputs, truncate=True)


def ask_by_message(
    channel: grpc.aio.Channel, model: str, requests: Sequence[Request], outputs: Sequence[str], deadline: float = 60.0
) -> Ask:
    """The same for any server that speaks the Open Inference Protocol, with as little work in the load generator as
    possible: messages are serialized beforehand, and answers stay bytes. `deadline` in seconds."""
    messages = [infer_request(model, "", request, outputs, False).SerializeToString() for request in requests]
    call: Any = channel.unary_unary(INFER)  # bytes to bytes
    return lambda number: call(messages[number % len(messages)], timeout=deadline)


def ask_by_stream(
    streams: Streams, model: str, requests: Sequence[Request], outputs: Sequence[str], deadline: float
) -> Ask:
    """The same over the streams of heed's client, many requests to a message, which costs the load generator least.
    `deadline` in seconds."""
    messages = [infer_request(model, "", request, outputs, False) for request in requests]

    def ask(number: int) -> Awaitable[object]:
        message = pb.ModelInferRequest()
        message.CopyFrom(messages[number % len(messages)])  # that one may be in flight
        return streams.infer(message, deadline, ())

    return ask


@dataclass
class Load:
    """The results of one load."""

    name: str
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)  # of answers, in seconds
    refusals: list[float] = field(default_factory=list)  # latencies of errors, in seconds
    errors: Counter[str] = field(default_factory=Counter)  # by status code
    reasons: dict[str, str] = field(default_factory=dict)  # the first error's message, by status code

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.latencies) / self.seconds

    def percentile(self, share: float) -> float:
        """Of the latencies, in seconds; NaN if nothing was answered."""
        return float(np.percentile(self.latencies, share)) if self.latencies else float("nan")


class Driver:
    """Sends requests to one server."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    async def closed(self, callers: int, seconds: float) -> Load:
        """A closed loop: each caller sends its next request when it has its answer."""
        load = Load(f"{callers} caller{'s' * (callers > 1)}")
        numbers = count()
        started = time.perf_counter()

        async def caller() -> None:
            while (sent := time.perf_counter()) - started < seconds:
                await self._send(next(numbers), sent, load)

        await asyncio.gather(*(caller() for _ in range(callers)))
        load.seconds = time.perf_counter() - started
        return load

    async def each(self, callers: int, number: int) -> Load:
        """The first `number` requests, once each, in a closed loop: the same work for every server."""
        load = Load(f"{callers} callers")
        numbers = iter(range(number))

        async def caller() -> None:
            for request in numbers:
                await self._send(request, time.perf_counter(), load)

        started = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(callers)))
        load.seconds = time.perf_counter() - started
        return load

    async def open(self, rate: float, seconds: float, name: str) -> Load:
        """An open loop: requests at random moments (Poisson), on average `rate` a second."""
        load = Load(name)
        random = np.random.default_rng(SEED)
        started = time.perf_counter()
        due, tasks = started, []
        for number in count():
            due += random.exponential(1 / rate)
            if due - started > seconds:
                break
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(self._send(number, due, load)))
        await asyncio.gather(*tasks)
        load.seconds = time.perf_counter() - started
        return load

    async def _send(self, number: int, due: float, load: Load) -> None:
        try:
            await self._ask(number)
        except (CallError, grpc.aio.AioRpcError) as error:
            error = error if isinstance(error, CallError) else call_error(error)
            load.errors[error.code.name] += 1
            load.reasons.setdefault(error.code.name, error.details)
            load.refusals.append(time.perf_counter() - due)
        else:
            load.latencies.append(time.perf_counter() - due)
