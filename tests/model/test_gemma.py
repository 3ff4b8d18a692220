"""Gemma 3's text model and EmbeddingGemma, against `transformers` in float64.

What it has in common with other families is tested in test_families_text.py.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from heed.model import CheckpointError, load_checkpoint
from heed.model.config import AttentionConfig, FeedForwardConfig, LayerConfig, NormConfig
from heed.model.patterns import Window
from heed.model.transformer_block import SandwichBlock
from tests.model.support import assert_states_equal, noise, plan, real_states, with_random_weights
from tests.model.support import padded as padded_layout
from tests.oracle import BUDGET, VISIBLE, edited, error, save

SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "intermediate_size": 20,
    "max_position_embeddings": 70,
    "rms_norm_eps": 1e-3,
    "query_pre_attn_scalar": 13,
    "sliding_window": 6,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
EMBEDDING = {"use_bidirectional_attention": True}


def save_gemma(folder: Path, **settings: Any) -> Path:
    return save(folder, "Gemma3TextModel", "Gemma3TextConfig", **(SIZES | settings))


@pytest.fixture(scope="module")
def embedding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_gemma(tmp_path_factory.mktemp("gemma"), **EMBEDDING)


def assert_equal(folder: Path, length: int) -> None:
    assert_states_equal(folder, "Gemma3TextModel", length)


@pytest.mark.parametrize("form", ["dense", "in blocks"])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 7, 17, 33, 70])
def test_windows_both_ways(embedding: Path, length: int, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heed.model.attention_plan.DENSE_COLUMNS", 512 if form == "dense" else 0)
    assert_equal(embedding, length)


@pytest.mark.parametrize("length", [1, 5, 6, 7, 70])
def test_windows_that_look_back(tmp_path: Path, length: int) -> None:
    assert_equal(save_gemma(tmp_path), length)


@pytest.mark.parametrize(
    "settings",
    [
        {"attention_bias": True},
        {"sliding_window": 9},
        {"num_key_value_heads": 1},
        {"hidden_activation": "silu"},
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 500.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 30.5},
            }
        },
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_that_change_the_numbers(tmp_path: Path, settings: dict[str, Any]) -> None:
    assert_equal(save_gemma(tmp_path, **EMBEDDING, **settings), 40)


def test_an_earlier_config(embedding: Path, tmp_path: Path) -> None:
    """As EmbeddingGemma has it, of before rope_parameters; and of before layer_types."""
    folder = edited(
        embedding, tmp_path / "a", "rope_parameters", "layer_types",
        _sliding_window_pattern=6, sliding_window_pattern=2, rope_theta=777.0, rope_local_base_freq=55.0,
        rope_scaling=None, attn_logit_softcapping=None, final_logit_softcapping=30.0, use_cache=True,
    )  # fmt: skip
    assert_equal(folder, 40)
    layers = [layer.attention for layer in load_checkpoint(folder).encoder.config.layers]
    assert [getattr(each, "rotary_base", 0) for each in layers] == [55.0, 777.0, 55.0]
    assert [getattr(each, "pattern", None) == Window(3) for each in layers] == [True, False, True]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 8.0}}, "linear"),
        ({"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}}}, "linear"),
        ({"layer_types": ["chunked_attention"] * 3}, "chunked_attention"),
        ({"query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),
        ({"model_type": "gemma3"}, "model_type='gemma3'"),
    ],
    ids=str,
)
def test_unsupported_settings_are_refused_by_name(
    embedding: Path, tmp_path: Path, settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(CheckpointError, match=named):
        load_checkpoint(edited(embedding, tmp_path / "copy", **settings))


def test_a_layer_with_norms_before_and_behind_its_parts() -> None:
    norm = NormConfig("rms", 1e-2, unit_offset=True)
    config = LayerConfig(AttentionConfig(2), FeedForwardConfig(7), norm, sandwich=True)
    block = with_random_weights(config.build(6, 9))
    assert isinstance(block, SandwichBlock)

    def normed(x: Tensor, weight: Any) -> Tensor:
        scaled: Tensor = x / (x.square().mean(-1, keepdim=True) + 1e-2).sqrt() * (1 + weight)
        return scaled

    x, layout = noise(1, 5, 6), padded_layout(torch.ones(1, 5, dtype=torch.bool).numpy())
    first = x + normed(
        block.attention(normed(x, block.attention_norm.weight), plan(layout)), block.attention_out_norm.weight
    )
    second = first + normed(
        block.feed_forward(normed(first, block.feed_forward_norm.weight)), block.feed_forward_out_norm.weight
    )
    assert error(block(x, plan(layout)), second) < BUDGET


# Controls: each of these faults would be seen


@pytest.mark.parametrize(
    "settings",
    [
        {"use_bidirectional_attention": False},
        {"sliding_window": 8},
        {"layer_types": ["full_attention"] * 3},
        {"query_pre_attn_scalar": 10},
        {"rope_parameters": {"sliding_attention": {"rope_theta": 1e6}}},
        {"rms_norm_eps": 1e-2},
    ],
    ids=str,
)
def test_a_wrong_setting_would_be_seen(embedding: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    changed = load_checkpoint(edited(embedding, tmp_path, **settings)).encoder
    assert error(real_states(changed, 40), real_states(load_checkpoint(embedding).encoder, 40)) > VISIBLE
