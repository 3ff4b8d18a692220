from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from bench.subjects import Right, make_checkpoint
from tests.bundles import export_bundle
from tests.contract.support import Oracle, Served
from tests.support import Running, add_pooling, run_server, save_bert

ALL_BATCHES = list(range(1, 33))
SMALL_LENGTHS = list(range(1, 41))


@pytest.fixture(scope="session")
def cls_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random BERT with `cls` pooling and vectors of length 1."""
    torch.manual_seed(5)
    return add_pooling(save_bert(tmp_path_factory.mktemp("cls"), text=False, seed=5), "cls")


@pytest.fixture(scope="session")
def cls_server(cls_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("cls-server")
    with run_server(export_bundle(cls_source, folder / "cls"), folder / "log") as server:
        yield server


@pytest.fixture(scope="session")
def roberta_server(tiny_roberta_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with run_server(tiny_roberta_bundle, tmp_path_factory.mktemp("roberta-server") / "log") as server:
        yield server


@pytest.fixture(scope="session")
def minilm_served(minilm: Path, minilm_server: Running) -> Served:
    return Served(
        minilm_server.address,
        "minilm",
        Oracle(minilm, "mean"),
        vocabulary=30522,
        padding_id=0,
        lengths=[1, 2, 3, 7, 16, 31, 64, 127, 256, 511, 512],
        batches=[1, 2, 3, 5, 8, 13, 20, 32],
    )


@pytest.fixture(scope="session")
def tiny_served(tiny: Path, tiny_server: Running) -> Served:
    return Served(tiny_server.address, "tiny", Oracle(tiny, "mean"), 100, 0, SMALL_LENGTHS, ALL_BATCHES)


@pytest.fixture(scope="session")
def cls_served(cls_source: Path, cls_server: Running) -> Served:
    return Served(cls_server.address, "cls", Oracle(cls_source, "cls"), 100, 0, SMALL_LENGTHS, ALL_BATCHES)


@pytest.fixture(scope="session")
def roberta_served(tiny_roberta: Path, roberta_server: Running) -> Served:
    return Served(roberta_server.address, "tiny-roberta", Oracle(tiny_roberta), 100, 1, SMALL_LENGTHS, ALL_BATCHES)


@pytest.fixture(scope="session", params=["minilm", "tiny", "cls", "roberta"])
def served(request: pytest.FixtureRequest) -> Served:
    """Each model in turn: mean pooling, cls pooling, and positions counted from ids."""
    one = request.getfixturevalue(f"{request.param}_served")
    assert isinstance(one, Served)
    return one


@pytest.fixture(scope="session")
def right(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Right]:
    """Right bundles of `bench.subjects` by name, each made when it is first asked for."""
    made: dict[str, Right] = {}

    def one(name: str) -> Right:
        if name not in made:
            folder = tmp_path_factory.mktemp("right")
            checkpoint = make_checkpoint(name, folder)
            made[name] = Right(checkpoint, export_bundle(checkpoint, folder / name))
        return made[name]

    return one


@pytest.fixture(scope="session")
def gate_bundle(right: Callable[[str], Right]) -> Path:
    """Of a small BERT with mean pooling."""
    return right("sentences").bundle
