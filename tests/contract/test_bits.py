"""The bits of an answer do not depend on who else is asking, nor on who leaves."""

import asyncio
import random

import numpy as np
import pytest

from heed.bundle.sequence_packing import Arrays
from heed.client import AsyncClient
from tests.support import Running, is_serving

REQUESTS = 500
OUTPUTS = {"last_hidden_state", "sentence_embedding"}


def make_request(seed: int) -> Arrays:
    """One to three rows of lengths as people write, with padding between."""
    generator = np.random.default_rng(seed)
    lengths = np.clip(generator.lognormal(2.9, 0.7, generator.integers(1, 4)).astype(int) + 1, 1, 120)
    mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
    return {"input_ids": generator.integers(0, 30522, mask.shape), "attention_mask": mask}


def same_bits(one: Arrays, other: Arrays) -> bool:
    return one.keys() == other.keys() == OUTPUTS and all(
        one[name].shape == other[name].shape and one[name].tobytes() == other[name].tobytes() for name in OUTPUTS
    )


async def ask_all_at_once(client: AsyncClient, requests: list[Arrays], leaving: dict[int, float]) -> dict[int, Arrays]:
    """The answers that arrived. `leaving` says after how many seconds which callers leave."""

    async def ask(index: int) -> Arrays:
        return (await client.infer(requests[index])).outputs

    async def leave(call: asyncio.Task[Arrays], seconds: float) -> None:
        await asyncio.sleep(seconds)
        call.cancel()

    calls = {index: asyncio.create_task(ask(index)) for index in range(len(requests))}
    leavers = [asyncio.create_task(leave(calls[index], seconds)) for index, seconds in leaving.items()]
    await asyncio.wait([*calls.values(), *leavers])
    return {index: call.result() for index, call in calls.items() if not call.cancelled()}


@pytest.mark.timeout(120)
async def test_answers_among_500_have_the_bits_of_the_same_request_alone(minilm_server: Running) -> None:
    choose = random.Random(11)
    requests = [make_request(seed) for seed in range(REQUESTS)]
    # After 1 ms to 2 s, as many within each tenfold: some leave before the work begins, however fast the machine is.
    leaving = {index: 10 ** choose.uniform(-3, 0.3) for index in choose.sample(range(REQUESTS), REQUESTS // 5)}
    async with AsyncClient(minilm_server.address, "minilm", timeout=300) as client:
        arrived = await ask_all_at_once(client, requests, leaving)
        assert arrived.keys() >= set(range(REQUESTS)) - leaving.keys()
        assert len(arrived) <= REQUESTS - 20, "too few left for this to be a test of leaving"
        for index, answer in arrived.items():
            alone = (await client.infer(requests[index])).outputs
            assert same_bits(answer, alone), f"request {index} of shape {requests[index]['input_ids'].shape}"
    assert is_serving(minilm_server.address)


async def test_one_flipped_bit_and_a_swapped_row_are_noticed(minilm_server: Running) -> None:
    """A control."""
    async with AsyncClient(minilm_server.address, "minilm") as client:
        request = {"input_ids": np.array([[101, 2023, 102], [101, 2008, 102]])}
        first, again = (await client.infer(request)).outputs, (await client.infer(request)).outputs
    assert same_bits(first, again)
    for name in OUTPUTS:
        flipped = bytearray(again[name].tobytes())
        flipped[4] ^= 1
        altered = np.frombuffer(bytes(flipped), np.float32).reshape(again[name].shape)
        assert not same_bits(first, again | {name: altered})
        assert not same_bits(first, again | {name: again[name][::-1]})
    assert not same_bits(first, {"sentence_embedding": again["sentence_embedding"]})
