"""Two servers restarted in turn under load: nobody who calls by heed's clients notices.

nginx and HAProxy are the real ones, with the configurations of deploy/. `apt-get install nginx haproxy` brings both.
"""

import asyncio
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from heed.client import AsyncClient, CallError, Client
from tests.support import Running, free_port, is_serving, start_server, stop, wait_until_serving

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

DEPLOY = Path(__file__).parents[2] / "deploy"
TEXTS = ["the quick fox", "a dog"]
# Two restarts of each: the second meets clients that have seen the first.
RESTARTS = [0, 1, 0, 1]


@dataclass
class Pair:
    """Two servers of one model, each at an address that it keeps."""

    bundle: Path
    folder: Path
    ports: list[int] = field(default_factory=lambda: [free_port(), free_port()])
    running: list[Running] = field(default_factory=list)

    @property
    def addresses(self) -> list[str]:
        return [f"127.0.0.1:{port}" for port in self.ports]

    def start(self, number: int) -> Running:
        log = self.folder / f"server-{number}-{time.monotonic_ns()}.log"
        port = str(self.ports[number])
        server = start_server(self.bundle, log, "--port", port, "--linger-seconds", "2")
        return replace(server, address=self.addresses[number])

    def restart(self, number: int) -> None:
        assert stop(self.running[number]) == 0, self.running[number].log.read_text()
        self.running[number] = self.start(number)
        wait_until_serving(self.running[number], 300)


@pytest.fixture
def pair(tiny_bundle: Path, tmp_path: Path) -> Iterator[Pair]:
    pair = Pair(tiny_bundle, tmp_path)
    pair.running = [pair.start(0), pair.start(1)]
    try:
        for server in pair.running:
            wait_until_serving(server, 300)
        yield pair
    finally:
        for server in pair.running:
            server.process.kill()
            server.process.wait()


@dataclass
class Load:
    """Callers that go on until they are told to stop."""

    addresses: str | list[str]
    answers: int = 0
    failures: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def call(self, client: Client) -> None:
        while not self.over.wait(0.02):
            try:
                assert client.embed(TEXTS).shape == (2, 32)
                self.answers += 1
            except CallError as error:
                self.failures.append(f"sync, {error}")

    async def call_often(self) -> None:
        async def caller(client: AsyncClient) -> None:
            while not self.over.is_set():
                await asyncio.sleep(0.02)
                try:
                    assert (await client.embed(TEXTS)).shape == (2, 32)
                    self.answers += 1
                except CallError as error:
                    self.failures.append(f"async, {error}")

        async with AsyncClient(self.addresses, "tiny") as client:
            await asyncio.gather(*(caller(client) for _ in range(4)))


@contextmanager
def load(addresses: str | list[str]) -> Iterator[Load]:
    """Four callers of each client."""
    load = Load(addresses)
    with Client(addresses, "tiny") as client:
        threads = [threading.Thread(target=load.call, args=[client]) for _ in range(4)]
        threads += [threading.Thread(target=lambda: asyncio.run(load.call_often()))]
        for thread in threads:
            thread.start()
        try:
            yield load
        finally:
            load.over.set()
            for thread in threads:
                thread.join()


def restart_in_turn(pair: Pair, load: Load, restart: Callable[[int], None]) -> None:
    for number in RESTARTS:
        before = load.answers
        restart(number)
        until = time.monotonic() + 60
        while load.answers < before + 50 and time.monotonic() < until:
            time.sleep(0.05)
        assert load.answers >= before + 50, "nobody was answered"


def found(program: str) -> str:
    path = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if path is None:
        pytest.skip(f"{program} is not installed: apt-get install {program}")
    return path


@contextmanager
def balancing(command: list[str], folder: Path, port: int) -> Iterator[str]:
    """A balancer's address while it runs."""
    log = folder / "balancer.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=folder)
    address = f"127.0.0.1:{port}"
    try:
        until = time.monotonic() + 60
        while not is_serving(address):
            if process.poll() is not None or time.monotonic() > until:
                raise AssertionError(log.read_text())
            time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait()


def configured(name: str, folder: Path, pair: Pair, port: int) -> Path:
    """A file of deploy/ with the addresses of here."""
    text = (DEPLOY / name).read_text()
    for number, address in enumerate(pair.addresses):
        text = text.replace(f"10.0.0.{number + 1}:8001", address)
    file = folder / name
    file.write_text(text.replace("listen 8000", f"listen 127.0.0.1:{port}").replace("bind :8000", f"bind :{port}"))
    return file


def test_haproxy_finds_out_by_itself(pair: Pair, tmp_path: Path) -> None:
    port = free_port()
    file = configured("haproxy.cfg", tmp_path, pair, port)
    with balancing([found("haproxy"), "-f", str(file)], tmp_path, port) as address, load(address) as calls:
        restart_in_turn(pair, calls, pair.restart)
    assert calls.failures == []


def test_nginx_is_told(pair: Pair, tmp_path: Path) -> None:
    port = free_port()
    file = configured("nginx.conf", tmp_path, pair, port)
    servers = configured("heed-servers.conf", tmp_path, pair, port)
    both = servers.read_text()
    nginx = [found("nginx"), "-p", str(tmp_path), "-c", str(file)]

    def restart(number: int) -> None:
        address = pair.addresses[number]
        servers.write_text(both.replace(f"{address};", f"{address} down;"))
        subprocess.run([*nginx, "-s", "reload"], check=True, capture_output=True)
        time.sleep(1)  # old workers finish what they have
        pair.restart(number)
        servers.write_text(both)
        subprocess.run([*nginx, "-s", "reload"], check=True, capture_output=True)

    with balancing([*nginx, "-g", "daemon off;"], tmp_path, port) as address, load(address) as calls:
        restart_in_turn(pair, calls, restart)
    assert calls.failures == []


def test_no_balancer_is_needed(pair: Pair) -> None:
    with load(pair.addresses) as calls:
        restart_in_turn(pair, calls, pair.restart)
    assert calls.failures == []


def test_a_server_that_is_killed_is_passed_over(pair: Pair) -> None:
    def restart(number: int) -> None:
        pair.running[number].process.kill()
        pair.running[number].process.wait()
        pair.running[number] = pair.start(number)
        wait_until_serving(pair.running[number], 300)

    with load(pair.addresses) as calls:
        restart_in_turn(pair, calls, restart)
    assert calls.failures == []
