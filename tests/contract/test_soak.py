"""A minute of mixed load with callers who leave: right answers throughout, and memory that stays flat."""

import asyncio
import random
import time
from pathlib import Path

import numpy as np
import pytest

from heed.client import AsyncClient
from tests.support import Running, run_server

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

SECONDS = 60
CALLERS = 16
MAX_GROWTH_MIB = 25


def resident_mib(server: Running) -> float:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def make_request(length: int) -> dict[str, np.ndarray]:
    return {"input_ids": np.random.default_rng(length).integers(0, 30000, (1, length))}


async def call_for(address: str, seconds: float) -> int:
    """Calls from all callers at once, each answer compared with the first to the same request; returns how many."""
    known: dict[int, bytes] = {}
    answered = 0
    until = time.monotonic() + seconds

    async def caller(seed: int) -> None:
        nonlocal answered
        choose = random.Random(seed)
        while time.monotonic() < until:
            length = min(int(choose.lognormvariate(3.2, 0.7)) + 1, 300)
            call = asyncio.create_task(client.infer(make_request(length), ["sentence_embedding"]))
            if choose.random() < 0.1:
                await asyncio.sleep(choose.random() * 0.05)
                call.cancel()
            try:
                answer = (await call)["sentence_embedding"].tobytes()
            except asyncio.CancelledError:
                continue
            assert known.setdefault(length, answer) == answer
            answered += 1

    async with AsyncClient(address, "minilm") as client:
        await asyncio.gather(*(caller(seed) for seed in range(CALLERS)))
    return answered


async def test_a_minute_of_load_leaves_memory_flat_and_answers_right(minilm_bundle: Path, tmp_path: Path) -> None:
    with run_server(minilm_bundle, tmp_path / "log") as server:
        assert await call_for(server.address, SECONDS / 3) > 100
        before = resident_mib(server)
        assert await call_for(server.address, SECONDS) > 300
        assert resident_mib(server) - before < MAX_GROWTH_MIB
