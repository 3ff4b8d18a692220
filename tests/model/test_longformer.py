"""Longformer against an independent implementation: `transformers`, in float64."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from heed.model import CheckpointError, Encoder, load_checkpoint
from tests.oracle import BUDGET, VISIBLE, ask, edited, error, padded, random_ids, renamed, save

RADIUS = 6
SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 202,
    "attention_window": 2 * RADIUS,
    "pad_token_id": 1,
    "type_vocab_size": 2,
}
LENGTHS = [1, 2, RADIUS - 1, RADIUS, RADIUS + 1, 2 * RADIUS, 2 * RADIUS + 1, 17, 33, 8 * RADIUS, 101, 200]
OUTPUTS = {
    "Model": "last_hidden_state",
    "ForTokenClassification": "logits",
    "ForSequenceClassification": "logits",
}


def save_longformer(folder: Path, task: str = "Model", **settings: Any) -> Path:
    return save(folder, f"Longformer{task}", "LongformerConfig", **(SIZES | settings))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_longformer(tmp_path_factory.mktemp("longformer"))


@pytest.fixture(params=["dense", "in blocks"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """All pairs, or blocks at every length."""
    monkeypatch.setattr("heed.model.attention_plan.DENSE_COLUMNS", 512 if request.param == "dense" else 0)
    return str(request.param)


def inputs_of(length: int) -> dict[str, Tensor]:
    """Ids, the padding's own among them, token types, and masks of every kind."""
    mask = padded(length)
    return {
        "input_ids": random_ids(SIZES["vocab_size"], mask),
        "token_type_ids": random_ids(2, mask),
        "attention_mask": mask,
    }


