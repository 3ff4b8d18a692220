"""Qwen 2 and 3, and what their attention is made of: `transformers` in float64, and loops.

What they have in common with other families is tested in test_families_text.py.
"""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from heed.model import CheckpointError, Encoder, load_checkpoint
from heed.model.config import AttentionConfig, NormConfig
from heed.model.patterns import Causal
from tests.model.support import make_attention, noise, plan
from tests.model.support import padded as padded_layout
from tests.oracle import BUDGET, VISIBLE, ask, edited, error, padded, random_ids, renamed, save
from tests.support import add_pooling

Version = Literal["Qwen2", "Qwen3"]
SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 20,
    "max_position_embeddings": 70,
    "rms_norm_eps": 1e-3,
    "pad_token_id": 0,
}
QWEN3 = {"head_dim": 10, "attention_bias": True}


def save_qwen(folder: Path, version: Version, task: str = "Model", **settings: Any) -> Path:
    own = QWEN3 if version == "Qwen3" else {}
    return save(folder, f"{version}{task}", f"{version}Config", **(SIZES | own | settings))


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_qwen(tmp_path_factory.mktemp("qwen3"), "Qwen3")


def ids_of(mask: Tensor) -> Tensor:
    """Padding has the padding id, and nothing else has."""
    return (random_ids(SIZES["vocab_size"] - 1, mask) + 1) * mask


def ours_of(encoder: Encoder, mask: Tensor, output: str = "last_hidden_state") -> Tensor:
    with torch.no_grad():
        answer: Tensor = encoder.double()(ids_of(mask), mask)[output]
    return answer[mask.bool()] if output == "last_hidden_state" else answer


def assert_equal(folder: Path, network: str, length: int) -> None:
    mask = padded(length)
    theirs = ask(folder, network, input_ids=ids_of(mask), attention_mask=mask)[mask.bool()]
    assert error(ours_of(load_checkpoint(folder).encoder, mask), theirs) < BUDGET


WINDOWS: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}


@pytest.mark.parametrize("length", [1, 2, 4, 5, 6, 11, 70])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("version", ["Qwen2", "Qwen3"])
def test_windows_that_look_back_and_both_ways(tmp_path: Path, version: Version, causal: bool, length: int) -> None:
    assert_equal(save_qwen(tmp_path, version, is_causal=causal, **WINDOWS), f"{version}Model", length)


@pytest.mark.parametrize(
    "settings",
    [
        {"is_causal": False},
        {"num_key_value_heads": 6},
        {"num_key_value_heads": 1},
        {"attention_bias": False},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 55.5}},
        {"hidden_act": "gelu"},
        {
            "layer_types": ["sliding_attention", "full_attention", "full_attention"],
            "sliding_window": 3,
            "use_sliding_window": True,
        },
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_that_change_the_numbers(tmp_path: Path, settings: dict[str, Any]) -> None:
    assert_equal(save_qwen(tmp_path, "Qwen3", **settings), "Qwen3Model", 40)


