"""Random rows for models of every kind, and which models are served in batches."""

from collections.abc import Collection, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from heed.bundle import Manifest
from heed.bundle.manifest import Image
from heed.bundle.sequence_packing import Answer, TokenSequence, pack
from heed.server.engine.session import CPU, CUDA
from heed.server.repository import warmup
from heed.server.repository.warmup import random_sequence, warm_up
from heed.server.scheduling.batching import OneByOne, SimilarLengths
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
        ("int8", CPU, False, False),  # the others tell how far a batch moves them
        ("fp16", CUDA, False, False),
    ],
)
def test_bits_that_neighbours_change_forbid_batches_in_float32_on_the_cpu_only(
    monkeypatch: pytest.MonkeyPatch, precision: str, provider: str, equal: bool, alone: bool
) -> None:
    monkeypatch.setattr(warmup, "_compare_batches", lambda *_: (equal, 0.0 if equal else 0.25))
    monkeypatch.setattr(warmup, "_choose_policy", lambda *_: SimilarLengths(128))
    model: Any = SimpleNamespace(precision=precision, session=SimpleNamespace(provider=provider))
    found = warm_up(model)
    assert isinstance(found.policy, OneByOne if alone else SimilarLengths)
    assert (found.bit_equal, found.difference) == (equal, 0.0 if equal else 0.25)


class Timed:
    """Graphs whose runs take as long, and answer, as they are told to."""

    session = SimpleNamespace(provider=CPU)
    span_limits: ClassVar[list[int]] = []
    output_sets: ClassVar[list[frozenset[str]]] = [frozenset()]

    def __init__(self, one_thread: float, all_threads: float, difference: float = 0.0) -> None:
        self.seconds = {False: one_thread, True: all_threads}
        self.difference = difference
        self.is_multi_threaded = False
        self.now = 0.0

    def open_multi_threaded(self, threads: int) -> None:
        self.is_multi_threaded = True

    def close_multi_threaded(self) -> None:
        self.is_multi_threaded = False

    def run(
        self, rows: Sequence[TokenSequence], outputs: Collection[str] = (), exclusive: bool = False
    ) -> list[Answer]:
        on_all = exclusive and self.is_multi_threaded
        self.now += self.seconds[on_all]
        return [{"last_hidden_state": np.full(len(each), self.difference * on_all)} for each in rows]


def model_of(graphs: Timed) -> Any:
    return SimpleNamespace(session=graphs.session, manifest=MODELS[1], graphs=graphs, precision="fp32")


@pytest.mark.parametrize(
    ("one_thread", "all_threads", "difference", "stays"),
    [(0.01, 0.002, 0.0, True), (0.01, 0.01, 0.0, False), (0.002, 0.01, 0.0, False), (0.01, 0.002, 1e-7, False)],
)
def test_a_lone_request_takes_all_cores_where_that_is_faster_and_gives_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, one_thread: float, all_threads: float, difference: float, stays: bool
) -> None:
    graphs = Timed(one_thread, all_threads, difference)
    monkeypatch.setattr(warmup, "time", SimpleNamespace(perf_counter=lambda: graphs.now))
    warm_up(model_of(graphs), threads=2)
    assert graphs.is_multi_threaded == stays


def test_one_thread_has_no_multi_threaded_session() -> None:
    graphs = Timed(0.002, 0.0)
    warm_up(model_of(graphs), threads=1)
    assert not graphs.is_multi_threaded


class Choosy(Timed):
    """Graphs whose vectors are other ones for those who ask for nothing else."""

    output_sets: ClassVar[list[frozenset[str]]] = [frozenset(), frozenset({"sentence_embedding"})]

    def run(
        self, rows: Sequence[TokenSequence], outputs: Collection[str] = (), exclusive: bool = False
    ) -> list[Answer]:
        vector = np.full(2, self.difference * bool(outputs))
        states = {} if outputs else {"last_hidden_state": np.zeros((1, 2))}
        return [states | {"sentence_embedding": vector} for _ in rows]


@pytest.mark.parametrize("difference", [0.0, 1e-7])
def test_bits_that_depend_on_what_else_is_asked_for_are_found(difference: float) -> None:
    found = warm_up(model_of(Choosy(0.0, 0.0, difference)))
    assert (found.bit_equal, found.difference) == (difference == 0, difference)
