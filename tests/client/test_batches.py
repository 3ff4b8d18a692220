"""Many rows, as several requests at a time."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest
from grpc import StatusCode

from heed.client import Answer, AsyncClient, CallError, Client
from heed.client.batches import REQUEST_BYTES, joined, split
from tests.client.conftest import Embed
from tests.client.echo import Echo, Refusal, running
from tests.support import Running

MANY = [str(number) for number in range(1000)]


def answer_of(outputs: dict[str, np.ndarray], digest: str = "sha256:one") -> Answer:
    return Answer(outputs, digest, "CPUExecutionProvider", "fp32", 1.0, 2.0)


def sizes(slices: list[slice]) -> list[int]:
    assert [part.start for part in slices] == [0, *(part.stop for part in slices[:-1])]
    return [part.stop - part.start for part in slices]


def test_rows_are_cut_by_number_and_by_size() -> None:
    assert sizes(split({"input_ids": np.zeros((10, 4), np.int64)}, 4)) == [4, 4, 2]
    large = np.zeros((5, REQUEST_BYTES // 8 // 2), np.int64)
    assert sizes(split({"input_ids": large}, 4)) == [2, 2, 1]
    texts = np.array(["a" * size for size in (REQUEST_BYTES - 1, 1, 1, 3 * REQUEST_BYTES, 1)], object)
    assert sizes(split({"text": texts}, 4)) == [2, 1, 1, 1]


def test_what_is_no_batch_is_sent_as_it_is() -> None:
    whole = [slice(None)]
    assert (
        split({}, 4)
        == split({"a": np.zeros((9, 1)), "b": np.zeros((8, 1))}, 4)
        == split({"a": np.zeros(())}, 4)
        == whole
    )
    assert split({"text": np.array([], object)}, 4) == whole


def test_parts_are_joined_padded_as_a_server_pads() -> None:
    first = answer_of({"hidden": np.ones((1, 2, 1), np.float32), "labels": np.array([["x", "y"]], object)})
    second = answer_of({"hidden": np.ones((1, 1, 1), np.float32), "labels": np.array([["z"]], object)})
    answer = joined([first, second])
    assert answer["hidden"].tolist() == [[[1], [1]], [[1], [0]]]
    assert answer["labels"].tolist() == [["x", "y"], ["z", ""]]
    assert (answer.digest, answer.queue_seconds, answer.compute_seconds) == ("sha256:one", 1.0, 4.0)


def test_a_batch_goes_in_bounded_requests_some_at_a_time_and_comes_back_in_order(embed: Embed) -> None:
    echo = Echo(longest=0.02)
    with running(echo) as address:
        (vectors,) = embed(address, MANY, request_rows=16, requests_at_once=4)
    assert vectors[:, 0].tolist() == list(range(1000))
    assert sorted(echo.rows) == [8, *[16] * 62]
    assert 1 < echo.at_once <= 4


def test_a_refusal_says_which_rows_it_is_about(embed: Embed) -> None:
    echo = Echo([Refusal(StatusCode.INVALID_ARGUMENT)])
    with running(echo) as address, pytest.raises(CallError) as refused:
        embed(address, MANY[:40], requests_at_once=1)
    assert refused.value.details == "not now (rows 0 to 31 of the batch, counted from 0 there)"


def test_vectors_of_two_models_are_not_mixed(embed: Embed) -> None:
    one, two = Echo(), Echo(digest="sha256:two")
    with running(one) as first, running(two) as second:
        with pytest.raises(CallError, match=r"some come from sha256:(one|two), others from") as refused:
            embed([first, second], MANY[:64])
        assert refused.value.code is StatusCode.ABORTED
        assert len(embed([first, second], MANY[:32], MANY[:32])) == 2  # two calls may


def test_texts_are_embedded_as_they_come_and_no_more_than_a_few_requests_are_held() -> None:
    taken = 0

    def texts() -> Iterator[str]:
        nonlocal taken
        for text in MANY:
            taken += 1
            yield text

    echo = Echo(longest=0.01)
    with running(echo) as address, Client(address, "echo", request_rows=8, requests_at_once=3) as client:
        for number, vector in enumerate(client.embed_each(texts())):
            assert vector.tolist() == [number]
            assert taken <= number + 8 * 4
    assert taken == 1000
    assert 1 < echo.at_once <= 3


@pytest.mark.parametrize("kind", ["iterator", "async iterator"])
async def test_the_async_client_embeds_them_too(kind: str) -> None:
    taken = 0

    async def texts() -> AsyncIterator[str]:
        nonlocal taken
        for text in MANY:
            await asyncio.sleep(0)
            taken += 1
            yield text

    echo = Echo(longest=0.01)
    with running(echo) as address:
        async with AsyncClient(address, "echo", request_rows=8, requests_at_once=3) as client:
            number = 0
            async for vector in client.embed_each(iter(MANY) if kind == "iterator" else texts()):
                assert vector.tolist() == [number]
                assert taken <= number + 8 * 4
                number += 1
    assert number == 1000
    assert 1 < echo.at_once <= 3


def test_an_endless_source_can_be_left() -> None:
    def texts() -> Iterator[str]:
        while True:
            yield "1"

    with running(Echo(longest=0.01)) as address:
        before = time.monotonic()
        with Client(address, "echo") as client:
            for _, vector in zip(range(100), client.embed_each(texts()), strict=False):
                assert vector.tolist() == [1]
        assert time.monotonic() - before < 20


async def test_what_is_left_is_cancelled() -> None:
    with running(Echo(longest=0.01)) as address:
        async with AsyncClient(address, "echo") as client:
            answers = client.infer_each({"text": [str(number)]} for number in range(10**9))
            async for answer in answers:
                assert answer["sentence_embedding"].tolist() == [[0]]
                break
            await answers.aclose()
        left = {getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()}
    assert "ModelCalls._infer_request" not in left


async def test_an_answer_is_given_before_the_next_item_has_come() -> None:
    answered = asyncio.Event()

    async def requests() -> AsyncIterator[dict[str, list[str]]]:
        yield {"text": ["1"]}
        await answered.wait()
        yield {"text": ["2"]}

    async with asyncio.timeout(20):
        with running(Echo()) as address:
            async with AsyncClient(address, "echo") as client:
                found = []
                async for answer in client.infer_each(requests()):
                    found.append(answer["sentence_embedding"].tolist())
                    answered.set()
    assert found == [[[1]], [[2]]]


async def test_what_is_wrong_with_the_items_is_told_after_the_answers_before() -> None:
    async def requests() -> AsyncIterator[dict[str, list[str]]]:
        yield {"text": ["1"]}
        raise OSError("no more")

    with running(Echo()) as address:
        async with AsyncClient(address, "echo") as client:
            answers = client.infer_each(requests())
            assert (await anext(answers))["sentence_embedding"].tolist() == [[1]]
            with pytest.raises(OSError, match="no more"):
                await anext(answers)


@pytest.mark.parametrize("text", ["1", "1" * 300_000], ids=["on a stream", "a call of its own"])
async def test_what_is_under_way_when_a_client_is_closed_ends_with_its_own_error(text: str) -> None:
    with running(Echo(longest=5)) as address:
        client = AsyncClient(address, "echo")
        asked = [asyncio.create_task(client.embed([text])) for _ in range(5)]
        await asyncio.sleep(0.3)
        await client.close()
        ended = await asyncio.gather(*asked, client.embed(["1"]), return_exceptions=True)
    errors = [one for one in ended if isinstance(one, CallError)]  # one may have been answered
    assert len(errors) >= 2
    assert {error.code for error in errors} == {StatusCode.CANCELLED}
    assert all(isinstance(one, np.ndarray | CallError) for one in ended)


def test_requests_of_any_kind_are_answered_in_order() -> None:
    requests = [{"text": MANY[:count]} for count in (3, 1, 2)]
    with running(Echo(longest=0.05)) as address, Client(address, "echo") as client:
        answers = [answer["sentence_embedding"].tolist() for answer in client.infer_each(requests)]
    assert answers == [[[0], [1], [2]], [[0]], [[0], [1]]]


def test_a_real_server_gives_a_batch_in_parts_the_bits_of_the_batch(tiny_server: Running) -> None:
    random = np.random.default_rng(0)
    words = np.array(["the", "quick", "fox", "saw", "a", "dog"])
    texts = [" ".join(random.choice(words, 1 + number % 20)) for number in range(100)]
    with Client(tiny_server.address, "tiny") as client, Client(tiny_server.address, "tiny", request_rows=100) as whole:
        parts, one = client.infer({"text": texts}), whole.infer({"text": texts})
        assert parts.outputs.keys() == one.outputs.keys()
        for name in one.outputs:
            np.testing.assert_array_equal(parts[name], one[name])
        np.testing.assert_array_equal(np.stack(list(client.embed_each(texts))), one["sentence_embedding"])
