"""What of a graph's answers is fetched."""

from pathlib import Path

import numpy as np
import pytest

from heed.bundle import read_manifest
from heed.bundle.sequence_packing import Arrays, pack
from heed.server.engine.session import Session
from heed.server.repository.warmup import random_sequence


@pytest.fixture
def runtime(tiny_bundle: Path) -> Session:
    return Session(tiny_bundle / "model.fp32.onnx", "cpu")


@pytest.fixture
def feeds(tiny_bundle: Path) -> Arrays:
    random = np.random.default_rng(0)
    return pack([random_sequence(read_manifest(tiny_bundle), length, random) for length in (7, 1, 12)])


def test_one_output_is_fetched_and_has_the_same_bits(runtime: Session, feeds: Arrays) -> None:
    everything = runtime.run(feeds)
    assert list(everything) == runtime.outputs
    assert len(everything) > 1
    (name, alone), *others = runtime.run(feeds, ["sentence_embedding"]).items()
    assert (name, others) == ("sentence_embedding", [])
    assert np.array_equal(alone, everything["sentence_embedding"])


def test_outputs_come_in_the_order_that_they_were_asked_for(runtime: Session, feeds: Arrays) -> None:
    swapped = runtime.run(feeds, ["sentence_embedding", "last_hidden_state"])
    assert list(swapped) == ["sentence_embedding", "last_hidden_state"]
    assert {name: array.shape[-2:] for name, array in swapped.items()} == {
        "sentence_embedding": (3, 32),
        "last_hidden_state": (20, 32),
    }
