"""New versions take over under load, and no request is lost."""

import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from heed.client import Client
from tests.support import run_server

CALLERS = 4
TEXT = ["the quick fox saw a dog"]


class Load:
    """Callers who ask without a pause, and what became of it."""

    def __init__(self, address: str) -> None:
        self.answers: list[np.ndarray] = []
        self.errors: list[Exception] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(address,)) for _ in range(CALLERS)]

    def _ask(self, address: str) -> None:
        with Client(address, "words") as client:
            while not self._stop.is_set():
                try:
                    self.answers.append(client.infer({"text": TEXT}, ["sentence_embedding"])["sentence_embedding"])
                except Exception as error:
                    self.errors.append(error)

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def place(bundle: Path, repository: Path, version: int) -> None:
    shutil.copytree(bundle, repository / ".copy")
    os.rename(repository / ".copy", repository / "words" / str(version))


def newest(client: Client) -> int:
    return int(client.info().versions[-1])


@pytest.mark.parametrize("swaps", [3, pytest.param(100, marks=[pytest.mark.long, pytest.mark.timeout(3600)])])
def test_no_request_is_lost(swaps: int, tiny_bundle: Path, tiny_cls_bundle: Path, tmp_path: Path) -> None:
    bundles = [tiny_bundle, tiny_cls_bundle]
    repository = tmp_path / "models"
    (repository / "words").mkdir(parents=True)
    place(bundles[0], repository, 1)
    flags = ("--watch-seconds", "0.1", "--linger-seconds", "0")
    with run_server(repository, tmp_path / "log", *flags) as server, Client(server.address, "words") as client:
        expected = [client.infer({"text": TEXT}, ["sentence_embedding"])["sentence_embedding"]]
        with Load(server.address) as load:
            for version in range(2, swaps + 2):
                place(bundles[(version + 1) % 2], repository, version)
                until = time.monotonic() + 120
                while newest(client) != version:
                    assert time.monotonic() < until, (tmp_path / "log").read_text()
                    time.sleep(0.02)
                shutil.rmtree(repository / "words" / str(version - 1))
                if version == 2:
                    expected.append(client.infer({"text": TEXT}, ["sentence_embedding"])["sentence_embedding"])
    assert load.errors == []
    assert len(load.answers) > 10 * swaps
    # Each answer is bit by bit that of one of the two models, and both have answered.
    which = [[np.array_equal(answer, one) for one in expected] for answer in load.answers]
    assert all(map(any, which))
    assert np.all(np.any(which, axis=0))
