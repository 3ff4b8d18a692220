"""Drives a server: closed loops, where each caller waits for its answer, and open loops, where requests come when they
come.

In an open loop the latency counts from the moment a request was meant to be sent: a server that stalls is not spared
the requests that would have come meanwhile.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from bench.workloads import SEED, Request
from client import AsyncClient, CallError


@dataclass
class Load:
    """What came of one load."""

    name: str
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)  # of what was answered, in seconds
    errors: Counter[str] = field(default_factory=Counter)  # by status code

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.latencies) / self.seconds

    def percentile(self, share: float) -> float:
        """Of the latencies, in seconds; NaN if nothing was answered."""
        return float(np.percentile(self.latencies, share)) if self.latencies else float("nan")


class Driver:
    """Sends requests, in turn and over again, to one model."""

    def __init__(self, client: AsyncClient, requests: Sequence[Request], outputs: Sequence[str]) -> None:
        self._client, self._requests, self._outputs = client, requests, outputs

    async def closed(self, callers: int, seconds: float) -> Load:
        """So many callers, each of whom sends the next request when it has its answer."""
        load = Load(f"{callers} caller{'s' * (callers > 1)}")
        numbers = count()
        started = time.perf_counter()

        async def caller() -> None:
            while (sent := time.perf_counter()) - started < seconds:
                await self._send(next(numbers), sent, load)

        await asyncio.gather(*(caller() for _ in range(callers)))
        load.seconds = time.perf_counter() - started
        return load

    async def open(self, rate: float, seconds: float, name: str) -> Load:
        """Requests at random moments, so many a second on average (Poisson), whatever the answers take."""
        load = Load(name)
        random = np.random.default_rng(SEED)
        started = time.perf_counter()
        moment, tasks = started, []
        for number in count():
            moment += random.exponential(1 / rate)
            if moment - started > seconds:
                break
            await asyncio.sleep(max(0.0, moment - time.perf_counter()))
            tasks.append(asyncio.create_task(self._send(number, moment, load)))
        await asyncio.gather(*tasks)
        load.seconds = time.perf_counter() - started
        return load

    async def _send(self, number: int, meant: float, load: Load) -> None:
        request = self._requests[number % len(self._requests)]
        try:
            await self._client.infer(request, self._outputs, truncate=True)
        except CallError as error:
            load.errors[error.code.name] += 1
        else:
            load.latencies.append(time.perf_counter() - meant)
