"""Nomic BERT and GTE as they were published, with code: their keys and weights against `transformers`' own classes.

What both have in common with other families is tested in test_families_text.py.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from heed.model import CheckpointError, Encoder, load_checkpoint
from tests.oracle import BUDGET, VISIBLE, ask, edited, error, padded, random_ids, renamed, save, unrounded

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 70,
    "layer_norm_eps": 1e-3,
}
NOMIC: dict[str, Any] = {
    "activation_function": "swiglu",
    "architectures": ["NomicBertModel"],
    "attn_pdrop": 0.0,
    "auto_map": {"AutoModel": "modeling_hf_nomic_bert.NomicBertModel"},
    "bos_token_id": None,
    "causal": False,
    "dense_seq_output": True,
    "embd_pdrop": 0.0,
    "fused_bias_fc": True,
    "fused_dropout_add_ln": True,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-3,
    "max_trained_positions": 50,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "model_type": "nomic_bert",
    "n_embd": 24,
    "n_head": 3,
    "n_inner": 20,
    "n_layer": 3,
    "n_positions": 70,
    "pad_vocab_size_multiple": 16,
    "parallel_block": False,
    "parallel_block_tied_norm": False,
    "prenorm": False,
    "qkv_proj_bias": False,
    "reorder_and_upcast_attn": False,
    "resid_pdrop": 0.0,
    "rotary_emb_base": 500,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "summary_activation": None,
    "summary_first_dropout": 0.0,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "torch_dtype": "float32",
    "type_vocab_size": 2,
    "use_cache": True,
    "use_flash_attn": True,
    "use_rms_norm": False,
    "use_xentropy": True,
    "vocab_size": 61,
}
NEW: dict[str, Any] = {
    "architectures": ["NewModel"],
    "attention_probs_dropout_prob": 0.0,
    "auto_map": {"AutoModel": "Alibaba-NLP/new-impl--modeling.NewModel"},
    "classifier_dropout": None,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "initializer_range": 0.02,
    "layer_norm_type": "layer_norm",
    "logn_attention_clip1": False,
    "logn_attention_scale": False,
    "matryoshka_dimensions": [256],
    "model_type": "new",
    "pack_qkv": True,
    "pad_token_id": 0,
    "position_embedding_type": "rope",
    "rope_scaling": {"factor": 3.0, "type": "ntk"},
    "rope_theta": 700,
    "type_vocab_size": 0,
    "unpad_inputs": False,
    "use_memory_efficient_attention": False,
    **SIZES,
}


@pytest.fixture(scope="module")
def nomic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rope = {"rope_type": "default", "rope_theta": 500.0}
    return save(tmp_path_factory.mktemp("nomic"), "NomicBertModel", "NomicBertConfig", rope_parameters=rope, **SIZES)


@pytest.fixture(scope="module")
def gte(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rope = {"rope_type": "default", "rope_theta": 700.0}
    sizes = SIZES | {"type_vocab_size": 0, "pad_token_id": 0}
    return save(tmp_path_factory.mktemp("gte"), "GteModel", "GteConfig", rope_parameters=rope, **sizes)


def published(source: Path, folder: Path, config: dict[str, Any], prefix: str, **changes: Any) -> Path:
    """The same weights behind a prefix, with the config that came with the code."""
    renamed(source, folder, {"^": prefix})
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def ours(folder: Path, length: int) -> Tensor:
    mask = padded(length)
    return of(load_checkpoint(folder).encoder, mask)[mask.bool()]


def of(encoder: Encoder, mask: Tensor) -> Tensor:
    with torch.no_grad():
        hidden: Tensor = encoder.double()(random_ids(SIZES["vocab_size"], mask), mask)["last_hidden_state"]
    return hidden


def theirs(folder: Path, network: str, length: int) -> Tensor:
    mask = padded(length)
    return ask(folder, network, input_ids=random_ids(SIZES["vocab_size"], mask), attention_mask=mask)[mask.bool()]


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_nomic_as_it_was_published(nomic: Path, tmp_path: Path, prefix: str) -> None:
    """Its vocabulary is rounded up, too."""
    folder = published(nomic, tmp_path / "copy", NOMIC, prefix)
    assert error(ours(folder, 70), theirs(nomic, "NomicBertModel", 70)) < BUDGET
    assert load_checkpoint(folder).notes[0].startswith("auto_map names code")


def test_dynamic_scaling_bounds_the_rows_by_what_it_leaves_alone(nomic: Path, tmp_path: Path) -> None:
    encoder = load_checkpoint(published(nomic, tmp_path / "copy", NOMIC, "", rotary_scaling_factor=2.0)).encoder
    assert encoder.config.max_length == 50
    scaled = edited(nomic, tmp_path / "b", rope_parameters={"rope_type": "dynamic", "rope_theta": 500, "factor": 2.0})
    assert error(ours(scaled, 70), theirs(scaled, "NomicBertModel", 70)) < BUDGET


def test_nomic_with_biases(nomic: Path, tmp_path: Path) -> None:
    folder = published(nomic, tmp_path / "copy", NOMIC, "", qkv_proj_bias=True, mlp_fc2_bias=True)
    with pytest.raises(CheckpointError, match=r"the weights lack blocks\.0\.attention\.key\.bias"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"activation_function": "glu"},
        {"causal": True},
        {"num_experts": 8},
        {"prenorm": True},
        {"rotary_emb_fraction": 0.5},
        {"rotary_emb_interleaved": True},
        {"use_rms_norm": True},
        {"a_key_of_its_code": 1},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_what_nomic_s_code_does_otherwise_is_refused_by_name(
    nomic: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    (value,) = settings.values()
    with pytest.raises(CheckpointError, match=repr(value)):
        load_checkpoint(published(nomic, tmp_path / "copy", NOMIC, "", **settings))


def ask_scaled(folder: Path, length: int, base: float, factor: float) -> Tensor:
    """`transformers`' model with rates that are scaled by hand: it knows no NTK scaling by a fixed factor.

    The rate of pair i is `(base factor)^(-2i/H) factor^(-2/H)`, in float32 as the published code computes it.
    """
    import transformers

    model: Any = transformers.GteModel.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    width = SIZES["hidden_size"] // SIZES["num_attention_heads"]
    powers = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    rates = np.float32(1) / np.float32(base * factor) ** powers / np.float32(factor ** (2 / width))
    model.rotary_emb.inv_freq = torch.from_numpy(rates)
    mask = padded(length)
    with torch.no_grad(), unrounded():
        hidden: Tensor = model.eval()(input_ids=random_ids(SIZES["vocab_size"], mask), attention_mask=mask)[0]
    return hidden[mask.bool()]


@pytest.mark.parametrize("length", [1, 2, 70])
def test_gte_as_it_was_published(gte: Path, tmp_path: Path, length: int) -> None:
    """Its rates are rounded otherwise than numpy rounds powers: to 1e-7, in float32."""
    folder = published(gte, tmp_path / "copy", NEW, "new.")
    assert error(ours(folder, length), ask_scaled(gte, length, 700, 3.0)) < 1e-6


@pytest.mark.parametrize("scaling", [None, {"factor": 2.0, "type": "ntk"}])
def test_another_scaling_would_be_seen(gte: Path, tmp_path: Path, scaling: dict[str, Any] | None) -> None:
    folder = published(gte, tmp_path / "copy", NEW, "new.", rope_scaling=scaling)
    assert error(ours(folder, 70), ask_scaled(gte, 70, 700, 3.0)) > VISIBLE


def test_gte_without_scaling(gte: Path, tmp_path: Path) -> None:
    folder = published(gte, tmp_path / "copy", NEW, "new.", rope_scaling=None)
    assert error(ours(folder, 70), theirs(gte, "GteModel", 70)) < BUDGET


def test_bases_that_configs_leave_out(nomic: Path, gte: Path, tmp_path: Path) -> None:
    def base(folder: Path) -> float:
        (found,) = {
            getattr(layer.attention, "rotary_base", 0.0) for layer in load_checkpoint(folder).encoder.config.layers
        }
        return found

    assert base(edited(nomic, tmp_path / "a", "rope_parameters")) == 1000
    assert base(edited(gte, tmp_path / "b", "rope_parameters")) == 160_000
    assert base(edited(published(gte, tmp_path / "c", NEW, "new."), tmp_path / "d", "rope_theta")) == 10_000


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"rope_scaling": {"type": "ntk", "factor": 2.0, "mixed_b": 0.5}}, "mixed_b"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "yarn"),
        ({"rope_scaling": {"type": "ntk", "factor": -1}}, "factor of rope_scaling is -1"),
        ({"rope_scaling": "ntk"}, "rope_scaling='ntk' is not an object"),
        ({"rope_theta": 0}, "rotary base is 0"),
        ({"logn_attention_scale": True}, "logn_attention_scale"),
        ({"layer_norm_type": "rms_norm"}, "rms_norm"),
        ({"position_embedding_type": "absolute"}, "absolute"),
        ({"architectures": ["NewForMultipleChoice"]}, "NewForMultipleChoice"),
    ],
)
def test_what_gte_s_code_does_otherwise_is_refused_by_name(
    gte: Path, tmp_path: Path, settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(CheckpointError, match=named):
        load_checkpoint(published(gte, tmp_path / "copy", NEW, "new.", **settings))
