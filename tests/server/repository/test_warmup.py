"""Random sequences for models of every kind, and who is served in groups."""

from collections.abc import Collection, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from heed.bundle import Manifest
from heed.bundle.manifest import Image
from heed.bundle.packing import TokenSequence, pack
from heed.server.engine.graphs import Answer
from heed.server.engine.session import CPU, CUDA
from heed.server.repository import warmup
from heed.server.repository.warmup import random_sequence, warm_up
from heed.server.scheduling.batching import Alone, Neighbours
from tests.server.support import manifest_of

MODELS = [
    manifest_of("input_ids", "token_type_ids"),
    manifest_of("input_ids"),
    manifest_of("features", "adjacency", aligned=True),
    manifest_of("input_ids", "global_attention_mask", aligned=True),
]


@pytest.mark.parametrize("manifest", MODELS)
@pytest.mark.parametrize("length", [1, 2, 24])
def test_a_sequence_has_the_length_and_all_that_its_model_takes(manifest: Manifest, length: int) -> None:
    member = random_sequence(manifest, length, np.random.default_rng(0))
    assert len(member) == member.span(manifest.aligned) == length
    packed = pack([member], manifest.aligned)
    assert {spec.name for spec in manifest.inputs} <= set(packed) | {"global_attention_mask"}
    assert ("globals" in packed) == manifest.takes("global_attention_mask")
    assert ("token_type_ids" in packed) == manifest.takes("token_type_ids")


def test_a_sequence_may_end_far_from_its_start() -> None:
    member = random_sequence(MODELS[2], 5, np.random.default_rng(0), columns=33)
    assert member.span(aligned=True) == 33
    assert member.real.sum() == 5
    assert 5 <= len(member) <= 6  # column 0 takes part, real or not


def test_an_image_has_its_own_length() -> None:
    manifest = manifest_of("pixel_values", image=Image(channels=3, height=4, width=6, patch=2), length=7)
    member = random_sequence(manifest, 3, np.random.default_rng(0))
    assert member.tokens["features"].shape == (7, 12)
    assert not member.tokens["features"][0].any()
    assert member.tokens["features"][1:].all()


@pytest.mark.parametrize(
    ("precision", "provider", "equal", "alone"),
    [
        ("fp32", CPU, True, False),
        ("fp32", CPU, False, True),  # float32 on the CPU promises bits
        ("fp32", CUDA, False, False),
        ("int8", CPU, True, False),
        ("int8", CPU, False, False),  # the others tell how far a group moves them
        ("fp16", CUDA, False, False),
    ],
)
def test_bits_that_neighbours_change_forbid_groups_in_float32_on_the_cpu_only(
    monkeypatch: pytest.MonkeyPatch, precision: str, provider: str, equal: bool, alone: bool
) -> None:
    monkeypatch.setattr(warmup, "_compare_groups", lambda *_: (equal, 0.0 if equal else 0.25))
    monkeypatch.setattr(warmup, "_choose", lambda *_: Neighbours(128))
    model: Any = SimpleNamespace(precision=precision, runtime=SimpleNamespace(provider=provider))
    found = warm_up(model)
    assert isinstance(found.strategy, Alone if alone else Neighbours)
    assert (found.bit_equal, found.difference) == (equal, 0.0 if equal else 0.25)


class Timed:
    """A model whose runs take as long, and answer, as they are told to."""

    runtime = SimpleNamespace(provider=CPU)
    manifest = MODELS[1]
    graphs = SimpleNamespace(steps=[], ways=[frozenset()])
    precision = "fp32"

    def __init__(self, narrow: float, wide: float, difference: float = 0.0) -> None:
        self.seconds = {False: narrow, True: wide}
        self.difference = difference
        self.is_wide = False
        self.now = 0.0

    def open_wide(self, threads: int) -> None:
        self.is_wide = True

    def close_wide(self) -> None:
        self.is_wide = False

    def run(self, group: Sequence[TokenSequence], outputs: Collection[str] = (), alone: bool = False) -> list[Answer]:
        wide = alone and self.is_wide
        self.now += self.seconds[wide]
        return [{"last_hidden_state": np.full(len(each), self.difference * wide)} for each in group]


@pytest.mark.parametrize(
    ("narrow", "wide", "difference", "stays"),
    [(0.01, 0.002, 0.0, True), (0.01, 0.01, 0.0, False), (0.002, 0.01, 0.0, False), (0.01, 0.002, 1e-7, False)],
)
def test_a_lone_request_takes_all_cores_where_that_is_faster_and_gives_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, narrow: float, wide: float, difference: float, stays: bool
) -> None:
    model: Any = Timed(narrow, wide, difference)
    monkeypatch.setattr(warmup, "time", SimpleNamespace(perf_counter=lambda: model.now))
    warm_up(model, threads=2)
    assert model.is_wide == stays


def test_one_thread_is_never_wide() -> None:
    model: Any = Timed(0.002, 0.0)
    warm_up(model, threads=1)
    assert not model.is_wide


class Choosy(Timed):
    """A model whose vectors are other ones for those who ask for nothing else."""

    graphs = SimpleNamespace(steps=[], ways=[frozenset(), frozenset({"sentence_embedding"})])

    def run(self, group: Sequence[TokenSequence], outputs: Collection[str] = (), alone: bool = False) -> list[Answer]:
        vector = np.full(2, self.difference * bool(outputs))
        states = {} if outputs else {"last_hidden_state": np.zeros((1, 2))}
        return [states | {"sentence_embedding": vector} for _ in group]


@pytest.mark.parametrize("difference", [0.0, 1e-7])
def test_bits_that_depend_on_what_else_is_asked_for_are_found(difference: float) -> None:
    model: Any = Choosy(0.0, 0.0, difference)
    found = warm_up(model)
    assert (found.bit_equal, found.difference) == (difference == 0, difference)
