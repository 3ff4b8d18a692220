"""Every kind of attention, position, input and answer: built from a config, exported, served, and equal to the
reference over gRPC."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from heed.bundle.sequence_packing import Arrays
from heed.client import Answer, Client
from heed.model import Encoder
from heed.model.config import (
    Alibi,
    AttentionConfig,
    EncoderConfig,
    FeedForwardConfig,
    ImagesConfig,
    LabelsConfig,
    LayerConfig,
    LearnedConfig,
    LogBuckets,
    LongformerConfig,
    NormConfig,
    PoolingConfig,
    SinusoidalConfig,
    TokensConfig,
    VectorsConfig,
)
from heed.model.feed_forward import Activation
from heed.model.linear_attention import LinearTransformer, Linformer, Performer
from heed.model.patterns import Adjacency, Causal, Chunk, FirstTokens, GlobalMask, Strided, Window, big_bird
from heed.model.score_functions import Additive, Dot
from heed.model.softmax import hardmax
from tests.bundles import export_bundle
from tests.support import make_noisy, run_server

BUDGET = 1e-5
LONG = 1100  # past the length up to which cheap forms are computed from all pairs ...
DENSE_COLUMNS, LATER = 64, 300  # ... and the same for most of the models: the reference of long rows takes long
SHORT = 200
Attention = AttentionConfig | LongformerConfig
HARD = AttentionConfig(4, normalize=hardmax)
# Each model has several kinds, one a layer: an error in one of them is an error of the answer, and the weights of each
# layer are compared too. What has a maximum comes first, before there is a float32 error that could move it.
MODELS: dict[str, tuple[int, dict[str, Attention]]] = {
    "all pairs": (SHORT, {
        "hard": HARD,
        "full": AttentionConfig(4),
        "unscaled": AttentionConfig(4, score=Dot),
        "additive": AttentionConfig(4, score=Additive),
        "value width": AttentionConfig(4, head_width=6, value_width=10),
        "rotary": AttentionConfig(4, rotary_base=10000.0),
        "causal": AttentionConfig(4, Causal()),
    }),
    "patterns": (LATER, {
        "hard window": AttentionConfig(4, Window(5) | FirstTokens(1), normalize=hardmax),
        "window": AttentionConfig(4, Window(5)),
        "strided": AttentionConfig(4, Strided(3)),
        "strided within": AttentionConfig(4, Strided(3, within=30)),
    }),
    "further patterns": (LATER, {
        "global tokens": AttentionConfig(4, Window(5) | FirstTokens(2)),
        "chunks": AttentionConfig(4, Chunk(20)),
        "causal window": AttentionConfig(4, Window(9) & Causal()),
        "a pattern for each head": AttentionConfig(4, (Window(2), Window(2), Chunk(50), Causal())),
    }),
    "patterns of a request": (LATER, {
        "graph": AttentionConfig(4, Adjacency()),
        "global mask": AttentionConfig(4, Window(5) | GlobalMask()),
        "longformer": LongformerConfig(4, 8),
    }),
    "random blocks": (LATER, {"big bird": AttentionConfig(4, big_bird(16, random=2, blocks=128))}),
    "approximations with weights": (LATER, {
        "linear transformer": AttentionConfig(4, approximation=LinearTransformer),
        "performer": AttentionConfig(4, approximation=partial(Performer, features=32)),
    }),
    "approximations without": (LATER, {
        "linformer": AttentionConfig(4, approximation=partial(Linformer, rank=16, max_length=2000)),
    }),
}  # fmt: skip
REFUSES_ATTENTIONS = {"approximations without"}


def layer(attention: Attention, activation: Activation = "gelu") -> LayerConfig:
    return LayerConfig(attention, FeedForwardConfig(48, activation), NormConfig(epsilon=1e-5))


def noisy(config: EncoderConfig) -> Encoder:
    torch.manual_seed(0)
    encoder = Encoder(config)
    make_noisy(encoder, 0)
    return encoder


def over_tokens(attention: Iterable[Attention], longest: int) -> Encoder:
    layers = tuple(layer(each) for each in attention)
    return noisy(EncoderConfig(TokensConfig(60), 32, layers, longest, SinusoidalConfig()))


def requests(encoder: Encoder, longest: int) -> list[Arrays]:
    """Short, holes, pads on both sides, and long."""
    random = np.random.default_rng(0)
    found = []
    for batch, length, share in ((1, 1, 0.0), (3, 17, 0.3), (2, 40, 0.5), (1, longest, 0.1)):
        mask = (random.random((batch, length)) >= share).astype(np.int64)
        mask[:, length // 2] = 1
        request: Arrays = {"input_ids": random.integers(0, 60, (batch, length)), "attention_mask": mask}
        if "adjacency" in encoder.config.needs:
            request["adjacency"] = random.random((batch, length, length)) < 3 / length
        if "global_attention_mask" in encoder.config.needs:
            request["global_attention_mask"] = (random.random((batch, length)) < 0.05).astype(np.int64)
        found.append(request)
    return found


def reference(encoder: Encoder, request: Arrays, attentions: bool = False) -> Arrays:
    """What PyTorch says in float64."""
    tensors = {name: torch.from_numpy(array) for name, array in request.items()}
    with torch.no_grad():
        answers = encoder(**tensors, attentions=attentions)
    return {name: answer.numpy() for name, answer in answers.items()}


def assert_equal(served: np.ndarray, expected: np.ndarray) -> None:
    assert served.shape == expected.shape
    assert np.abs(served - expected).max() <= BUDGET * max(1, np.abs(expected).max())


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_attention_is_served_as_the_reference_computes_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heed.export.graph_writer.DENSE_COLUMNS", DENSE_COLUMNS)
    longest, kinds = MODELS[name]
    encoder = over_tokens(kinds.values(), longest)
    export_bundle(encoder, tmp_path / "row")
    encoder.double()
    with run_server(tmp_path / "row", tmp_path / "log") as server, Client(server.address, "row") as client:
        for request in requests(encoder, longest):
            served = client.infer(request)
            assert_equal(served["last_hidden_state"], reference(encoder, request)["last_hidden_state"])
        if name not in REFUSES_ATTENTIONS:
            request = requests(encoder, longest)[1]
            expected = reference(encoder, request, attentions=True)["attentions"]
            assert expected.shape[1] == len(kinds)
            assert_equal(client.infer(request, ["attentions"])["attentions"], expected)


def classifier_of_images() -> Encoder:
    return noisy(
        EncoderConfig(
            ImagesConfig(3, 16, 24, 8), 32, (layer(AttentionConfig(4)),), 7, LearnedConfig(7),
            head=LabelsConfig(("cat", "dog", "owl"), per="sequence"),
        )
    )  # fmt: skip


def tagger_of_frames() -> Encoder:
    return noisy(
        EncoderConfig(
            VectorsConfig(9), 32, (layer(AttentionConfig(4, Chunk(20))),), LONG, SinusoidalConfig(),
            head=LabelsConfig(("a", "e", "o"), per="token"),
        )
    )  # fmt: skip


def embedder_with_relative_bias() -> Encoder:
    return noisy(
        EncoderConfig(
            TokensConfig(60, token_types=3), 32, (layer(AttentionConfig(4), "silu"),) * 2, 90, LearnedConfig(90),
            relative_bias=LogBuckets(), head=PoolingConfig("mean", unit_length=True),
        )
    )  # fmt: skip


def embedder_with_alibi() -> Encoder:
    return noisy(
        EncoderConfig(
            TokensConfig(60), 30, (layer(AttentionConfig(6)),), 90, None,
            relative_bias=Alibi(), head=PoolingConfig("mean", unit_length=True),
        )
    )  # fmt: skip


def pre_norm_with_gates() -> Encoder:
    block = LayerConfig(
        AttentionConfig(4, bias=False), FeedForwardConfig(48, "silu", gated=True), NormConfig("rms"), norm_first=True
    )
    return noisy(EncoderConfig(VectorsConfig(32), 32, (block,) * 2, 70, None, final_norm=NormConfig("rms")))


def scorer() -> Encoder:
    return noisy(
        EncoderConfig(
            TokensConfig(60), 32, (layer(AttentionConfig(4)),), 70, LearnedConfig(70),
            head=LabelsConfig(("score",), per="sequence", hidden="tanh"),
        )
    )  # fmt: skip


def images(random: np.random.Generator) -> Arrays:
    return {"pixel_values": random.standard_normal((3, 3, 16, 24)).astype(np.float32)}


def vectors(width: int, length: int) -> Callable[[np.random.Generator], Arrays]:
    def make(random: np.random.Generator) -> Arrays:
        mask = (random.random((2, length)) < 0.8).astype(np.int64)
        return {
            "features": random.standard_normal((2, length, width)).astype(np.float32), "attention_mask": mask
        }  # fmt: skip

    return make


def typed_tokens(random: np.random.Generator) -> Arrays:
    return {"input_ids": random.integers(0, 60, (4, 31)), "token_type_ids": random.integers(0, 3, (4, 31))}


def tokens(random: np.random.Generator) -> Arrays:
    return {"input_ids": random.integers(0, 60, (4, 31))}


@pytest.mark.parametrize(
    ("build", "makes", "outputs"),
    [
        (classifier_of_images, [images], {"last_hidden_state", "logits", "labels"}),
        (tagger_of_frames, [vectors(9, 57), vectors(9, LONG)], {"last_hidden_state", "logits", "labels"}),
        (embedder_with_relative_bias, [typed_tokens], {"last_hidden_state", "sentence_embedding"}),
        (embedder_with_alibi, [tokens], {"last_hidden_state", "sentence_embedding"}),
        (pre_norm_with_gates, [vectors(32, 70)], {"last_hidden_state"}),
        (scorer, [tokens], {"last_hidden_state", "logits", "labels"}),
    ],
)
def test_every_input_and_answer_is_served_as_the_reference_computes_it(
    build: Callable[[], Encoder],
    makes: list[Callable[[np.random.Generator], Arrays]],
    outputs: set[str],
    tmp_path: Path,
) -> None:
    encoder = build()
    export_bundle(encoder, tmp_path / "model")
    encoder.double()
    with run_server(tmp_path / "model", tmp_path / "log") as server, Client(server.address, "model") as client:
        for make in makes:
            request = make(np.random.default_rng(0))
            assert_answered(client.infer(request), encoder, request, outputs)


def assert_answered(answer: Answer, encoder: Encoder, request: Arrays, outputs: set[str]) -> None:
    expected = reference(encoder, request)
    assert set(answer.outputs) == outputs
    for name in outputs - {"labels"}:
        assert_equal(answer[name], expected[name])
    if "labels" in outputs:
        assert isinstance(encoder.config.head, LabelsConfig)
        names = np.array(encoder.config.head.names)[expected["logits"].argmax(-1)]
        real = request.get("attention_mask", np.ones(names.shape)) == 1
        assert np.array_equal(answer["labels"].astype(str), np.where(real, names, ""))
