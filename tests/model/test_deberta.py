"""DeBERTa and its attention by content and distance, against `transformers` in float64.

What it has in common with other families is tested in test_families_text.py.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from heed.model import CheckpointError, load_checkpoint
from heed.model.config import (
    AttentionConfig,
    DisentangledConfig,
    DistancesConfig,
    EncoderConfig,
    FeedForwardConfig,
    LayerConfig,
    TokensConfig,
)
from heed.model.disentangled_attention import folded_distances, shifted
from tests.model.support import assert_states_equal, noise, real_states
from tests.oracle import BUDGET, VISIBLE, ask, edited, error, padded, random_ids, save

SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 70,
    "layer_norm_eps": 1e-3,
    "position_biased_input": False,
    "relative_attention": True,
    "pos_att_type": "p2c|c2p",
}
V3: dict[str, Any] = {"position_buckets": 8, "share_att_key": True, "norm_rel_ebd": "layer_norm"}


def save_deberta(folder: Path, task: str = "Model", **settings: Any) -> Path:
    return save(folder, f"DebertaV2{task}", "DebertaV2Config", **(SIZES | settings))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_deberta(tmp_path_factory.mktemp("deberta"), **V3)


def assert_equal(folder: Path, length: int) -> None:
    assert_states_equal(folder, "DebertaV2Model", length)


@pytest.mark.parametrize("length", [1, 2, 4, 5, 9, 33, 70])
def test_hidden_states_around_the_buckets(plain: Path, length: int) -> None:
    assert_equal(plain, length)


@pytest.mark.parametrize("length", [2, 70])
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="a row for each distance"),
        pytest.param({"max_relative_positions": 6}, id="and one for all that are farther"),
        pytest.param({"max_relative_positions": 60, "position_buckets": 9}, id="projections of their own"),
        pytest.param({"pos_att_type": ["c2p"]} | V3, id="content to position alone"),
        pytest.param({"pos_att_type": "P2C"}, id="position to content alone"),
        pytest.param({"position_biased_input": True, "type_vocab_size": 2} | V3, id="positions and types, too"),
        pytest.param({"relative_attention": False, "pos_att_type": None, "position_biased_input": True}, id="BERT"),
    ],
)
def test_settings_that_change_the_numbers(tmp_path: Path, settings: dict[str, Any], length: int) -> None:
    assert_equal(save_deberta(tmp_path, **settings), length)


def test_the_activation_of_the_pooler(tmp_path: Path) -> None:
    folder = save_deberta(tmp_path, "ForSequenceClassification", pooler_hidden_act="relu", **V3)
    mask = padded(20)
    ids = random_ids(60, mask)
    with torch.no_grad():
        ours = load_checkpoint(folder).encoder.double()(ids, mask)["logits"]
    theirs = ask(folder, "DebertaV2ForSequenceClassification", input_ids=ids, attention_mask=mask)
    read_alike = mask[:, 0].bool()
    assert error(ours[read_alike], theirs[read_alike]) < BUDGET


def test_a_classifier_reads_the_same_token_however_a_row_is_padded(tmp_path: Path) -> None:
    encoder = load_checkpoint(save_deberta(tmp_path, "ForSequenceClassification", **V3)).encoder.double()
    ids, padding = torch.arange(2, 9)[None], torch.zeros(1, 3, dtype=torch.long)
    mask = torch.cat([padding, torch.ones_like(ids)], 1)
    with torch.no_grad():
        alone, behind = encoder(ids), encoder(torch.cat([padding, ids], 1), mask)
    assert error(behind["logits"], alone["logits"]) < BUDGET


def test_positions_that_are_not_added_may_be_in_the_folder(plain: Path, tmp_path: Path) -> None:
    """As in DeBERTa-v3's own folders, of the generator that it was trained with."""
    edited(plain, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["embeddings.position_embeddings.weight"] = torch.zeros(70, 24)
    weights["mask_predictions.dense.weight"] = torch.zeros(24, 24)
    save_file(weights, tmp_path / "model.safetensors")
    assert torch.equal(
        real_states(load_checkpoint(tmp_path).encoder, 9), real_states(load_checkpoint(plain).encoder, 9)
    )


@pytest.mark.parametrize(("buckets", "farthest"), [(256, 512), (8, 70), (9, 70), (32, 64)])
def test_distances_have_the_rows_of_transformers(buckets: int, farthest: int) -> None:
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    distances = torch.arange(-600, 601)
    oracle: Any = make_log_bucket_position
    theirs = (oracle(distances, buckets, farthest).long() + buckets).clamp(0, 2 * buckets - 1)
    assert torch.equal(DistancesConfig(buckets, farthest).rows(distances), theirs)


@pytest.mark.parametrize("length", [1, 2, 7])
def test_places_of_distances_are_shifted_to_columns(length: int) -> None:
    places = noise(2, 3, length, 2 * length)
    found = shifted(places)
    assert found.shape == (2, 3, length, length)
    for i in range(length):
        for j in range(length):
            assert torch.equal(found[:, :, i, j], places[:, :, i, j - i + length - 1])


def test_folded_distances_answer_the_same_and_do_not_stay(plain: Path) -> None:
    encoder = load_checkpoint(plain).encoder
    attention: Any = encoder.blocks[1].attention
    with folded_distances(encoder):
        assert [each.shape for each in attention.folded] == [(16, 24)] * 2
        folded = encoder(torch.arange(9)[None])["last_hidden_state"]
    assert attention.folded is None
    assert error(folded, encoder(torch.arange(9)[None])["last_hidden_state"]) < 1e-5


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"conv_kernel_size": 3}, "conv_kernel_size=3"),
        ({"norm_rel_ebd": "rms_norm"}, "rms_norm"),
        ({"pos_att_type": "p2p"}, "p2p"),
        ({"pos_att_type": None}, "pos_att_type"),
        ({"relative_attention": False}, "relative_attention"),
        ({"architectures": ["DebertaV2ForQuestionAnswering"]}, "DebertaV2ForQuestionAnswering"),
    ],
    ids=str,
)
def test_unsupported_settings_are_refused_by_name(
    plain: Path, tmp_path: Path, settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(CheckpointError, match=named):
        load_checkpoint(edited(plain, tmp_path / "copy", **settings))


LAYER = LayerConfig(DisentangledConfig(2), FeedForwardConfig(8))


@pytest.mark.parametrize(
    "options",
    [
        {"layers": (LAYER,)},
        {"layers": (LAYER, LayerConfig(AttentionConfig(2), FeedForwardConfig(8))), "relative_bias": DistancesConfig(4)},
    ],
)
def test_distances_and_the_layers_that_read_them_go_together(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="goes with disentangled attention, in all layers"):
        EncoderConfig(inputs=TokensConfig(9), width=8, max_length=9, **options)


# Controls: each of these faults would be seen


@pytest.mark.parametrize("settings", [{"max_relative_positions": 30}, {"pos_att_type": "c2p"}], ids=str)
def test_a_wrong_setting_would_be_seen(plain: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    changed = load_checkpoint(edited(plain, tmp_path, **settings)).encoder
    assert error(real_states(changed, 70), real_states(load_checkpoint(plain).encoder, 70)) > VISIBLE