def some_global(length: int) -> Tensor:
    """None in the first row, the first token, the last, a few, every third, and all: `[6, L]`, masked ones too."""
    mask = torch.zeros(6, length, dtype=torch.long)
    mask[1, 0] = mask[2, -1] = 1
    mask[3, [length // 3, length // 2, 2 * length // 3]] = 1
    mask[4, ::3] = 1
    mask[5] = 1
    return mask


def answer(encoder: Encoder, output: str, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        tensor: Tensor = encoder.double()(**inputs)[output]
    return tensor


def assert_equal(folder: Path, inputs: dict[str, Tensor], task: str = "Model") -> None:
    ours = answer(load_checkpoint(folder).encoder, OUTPUTS[task], inputs)
    theirs = ask(folder, f"Longformer{task}", **inputs)
    if task != "ForSequenceClassification":
        real = inputs["attention_mask"].bool()
        ours, theirs = ours[real], theirs[real]
    assert error(ours, theirs) < BUDGET


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("length", LENGTHS)
def test_without_global_tokens(plain: Path, length: int) -> None:
    assert_equal(plain, inputs_of(length))


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("length", LENGTHS)
def test_with_global_tokens(plain: Path, length: int) -> None:
    assert_equal(plain, inputs_of(length) | {"global_attention_mask": some_global(length)})


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("length", [1, 13, 50])
def test_a_mask_without_global_tokens(plain: Path, length: int) -> None:
    assert_equal(plain, inputs_of(length) | {"global_attention_mask": torch.zeros(6, length, dtype=torch.long)})


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("length", [2, 13, 50])
def test_a_window_for_each_layer(tmp_path: Path, length: int) -> None:
    folder = save_longformer(tmp_path, attention_window=[4, 16, 8])
    assert_equal(folder, inputs_of(length) | {"global_attention_mask": some_global(length)})


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("length", [1, 13, 50])
def test_sequence_classification_makes_the_first_token_global(tmp_path: Path, length: int) -> None:
    """A masked first column, too: it is not global, takes nothing, and is what the classifier reads."""
    folder = save_longformer(tmp_path, "ForSequenceClassification")
    assert_equal(folder, inputs_of(length), "ForSequenceClassification")


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("length", [1, 13, 50])
def test_sequence_classification_with_global_tokens(tmp_path: Path, length: int) -> None:
    folder = save_longformer(tmp_path, "ForSequenceClassification")
    inputs = inputs_of(length) | {"global_attention_mask": some_global(length)}
    assert_equal(folder, inputs, "ForSequenceClassification")


@pytest.mark.parametrize("length", [1, 13, 50])
def test_token_classification_has_no_global_tokens_of_its_own(tmp_path: Path, length: int) -> None:
    folder = save_longformer(tmp_path, "ForTokenClassification")
    assert_equal(folder, inputs_of(length), "ForTokenClassification")
    inputs = inputs_of(length) | {"global_attention_mask": some_global(length)}
    assert_equal(folder, inputs, "ForTokenClassification")


@pytest.mark.parametrize("settings", [{"hidden_act": "gelu_new"}, {"layer_norm_eps": 1e-2}, {"type_vocab_size": 3}])
def test_settings_that_change_the_numbers(tmp_path: Path, settings: dict[str, Any]) -> None:
    assert_equal(save_longformer(tmp_path, **settings), inputs_of(50))


def test_the_encoder_of_a_language_model(tmp_path: Path) -> None:
    folder = save_longformer(tmp_path, "ForMaskedLM")
    inputs = inputs_of(50)
    ours = answer(load_checkpoint(folder).encoder, "last_hidden_state", inputs)
    theirs = ask(folder, "LongformerModel", **inputs)
    real = inputs["attention_mask"].bool()
    assert error(ours[real], theirs[real]) < BUDGET


def test_the_longest_row_is_that_of_the_positions(plain: Path) -> None:
    assert load_checkpoint(plain).encoder.config.max_length == 200


def test_an_earlier_folder(plain: Path, tmp_path: Path) -> None:
    """As those of 2020: settings that nothing reads, a buffer beside the weights, the prefix of a model with a head."""
    folder = edited(
        renamed(plain, tmp_path / "prefixed", {"^": "longformer."}),
        tmp_path / "earlier",
        attention_mode="longformer",
        ignore_attention_mask=False,
        gradient_checkpointing=False,
        sep_token_id=2,
        attention_window=[2 * RADIUS] * 3,
        architectures=["LongformerForMaskedLM"],
    )
    weights = load_file(folder / "model.safetensors")
    weights["longformer.embeddings.position_ids"] = torch.arange(202)[None]
    weights["lm_head.bias"] = torch.zeros(60)
    save_file(weights, folder / "model.safetensors")
    inputs = inputs_of(50)
    ours, theirs = (answer(load_checkpoint(each).encoder, "last_hidden_state", inputs) for each in (folder, plain))
    assert torch.equal(ours, theirs)


# What is not computed is refused by name


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"attention_window": 7}, "attention_window=7"),
        ({"attention_window": 0}, "attention_window=0"),
        ({"attention_window": [4, 4]}, "attention_window"),
        ({"attention_window": [4, 4, 5]}, "attention_window"),
        ({"attention_mode": "sliding_chunks"}, "attention_mode"),
        ({"ignore_attention_mask": True}, "ignore_attention_mask"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"architectures": ["LongformerForQuestionAnswering"]}, "LongformerForQuestionAnswering"),
    ],
)
def test_unsupported_settings_are_refused_by_name(
    plain: Path, tmp_path: Path, settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(CheckpointError, match=named):
        load_checkpoint(edited(plain, tmp_path / "copy", **settings))


def test_a_missing_global_projection_is_refused_by_name(plain: Path, tmp_path: Path) -> None:
    folder = edited(plain, tmp_path / "copy")
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.attention.self.key_global.bias"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"blocks\.1\.attention\.key_global\.bias"):
        load_checkpoint(folder)


# Controls: each of these faults would be seen


def difference(plain: Path, changed: Encoder) -> float:
    inputs = inputs_of(50) | {"global_attention_mask": some_global(50)}
    right = answer(load_checkpoint(plain).encoder, "last_hidden_state", inputs)
    return error(answer(changed, "last_hidden_state", inputs), right)


@pytest.mark.parametrize("window", [2 * RADIUS - 2, 2 * RADIUS + 2])
def test_another_window_would_be_seen(plain: Path, tmp_path: Path, window: int) -> None:
    changed = load_checkpoint(edited(plain, tmp_path / "copy", attention_window=window))
    assert difference(plain, changed.encoder) > VISIBLE


@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_global_tokens_without_projections_of_their_own_would_be_seen(plain: Path, name: str) -> None:
    encoder: Any = load_checkpoint(plain).encoder
    attention = encoder.blocks[1].attention
    setattr(attention, f"{name}_global", getattr(attention, name))
    assert difference(plain, encoder) > VISIBLE


def test_positions_by_column_would_be_seen(plain: Path, tmp_path: Path) -> None:
    changed = load_checkpoint(edited(plain, tmp_path / "copy", pad_token_id=2))
    assert difference(plain, changed.encoder) > VISIBLE


def test_a_masked_global_token_is_none(plain: Path) -> None:
    encoder = load_checkpoint(plain).encoder
    inputs = inputs_of(50)
    masked = 1 - inputs["attention_mask"]
    ours = answer(encoder, "last_hidden_state", inputs | {"global_attention_mask": masked})
    assert torch.equal(ours, answer(encoder, "last_hidden_state", inputs))
