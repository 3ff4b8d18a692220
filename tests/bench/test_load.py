import asyncio
import time

import grpc
import numpy as np
import pytest

from heed.client import CallError, ModelInfo
from heed.load.driver import Driver
from heed.load.workloads import WORKLOADS, requests


def info(**inputs: tuple[str, list[int]]) -> ModelInfo:
    return ModelInfo("m", ["1"], inputs, {})


def words(request: dict[str, np.ndarray]) -> int:
    return len(str(request["text"][0]).split())


def test_the_same_seed_makes_the_same_requests() -> None:
    takes = info(text=("BYTES", [-1]))
    first, second = (requests(WORKLOADS["mixed"], takes, 50) for _ in range(2))
    assert [request["text"][0] for request in first] == [request["text"][0] for request in second]


@pytest.mark.parametrize(
    ("name", "shortest", "longest", "median"),
    [("sentences", 1, 256, 24), ("queries", 3, 12, 7.5), ("documents", 200, 512, 356), ("mixed", 1, 512, 24)],
)
def test_requests_have_the_lengths_of_their_workload(name: str, shortest: int, longest: int, median: float) -> None:
    made = requests(WORKLOADS[name], info(input_ids=("INT64", [-1, -1])), 2000)
    lengths = [request["input_ids"].shape[1] for request in made]
    assert min(lengths) >= shortest
    assert max(lengths) <= longest
    assert abs(np.median(lengths) - median) <= 0.08 * median


def test_requests_are_no_longer_than_the_model_takes_them() -> None:
    takes = ModelInfo("m", ["1"], {"input_ids": ("INT64", [-1, -1])}, {}, max_length=40)
    made = requests(WORKLOADS["mixed"], takes, 200)
    assert max(request["input_ids"].shape[1] for request in made) == 40


def test_texts_leave_room_for_special_tokens() -> None:
    made = requests(WORKLOADS["documents"], info(text=("BYTES", [-1])), 500)
    assert max(map(words, made)) <= 510


def test_every_kind_of_input_is_made() -> None:
    (vectors,) = requests(WORKLOADS["queries"], info(features=("FP32", [-1, -1, 7])), 1)
    assert vectors["features"].shape[2] == 7
    (image,) = requests(WORKLOADS["queries"], info(pixel_values=("FP32", [-1, 3, 8, 8])), 1)
    assert image["pixel_values"].shape == (1, 3, 8, 8)
    with pytest.raises(ValueError, match="m takes smells"):
        requests(WORKLOADS["queries"], info(smells=("FP32", [-1])), 1)


class Waiting:
    """Answers after a while; every `fails`-th call is refused."""

    def __init__(self, seconds: float, fails: int = 0) -> None:
        self.seconds, self.fails = seconds, fails
        self.calls = self.at_once = self.most = 0

    async def __call__(self, number: int) -> None:
        self.calls += 1
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        fails = self.fails and self.calls % self.fails == 0
        await asyncio.sleep(self.seconds)
        self.at_once -= 1
        if fails:
            raise CallError(grpc.StatusCode.RESOURCE_EXHAUSTED, f"full at {self.calls}")


async def test_a_closed_loop_has_so_many_requests_on_their_way_and_no_more() -> None:
    client = Waiting(0.01)
    load = await Driver(client).closed(5, 0.3)
    assert client.most == 5
    assert len(load.latencies) == client.calls
    assert load.percentile(50) >= 0.01


async def test_an_open_loop_does_not_wait_for_answers() -> None:
    client = Waiting(0.5)
    load = await Driver(client).open(100, 0.4, "open")
    assert client.most > 15  # 40 are meant to come before the first is answered
    assert len(load.latencies) == client.calls


async def test_latency_counts_from_the_moment_that_was_meant() -> None:
    class Stalling(Waiting):
        async def __call__(self, number: int) -> None:
            if self.calls == 0:
                time.sleep(0.3)
            await super().__call__(number)

    load = await Driver(Stalling(0.0)).open(100, 0.2, "open")
    assert load.percentile(50) > 0.1


async def test_refusals_are_counted_and_have_no_latency() -> None:
    client = Waiting(0.001, fails=2)
    load = await Driver(client).closed(1, 0.1)
    assert load.errors["RESOURCE_EXHAUSTED"] == len(load.refusals) == client.calls // 2
    assert len(load.latencies) == client.calls - client.calls // 2
    assert load.reasons == {"RESOURCE_EXHAUSTED": "full at 2"}
