"""What makes scores of a classifier's logits, by what its folder says."""

from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig, BertForSequenceClassification, BertForTokenClassification

from heed.model import CheckpointError, load_checkpoint
from heed.model.classification_head import LabelsConfig
from tests.sentence_transformers_folders import write
from tests.support import save_tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
SIGMOID = "torch.nn.modules.activation.Sigmoid"
IDENTITY = "torch.nn.modules.linear.Identity"


def save_classifier(folder: Path, labels: int, network: Any = BertForSequenceClassification, **config: Any) -> Path:
    network(BertConfig(**(SIZES | {"num_labels": labels}))).save_pretrained(folder)
    write(folder / "config.json", **config)
    return folder


def activation(folder: Path) -> str:
    head = load_checkpoint(folder).encoder.config.head
    assert isinstance(head, LabelsConfig)
    return head.activation


@pytest.mark.parametrize(
    ("problem", "labels"),
    [
        *((problem, labels) for problem in (None, "regression", "multi_label_classification") for labels in (1, 3)),
        ("single_label_classification", 3),
    ],
)
def test_scores_are_those_of_the_pipeline(tmp_path: Path, problem: str | None, labels: int) -> None:
    import transformers

    save_classifier(tmp_path, labels, problem_type=problem)
    save_tokenizer(tmp_path)
    pipeline = transformers.pipeline("text-classification", str(tmp_path))
    (said,) = (name for name in ("none", "sigmoid", "softmax") if _same(pipeline, name))
    assert activation(tmp_path) == said


def _same(pipeline: Any, name: str) -> bool:
    """Whether a pipeline does by itself what it does if it is told so."""
    ours = {row["label"]: row["score"] for row in pipeline("a fox saw", top_k=None)}
    told = {row["label"]: row["score"] for row in pipeline("a fox saw", top_k=None, function_to_apply=name)}
    return ours == told


@pytest.mark.parametrize(
    ("config", "folder", "expected"),
    [
        ({"sbert_ce_default_activation_function": IDENTITY}, None, "none"),
        ({"sentence_transformers": {"activation_fn": IDENTITY, "version": "4.1"}}, None, "none"),
        ({"sentence_transformers": {"version": "4.1"}}, None, "sigmoid"),
        ({"sentence_transformers": {"activation_fn": SIGMOID}, "problem_type": "regression"}, None, "sigmoid"),
        ({"sbert_ce_default_activation_function": IDENTITY}, SIGMOID, "sigmoid"),
        ({}, IDENTITY, "none"),
    ],
)
def test_a_cross_encoders_own_activation_counts_first(
    tmp_path: Path, config: dict[str, Any], folder: str | None, expected: str
) -> None:
    save_classifier(tmp_path, 1, **config)
    if folder:  # as version 6 saves it
        module = {
            "idx": 0,
            "name": "0",
            "path": "",
            "type": "sentence_transformers.base.modules.transformer.Transformer",
        }
        (tmp_path / "modules.json").write_text(f"[{str(module).replace(chr(39), chr(34))}]")
        write(
            tmp_path / "config_sentence_transformers.json", model_type="CrossEncoder", activation_fn=folder, prompts={}
        )
        write(tmp_path / "sentence_bert_config.json", transformer_task="sequence-classification")
    assert activation(tmp_path) == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"problem_type": "ranking"}, "problem_type='ranking' is none of multi_label_classification, regression"),
        (
            {"sbert_ce_default_activation_function": "torch.nn.modules.activation.GELU"},
            "activation of scores 'torch.*GELU'",
        ),
    ],
)
def test_another_function_is_refused_by_name(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    save_classifier(tmp_path, 1, **config)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path)


def test_tokens_have_shares_of_labels_whatever_the_problem(tmp_path: Path) -> None:
    save_classifier(tmp_path, 3, BertForTokenClassification, problem_type="multi_label_classification")
    assert activation(tmp_path) == "softmax"


def test_an_unknown_activation_of_ones_own_is_refused() -> None:
    with pytest.raises(ValueError, match="score_activation 'tanh' is none of none, sigmoid, softmax"):
        LabelsConfig(("a",), "sequence", score_activation="tanh")  # type: ignore[arg-type]