def test_an_earlier_config(qwen3: Path, tmp_path: Path) -> None:
    """As Qwen3-Embedding has it, of before rope_parameters and layer_types."""
    folder = edited(
        qwen3, tmp_path / "a", "rope_parameters", "layer_types", "dtype",
        rope_theta=10_000, rope_scaling=None, torch_dtype="bfloat16", use_cache=True, transformers_version="4.51.3",
    )  # fmt: skip
    assert_equal(folder, "Qwen3Model", 40)
    prefixed = renamed(folder, tmp_path / "b", {"^": "model."})
    mask = padded(9)
    ours, theirs = (ours_of(load_checkpoint(each).encoder, mask) for each in (prefixed, folder))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_is_pooled_at_its_last_token_however_it_is_padded(qwen3: Path, tmp_path: Path, side: str) -> None:
    encoder = load_checkpoint(add_pooling(edited(qwen3, tmp_path / "copy"), "lasttoken")).encoder.double()
    ids, padding = torch.arange(3, 12)[None], torch.zeros(1, 4, dtype=torch.long)
    parts = [padding, ids] if side == "left" else [ids, padding]
    mask = torch.cat([torch.ones_like(part) * (part is ids) for part in parts], 1)
    with torch.no_grad():
        alone, beside = (encoder(*each)["sentence_embedding"] for each in ((ids,), (torch.cat(parts, 1), mask)))
    last = ask(qwen3, "Qwen3Model", input_ids=ids)[:, -1]
    assert error(alone, torch.nn.functional.normalize(last, dim=-1)) < BUDGET
    assert error(beside, alone) < 1e-6  # other rows of the tables of sines, which are in float32


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "rope_parameters": None}, "yarn"),
        ({"layer_types": ["sliding_attention"] * 3}, "use_sliding_window=False"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"num_key_value_heads": 4}, "6 heads cannot share 4"),
        ({"num_experts": 8}, "num_experts"),
        ({"is_causal": "no"}, "is_causal"),
        ({"architectures": ["Qwen3ForQuestionAnswering"]}, "Qwen3ForQuestionAnswering"),
    ],
    ids=str,
)
def test_unsupported_settings_are_refused_by_name(
    qwen3: Path, tmp_path: Path, settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(CheckpointError, match=named):
        load_checkpoint(edited(qwen3, tmp_path / "copy", **settings))


# The parts, by loops


@pytest.mark.parametrize("key_heads", [1, 2, 3, 6])
def test_heads_of_a_group_share_keys_and_values(key_heads: int) -> None:
    norm = NormConfig("rms", 1e-2)
    config = AttentionConfig(6, Causal(), key_heads=key_heads, head_norm=norm, head_width=4, value_width=3, bias=False)
    attention: Any = make_attention(config, 10)
    x, layout = noise(2, 5, 10), padded_layout(np.ones((2, 5), bool))
    query, key, value = (
        getattr(attention, name)(x).unflatten(-1, (heads, -1))
        for name, heads in (("query", 6), ("key", key_heads), ("value", key_heads))
    )
    outputs = []
    for head in range(6):
        shared = head * key_heads // 6
        q, k = (
            each / (each.square().mean(-1, keepdim=True) + 1e-2).sqrt() * own.norm.weight
            for each, own in ((query[:, :, head], attention.query_norm), (key[:, :, shared], attention.key_norm))
        )
        scores = (q @ k.mT / 2).masked_fill(~torch.ones(5, 5, dtype=torch.bool).tril(), -torch.inf)
        outputs.append(scores.softmax(-1) @ value[:, :, shared])
    assert error(attention(x, plan(layout)), attention.out(torch.cat(outputs, -1))) < BUDGET


def test_heads_share_keys_in_groups_of_one_size() -> None:
    with pytest.raises(ValueError, match="6 heads cannot share 4 key_heads in groups of one size"):
        AttentionConfig(6, key_heads=4)


# Controls: each of these faults would be seen


@pytest.mark.parametrize(
    "settings",
    [
        {"is_causal": False},
        {"rope_parameters": {"rope_theta": 100.0}},
        {"rms_norm_eps": 1e-2},
        {"hidden_act": "gelu"},
    ],
    ids=str,
)
def test_a_wrong_setting_would_be_seen(qwen3: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    mask = padded(40)
    changed = load_checkpoint(edited(qwen3, tmp_path, **settings)).encoder
    assert error(ours_of(changed, mask), ours_of(load_checkpoint(qwen3).encoder, mask)) > VISIBLE


def test_the_configs_of_the_two_differ(qwen3: Path, tmp_path: Path) -> None:
    """Read as Qwen 2, its head norms have no place."""
    assert json.loads((qwen3 / "config.json").read_text())["model_type"] == "qwen3"
    with pytest.raises(CheckpointError, match="attention_bias"):
        load_checkpoint(edited(qwen3, tmp_path / "a", model_type="qwen2", architectures=["Qwen2Model"]))
