"""What is the synchronous client's own: threads, interrupts, forks and the end of the program."""

import asyncio
import gc
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from grpc import StatusCode

from heed.client import CallError, Client
from heed.protos import heed_pb2
from tests.client.echo import Echo, running
from tests.client.test_client import Fake, serving


class Watched(Fake):
    """Notes when streams end."""

    def __init__(self, *, silent: bool = False) -> None:
        super().__init__(silent=silent)
        self.stream_ended = threading.Event()

    def InferMany(self, messages: Iterator[heed_pb2.Requests], context: Any) -> Iterator[heed_pb2.Answers]:
        context.add_callback(self.stream_ended.set)
        return super().InferMany(messages, context)


def wait_for(condition: Any) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@contextmanager
def call_in_flight(client: Client, fake: Fake) -> Iterator[None]:
    """Another thread waits for its answer meanwhile, in a call of its own; calls in here go by streams."""
    with ThreadPoolExecutor(1) as thread:
        call = thread.submit(client.embed, ["a"])
        wait_for(lambda: fake.calls)
        try:
            yield
        finally:
            fake.left.set()
            call.exception()


@contextmanager
def interrupted(condition: Any) -> Iterator[None]:
    """Ctrl-C, when the condition holds."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    main = threading.main_thread().ident
    assert main

    def interrupt() -> None:
        wait_for(condition)
        time.sleep(0.1)
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)


def test_calls_one_after_the_other_are_calls_of_their_own() -> None:
    fake = Fake()
    with serving(fake) as address, Client(address, "fake") as client:
        for _ in range(3):
            client.embed(["a"])
    assert (fake.calls, fake.streams) == (3, 0)


def test_calls_of_many_threads_share_a_stream() -> None:
    fake = Fake()
    with serving(fake) as address, Client(address, "fake") as client, ThreadPoolExecutor(16) as threads:
        vectors = list(threads.map(lambda _: client.embed(["a"]), range(200)))
    assert all(vector.shape == (1, 2) for vector in vectors)
    assert (fake.calls, fake.streams) == (200, 1)
    assert sum(count for count, _ in fake.messages) > 20


def test_the_requests_of_a_large_batch_share_a_stream() -> None:
    fake = Fake()
    with serving(fake) as address, Client(address, "fake", request_rows=1) as client:
        assert client.embed(["a"] * 8).shape == (8, 2)
    assert (fake.calls, fake.streams, fake.messages) == (8, 1, [(8, [])])


def test_an_interrupt_ends_a_call_on_its_own_and_the_server_hears_of_it() -> None:
    fake = Fake(silent=True)
    with serving(fake) as address, Client(address, "fake") as client:
        before = time.monotonic()
        with interrupted(lambda: fake.calls):
            client.embed(["a"])
        assert fake.left.wait(10)
        assert time.monotonic() - before < 10


def test_an_interrupt_ends_a_call_on_a_stream_and_the_server_hears_of_it() -> None:
    fake = Fake(silent=True)
    with serving(fake) as address, Client(address, "fake") as client, call_in_flight(client, fake):
        before = time.monotonic()
        with interrupted(lambda: fake.calls == 2):
            client.embed(["a"])
        wait_for(lambda: (0, ["0"]) in fake.messages)
        assert time.monotonic() - before < 10


async def test_a_call_blocks_a_running_event_loop_and_is_answered() -> None:
    fake = Fake(silent=True)
    with serving(fake) as address, Client(address, "fake") as client:
        with call_in_flight(client, fake):
            fake.left.set()
            assert client.embed(["a"]).shape == (1, 2)  # on the loop in the background
        assert client.embed(["a"]).shape == (1, 2)
        await asyncio.sleep(0)


def test_iterables_are_read_by_the_thread_that_calls() -> None:
    readers = set()

    def texts() -> Iterator[str]:
        for number in range(40):
            readers.add(threading.current_thread())
            yield str(number)

    fake = Fake(silent=True)
    with serving(fake) as address, Client(address, "fake") as client, call_in_flight(client, fake):
        client.embed(texts())
        client.infer({"text": texts()})
        list(client.embed_each(texts()))
        list(client.infer_each({"text": texts()} for _ in range(3)))
    assert readers == {threading.current_thread()}


def test_what_is_wrong_with_a_request_is_raised_after_the_answers_before_it() -> None:
    with running(Echo(longest=0.05)) as address, Client(address, "echo") as client:
        answers = client.infer_each([{"text": ["1"]}, {"text": ["2"]}, {"text": np.array([1j])}])
        assert [next(answers)["sentence_embedding"].tolist() for _ in range(2)] == [[[1]], [[2]]]
        with pytest.raises(TypeError, match="complex128"):
            next(answers)


def test_calls_in_flight_end_when_the_client_is_closed_and_so_do_later_ones() -> None:
    fake = Fake(silent=True)
    with serving(fake) as address, ThreadPoolExecutor(3) as threads:
        client = Client(address, "fake")
        calls = [threads.submit(client.embed, ["a"]) for _ in range(3)]
        wait_for(lambda: fake.calls >= 2)
        client.close()
        client.close()
        errors = [call.exception(10) for call in calls]
        with pytest.raises(CallError, match="the client is closed"):
            client.embed(["a"])
    assert [error.code for error in errors if isinstance(error, CallError)] == [StatusCode.CANCELLED] * 3


def test_a_client_that_nobody_has_any_more_ends_its_streams() -> None:
    fake = Watched()
    with serving(fake) as address:
        client = Client(address, "fake", request_rows=1)
        client.embed(["a", "b"])
        assert not fake.stream_ended.is_set()
        del client
        gc.collect()
        assert fake.stream_ended.wait(10)


FORKS = """
import os, sys
from heed.client import CallError, Client
client = Client(sys.argv[1], "echo", request_rows=1, timeout=10)
def check(*clients):
    for each in clients:
        assert each.embed(["1"]).tolist() == [[1]]
        assert each.embed(["1", "2"]).tolist() == [[1], [2]]  # on the loop
check(client)
try:
    client.embed(["1", "2"], timeout=0)
except CallError as error:
    kept = error
for _ in range(3):
    child = os.fork()
    if not child:
        with Client(sys.argv[1], "echo", request_rows=1, timeout=10) as other:
            check(client, other)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    check(client)
print("done")
"""


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip


def test_a_process_may_fork_after_calls_and_the_child_may_call_too() -> None:
    with running(Echo(longest=0.01)) as address:
        done = run(FORKS, address)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


ENDS = """
import sys, threading
from heed.client import CallError, Client
client = Client(sys.argv[1], "fake", request_rows=1)
client.embed(["a", "b"])
def wait():
    try:
        client.embed(["a", "b"])
    except CallError as error:
        print(error)
thread = threading.Thread(target=wait, daemon=True)
thread.start()
thread.join(0.2)
"""


def test_a_program_ends_at_once_and_in_silence_though_it_closed_nothing() -> None:
    with serving(Fake(silent=True)) as address:
        before = time.monotonic()
        done = run(ENDS, address)
        assert time.monotonic() - before < 60
    assert (done.returncode, done.stderr) == (0, "")
