"""EuroBERT against `transformers` in float64. What it has in common with other families is in test_families_text.py."""

from pathlib import Path
from typing import Any

import pytest
import torch

from heed.model import CheckpointError, load_checkpoint
from tests.checkpoints import DECODER_SIZES
from tests.oracle import BUDGET, VISIBLE, ask, edited, error, padded, random_ids, renamed, save


def save_eurobert(folder: Path, task: str = "Model", **settings: Any) -> Path:
    return save(folder, f"EuroBert{task}", "EuroBertConfig", **(DECODER_SIZES | settings))


def logits(folder: Path) -> torch.Tensor:
    mask = padded(20)
    with torch.no_grad():
        answer: torch.Tensor = load_checkpoint(folder).encoder.double()(random_ids(101, mask), mask)["logits"]
    return answer


@pytest.mark.parametrize("pooling", ["bos", "mean", "late"])
def test_sequence_classification(tmp_path: Path, pooling: str) -> None:
    folder = save_eurobert(tmp_path, "ForSequenceClassification", classifier_pooling=pooling)
    mask = padded(20)
    theirs = ask(folder, "EuroBertForSequenceClassification", input_ids=random_ids(101, mask), attention_mask=mask)
    assert error(logits(folder), theirs) < BUDGET


def test_late_pooling_is_another(tmp_path: Path) -> None:
    folder = save_eurobert(tmp_path / "a", "ForSequenceClassification")
    assert error(logits(edited(folder, tmp_path / "b", classifier_pooling="mean")), logits(folder)) > VISIBLE


@pytest.mark.parametrize("settings", [{"attention_bias": True, "mlp_bias": True}, {"num_key_value_heads": None}])
def test_settings_that_change_the_numbers(tmp_path: Path, settings: dict[str, Any]) -> None:
    folder, mask = save_eurobert(tmp_path, **settings), padded(20)
    ids = random_ids(101, mask)
    with torch.no_grad():
        ours = load_checkpoint(folder).encoder.double()(ids, mask)["last_hidden_state"]
    theirs = ask(folder, "EuroBertModel", input_ids=ids, attention_mask=mask)
    assert error(ours[mask.bool()], theirs[mask.bool()]) < BUDGET


def test_an_earlier_folder(tmp_path: Path) -> None:
    """Published with code, its base beside it and the head of its language model in it."""
    source = save_eurobert(tmp_path / "a", "ForMaskedLM", rope_parameters={"rope_type": "default", "rope_theta": 77.0})
    earlier = renamed(
        edited(source, tmp_path / "b", "rope_parameters", "dtype", rope_theta=77, rope_scaling=None, pretraining_tp=1,
               clip_qkv=None, mask_token="<|mask|>", pad_token="<|end_of_text|>",
               auto_map={"AutoModel": "modeling_eurobert.EuroBertModel"}),
        tmp_path / "c",
        {},
    )  # fmt: skip
    ids, mask = torch.arange(20)[None], torch.ones(1, 20, dtype=torch.long)
    with torch.no_grad():
        ours = load_checkpoint(earlier).encoder.double()(ids, mask)["last_hidden_state"]
    assert error(ours, ask(source, "EuroBertModel", input_ids=ids)) < BUDGET


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"pretraining_tp": 2}, "pretraining_tp"),
        ({"classifier_pooling": "max"}, "classifier_pooling='max'"),
        ({"clip_qkv": 8.0, "auto_map": {"AutoModel": "modeling.Model"}}, "clip_qkv"),
        ({"architectures": ["EuroBertForQuestionAnswering"], "auto_map": {"a": "b"}}, "EuroBertForQuestionAnswering"),
    ],
    ids=str,
)
def test_unsupported_settings_are_refused_by_name(tmp_path: Path, settings: dict[str, Any], named: str) -> None:
    folder = save_eurobert(tmp_path / "a", "ForSequenceClassification")
    with pytest.raises(CheckpointError, match=named):
        load_checkpoint(edited(folder, tmp_path / "b", **settings))
