"""Several servers, and servers that say no."""

import asyncio
import pickle
import time

import pytest
from grpc import StatusCode

from heed.client import AsyncClient, CallError, Client
from tests.client.conftest import Embed
from tests.client.echo import Echo, Refusal, running
from tests.support import free_port

ONE = ["1"]
BUSY = StatusCode.RESOURCE_EXHAUSTED


def test_servers_are_called_in_turn(embed: Embed) -> None:
    echoes = [Echo(), Echo(), Echo()]
    with running(echoes[0]) as a, running(echoes[1]) as b, running(echoes[2]) as c:
        embed([a, b, c], *[ONE] * 30)
    assert [len(echo.rows) for echo in echoes] == [10, 10, 10]


def test_names_work_as_addresses_do(embed: Embed) -> None:
    echoes = [Echo(), Echo()]
    with running(echoes[0]) as a, running(echoes[1]) as b:
        embed([f"localhost:{a.split(':')[1]}", f"dns:///{b}"], *[ONE] * 4)
    assert [len(echo.rows) for echo in echoes] == [2, 2]


def test_a_server_that_is_gone_is_passed_over_without_waiting(embed: Embed) -> None:
    echo = Echo()
    with running(echo) as address:
        before = time.monotonic()
        embed([f"127.0.0.1:{free_port()}", address], *[ONE] * 50)
        assert time.monotonic() - before < 10  # 25 waits of a tenth of a second and more would not fit
    assert len(echo.rows) == 50


def test_a_server_that_is_not_ready_is_left_alone_for_a_while(embed: Embed) -> None:
    loading, ready = Echo([Refusal(StatusCode.UNAVAILABLE)] * 1000), Echo()
    with running(loading) as a, running(ready) as b:
        before = time.monotonic()
        embed([a, b], *[ONE] * 100)
        seconds = time.monotonic() - before
    assert len(ready.rows) == 100
    assert 1 <= 1000 - len(loading.refusals) <= 2 + seconds


def test_one_that_comes_back_gets_its_share_again() -> None:
    back, other = Echo([Refusal(StatusCode.UNAVAILABLE)]), Echo()
    with running(back) as a, running(other) as b, Client([a, b], "echo") as client:
        client.embed(ONE)
        client.embed(ONE)
        time.sleep(1.1)
        for _ in range(10):
            client.embed(ONE)
    assert len(back.rows) >= 5


def test_what_a_stopping_server_cancelled_is_sent_again(embed: Embed) -> None:
    with running(Echo([Refusal(StatusCode.CANCELLED)])) as address:
        assert embed(address, ["7"])[0].tolist() == [[7]]


def test_all_servers_gone_is_said_after_five_rounds(embed: Embed) -> None:
    with pytest.raises(CallError) as refused:
        embed([f"127.0.0.1:{free_port()}" for _ in range(2)], ONE)
    assert refused.value.code is StatusCode.UNAVAILABLE


def test_a_busy_server_is_asked_again_when_it_says(embed: Embed) -> None:
    echo = Echo([Refusal(BUSY, "30")] * 20)  # more often than a server that is gone
    with running(echo) as address:
        before = time.monotonic()
        (vectors,) = embed(address, ["7"])
        assert time.monotonic() - before >= 20 * 0.03
    assert vectors.tolist() == [[7]]


def test_so_is_one_that_is_loading_and_says_when(embed: Embed) -> None:
    echo = Echo([Refusal(StatusCode.UNAVAILABLE, "20")] * 20)
    with running(echo) as address:
        assert embed(address, ["7"])[0].tolist() == [[7]]


def test_a_busy_server_that_says_0_is_not_stormed(embed: Embed) -> None:
    echo = Echo([Refusal(BUSY, "0")] * 10**6)
    with running(echo) as address, pytest.raises(CallError, match=r"RESOURCE_EXHAUSTED|DEADLINE_EXCEEDED"):
        embed(address, ONE, timeout=0.5)
    assert 10**6 - len(echo.refusals) <= 51


@pytest.mark.parametrize("pushback", [None, "-1"])
def test_a_busy_server_that_names_no_time_is_not_asked_again(embed: Embed, pushback: str | None) -> None:
    echo = Echo([Refusal(BUSY, pushback)] * 10)
    with running(echo) as address, pytest.raises(CallError, match="RESOURCE_EXHAUSTED: not now"):
        embed(address, ONE)
    assert len(echo.refusals) == 9


def test_nor_is_one_that_would_answer_after_the_deadline(embed: Embed) -> None:
    echo = Echo([Refusal(BUSY, "5000")] * 10)
    with running(echo) as address, pytest.raises(CallError, match="not now") as refused:
        embed(address, ONE, timeout=4)
    assert refused.value.pushback == 5.0
    assert len(echo.refusals) == 9


def test_what_no_waiting_mends_is_not_repeated_whatever_the_server_says(embed: Embed) -> None:
    echo = Echo([Refusal(StatusCode.INVALID_ARGUMENT, "10")] * 10)
    with running(echo) as address, pytest.raises(CallError, match="INVALID_ARGUMENT"):
        embed(address, ONE)
    assert len(echo.refusals) == 9


@pytest.mark.parametrize("reason", [None, "queue_full"])
def test_an_error_has_the_reason_that_the_server_gives(embed: Embed, reason: str | None) -> None:
    with running(Echo([Refusal(BUSY, "-1", reason)])) as address, pytest.raises(CallError) as refused:
        embed(address, ONE)
    assert (refused.value.code, refused.value.pushback, refused.value.reason) == (BUSY, -0.001, reason)


def test_an_error_about_some_rows_has_the_reason_too(embed: Embed) -> None:
    with (
        running(Echo([Refusal(BUSY, "-1", "queue_full")])) as address,
        pytest.raises(CallError, match="rows") as refused,
    ):
        embed(address, ["1", "2"], request_rows=1)
    assert (refused.value.pushback, refused.value.reason) == (-0.001, "queue_full")


def test_an_error_can_be_pickled() -> None:
    error = CallError(BUSY, "not now", 2.5, "queue_full")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (CallError, "RESOURCE_EXHAUSTED: not now", vars(error))


def test_a_call_may_have_a_timeout_of_its_own() -> None:
    with running(Echo([Refusal(BUSY, "1000")] * 10)) as address, Client(address, "echo") as client:
        before = time.monotonic()
        with pytest.raises(CallError):
            client.embed(ONE, timeout=0.5)
        with pytest.raises(CallError):
            client.infer({"text": ONE}, timeout=0.5)
        assert time.monotonic() - before < 10


async def test_the_streams_of_many_calls_at_once_spread_over_the_servers() -> None:
    echoes = [Echo(longest=0.05), Echo(longest=0.05)]
    with running(echoes[0]) as a, running(echoes[1]) as b:
        async with AsyncClient([a, b], "echo") as client:
            await asyncio.gather(*(client.embed(ONE) for _ in range(40)))
            assert (await client.info()).versions == ["1"]
    assert [len(echo.rows) for echo in echoes] == [20, 20]


def test_no_address_is_refused() -> None:
    with pytest.raises(ValueError, match="no address; give host:port, or a list of them"):
        Client([], "echo")
