"""Many requests on one stream."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from heed.protos import open_inference_pb2 as pb
from heed.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from heed.server.errors import InvalidArgument, Unavailable
from heed.server.protocols.streams import (
    REQUEST_BYTES,
    STREAM_ANSWERS,
    STREAM_REQUESTS,
    Stream,
    Streams,
    Ticket,
    WeightedSemaphore,
)
from tests.server.support import ids_request
from tests.support import Running, start_server, stop, wait_until_serving


@pytest.fixture
def stub(tiny_server: Running) -> Iterator[GRPCInferenceServiceStub]:
    with grpc.insecure_channel(tiny_server.address) as channel:
        yield GRPCInferenceServiceStub(channel)


def numbered(count: int) -> list[pb.ModelInferRequest]:
    """Requests of many lengths, each with an id."""
    random = np.random.default_rng(0)
    requests = [ids_request(random.integers(5, 50, (1, 1 + number * 7 % 31)).tolist()) for number in range(count)]
    for number, request in enumerate(requests):
        request.id = str(number)
    return requests


def test_answers_come_in_the_order_of_the_requests_and_with_the_bits_of_single_calls(
    stub: GRPCInferenceServiceStub,
) -> None:
    requests = numbered(300)  # more than are in the server at a time
    answers = list(stub.ModelStreamInfer(iter(requests)))
    assert [answer.infer_response.id for answer in answers] == [request.id for request in requests]
    assert {answer.error_message for answer in answers} == {""}
    for request, answer in list(zip(requests, answers, strict=True))[::37]:
        assert answer.infer_response.raw_output_contents == stub.ModelInfer(request).raw_output_contents


def test_an_error_is_told_with_its_id_and_status_and_the_others_are_answered(stub: GRPCInferenceServiceStub) -> None:
    requests = numbered(5)
    requests[2].model_name = "big"
    requests[3].inputs[0].name = "smell"
    answers = list(stub.ModelStreamInfer(iter(requests)))
    assert [bool(answer.error_message) for answer in answers] == [False, False, True, True, False]
    assert [answer.infer_response.id for answer in answers] == list("01234")
    assert [answer.infer_response.parameters["status"].string_param for answer in answers[2:4]] == [
        "NOT_FOUND",
        "INVALID_ARGUMENT",
    ]
    assert "model 'big'" in answers[2].error_message
    assert "input smell is unknown" in answers[3].error_message


def test_an_answer_does_not_wait_for_the_next_request(stub: GRPCInferenceServiceStub) -> None:
    heard: list[str] = []

    def one_after_the_other() -> Iterator[pb.ModelInferRequest]:
        for request in numbered(3):
            yield request
            while int(request.id) >= len(heard):
                time.sleep(0.001)

    for answer in stub.ModelStreamInfer(one_after_the_other(), timeout=30):
        heard.append(answer.infer_response.id)
    assert heard == ["0", "1", "2"]


def test_a_stream_that_says_nothing_does_not_hold_up_the_end(tiny_bundle: Path, tmp_path: Path) -> None:
    server = start_server(tiny_bundle, tmp_path / "log", "--linger-seconds", "0", "--grace-seconds", "30")
    wait_until_serving(server)
    ended = False

    def requests() -> Iterator[pb.ModelInferRequest]:
        yield ids_request([[5, 6]])
        while not ended:
            time.sleep(0.01)

    with grpc.insecure_channel(server.address) as channel:
        answers = GRPCInferenceServiceStub(channel).ModelStreamInfer(requests())
        assert not next(answers).error_message
        before = time.monotonic()
        assert stop(server) == 0
        assert time.monotonic() - before < 10
        ended = True
        with pytest.raises(grpc.RpcError, match="the server is shutting down"):
            list(answers)


async def served(
    requests: AsyncIterator[Any],
    answer: Callable[[Any, Ticket], Coroutine[Any, Any, Any]],
    write: Callable[[Any], Awaitable[None]],
    streams: Streams | None = None,
    size: int = 1,
) -> None:
    """Serves a stream whose answers keep the order of its requests."""

    async def write_all(answers: list[Any]) -> None:
        for each in answers:
            await write(each)

    await (streams or Streams()).serve(Stream(answer, write_all, lambda _: size), requests)


async def test_what_an_answer_raises_ends_the_stream_after_the_answers_before_it() -> None:
    written: list[int] = []
    left: list[int] = []

    async def numbers() -> AsyncIterator[int]:
        for number in range(5):
            yield number

    async def answer(number: int, ticket: Ticket) -> int:
        try:
            await asyncio.sleep(0.02 if number == 0 else 60 if number > 2 else 0)
        except asyncio.CancelledError:
            left.append(number)
            raise
        if number == 2:
            raise InvalidArgument("item 2 is bad")
        return number

    async def write(number: int) -> None:
        written.append(number)

    with pytest.raises(InvalidArgument, match="item 2"):
        await served(numbers(), answer, write)
    assert written == [0, 1]  # though 2 failed before 0 was answered
    assert left == [3, 4]  # nothing goes on for nobody


async def test_who_does_not_read_is_not_read_from() -> None:
    asked = 0

    async def numbers() -> AsyncIterator[int]:
        nonlocal asked
        while True:
            asked += 1
            yield asked

    async def answer(number: int, ticket: Ticket) -> int:
        return number

    async def never(number: int) -> None:
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(served(numbers(), answer, never), 0.2)
    assert asked == STREAM_REQUESTS + 1  # the last one waits for room


async def test_a_connection_that_breaks_is_not_an_end() -> None:
    async def broken() -> AsyncIterator[int]:
        yield 1
        raise ConnectionError("gone")

    async def answer(number: int, ticket: Ticket) -> int:
        return number

    written: list[int] = []

    async def write(number: int) -> None:
        written.append(number)

    with pytest.raises(ConnectionError, match="gone"):
        await served(broken(), answer, write)
    assert written == [1]


async def test_answers_are_computed_in_their_order_and_only_as_many_as_may_wait_to_be_taken() -> None:
    admitted: list[int] = []
    reads = asyncio.Semaphore(0)

    async def numbers() -> AsyncIterator[int]:
        for number in range(7):
            yield number

    async def answer(number: int, ticket: Ticket) -> int:
        await asyncio.sleep(0.01 * (7 - number))  # the last is prepared first
        if number != 3:  # which needs no room
            await ticket.admit(STREAM_ANSWERS // 2 if number < 6 else 2 * STREAM_ANSWERS)
        admitted.append(number)
        return number

    async def write(number: int) -> None:
        await reads.acquire()

    serving = asyncio.create_task(served(numbers(), answer, write))
    for taken, computed in enumerate([[3, 0, 1], [3, 0, 1, 2], [3, 0, 1, 2, 4], [3, 0, 1, 2, 4, 5]]):
        await asyncio.sleep(0.15)
        assert admitted == computed, taken
        reads.release()
    for _ in range(3):
        reads.release()
    await asyncio.wait_for(serving, 10)
    assert admitted == [3, 0, 1, 2, 4, 5, 6]


async def test_a_request_that_is_cancelled_lets_nobody_overtake_those_before_it() -> None:
    answers = WeightedSemaphore(100)
    first = Ticket(answers, None)
    second = Ticket(answers, first)
    third = Ticket(answers, second)
    fourth = Ticket(answers, third)
    await first.admit(90)
    waits, gone, last = (
        asyncio.create_task(ticket.admit(size)) for ticket, size in ((second, 50), (third, 5), (fourth, 5))
    )
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    third.pass_turn()
    await asyncio.sleep(0.01)
    assert not waits.done()
    assert not last.done()
    first.release()
    await asyncio.gather(waits, last)


@pytest.mark.parametrize("before", [True, False])
async def test_a_stream_that_begins_while_all_are_ended_says_so(before: bool) -> None:
    streams = Streams()

    async def requests() -> AsyncIterator[int]:
        await asyncio.Event().wait()
        yield 0

    async def answer(request: int, ticket: Ticket) -> int:
        return request

    async def write(answer: int) -> None:
        raise AssertionError("there is nothing to answer")

    if before:
        streams.end()
    serving = asyncio.create_task(served(requests(), answer, write, streams))
    await asyncio.sleep(0)  # it reads from the next step on
    streams.end()
    async with asyncio.timeout(5):
        with pytest.raises(Unavailable, match="the server is shutting down; what it had read is answered"):
            await serving


async def test_long_requests_count_as_several() -> None:
    asked = 0

    async def numbers() -> AsyncIterator[int]:
        nonlocal asked
        while True:
            asked += 1
            yield asked

    async def answer(number: int, ticket: Ticket) -> int:
        return number

    async def never(number: int) -> None:
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(served(numbers(), answer, never, size=9 * REQUEST_BYTES), 0.2)
    assert asked == STREAM_REQUESTS // 10 + 1
