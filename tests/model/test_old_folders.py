"""Checkpoints as they were published before: other names of weights, prefixes, buffers, and configs of their time."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from heed.model import load_checkpoint
from tests.checkpoints import PUBLISHED, Task, random_inputs, save_family

Tensors = dict[str, Tensor]


def answer(folder: Path, family: str) -> dict[str, Tensor]:
    with torch.no_grad():
        answers: dict[str, Tensor] = load_checkpoint(folder).encoder(**random_inputs(family, 9))
    return answers


def rewrite(folder: Path, rename: Callable[[str], str], beside: Tensors, config: dict[str, Any]) -> None:
    """Other names, weights beside the model, and another config."""
    weights, settings = folder / "model.safetensors", folder / "config.json"
    tensors = {rename(name): tensor for name, tensor in load_file(weights).items()}
    assert not tensors.keys() & beside.keys()
    save_file(tensors | beside, weights)
    settings.write_text(json.dumps(config))


def of_2018(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


POSITION_IDS = torch.arange(40)[None]

# bert-base-uncased: saved with its pre-training heads, in names of 2018.
BERT_2018 = {
    "architectures": ["BertForMaskedLM"],
    "attention_probs_dropout_prob": 0.1,
    "gradient_checkpointing": False,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 30,
    "initializer_range": 0.02,
    "intermediate_size": 37,
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 40,
    "model_type": "bert",
    "num_attention_heads": 3,
    "num_hidden_layers": 3,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "transformers_version": "4.6.0.dev0",
    "type_vocab_size": 2,
    "use_cache": True,
    "vocab_size": 101,
}

# bert-base-multilingual: with the settings of a pooler that no code for PyTorch reads.
BERT_MULTILINGUAL = BERT_2018 | {
    "directionality": "bidi",
    "pooler_fc_size": 768,
    "pooler_num_attention_heads": 12,
    "pooler_num_fc_layers": 3,
    "pooler_size_per_head": 128,
    "pooler_type": "first_token_transform",
}

# xlm-roberta-large-finetuned-conll03-english: every setting of its time, with those of generation.
XLM_ROBERTA_2019 = {
    "_num_labels": 3,
    "architectures": ["XLMRobertaForTokenClassification"],
    "attention_probs_dropout_prob": 0.1,
    "bad_words_ids": None,
    "bos_token_id": 0,
    "do_sample": False,
    "early_stopping": False,
    "eos_token_id": 2,
    "eos_token_ids": 0,
    "finetuning_task": None,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 30,
    "id2label": {"0": "B-LOC", "1": "B-MISC", "2": "O"},
    "initializer_range": 0.02,
    "intermediate_size": 37,
    "is_decoder": False,
    "label2id": {"B-LOC": 0, "B-MISC": 1, "O": 2},
    "layer_norm_eps": 1e-5,
    "length_penalty": 1.0,
    "max_length": 20,
    "max_position_embeddings": 42,
    "min_length": 0,
    "model_type": "xlm-roberta",
    "no_repeat_ngram_size": 0,
    "num_attention_heads": 3,
    "num_beams": 1,
    "num_hidden_layers": 3,
    "num_return_sequences": 1,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_past": True,
    "pad_token_id": 1,
    "pruned_heads": {},
    "repetition_penalty": 1.0,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "torchscript": False,
    "type_vocab_size": 1,
    "use_bfloat16": False,
    "vocab_size": 101,
}

# distilbert-base-uncased-finetuned-sst-2-english.
DISTILBERT_2019 = {
    "activation": "gelu",
    "architectures": ["DistilBertForSequenceClassification"],
    "attention_dropout": 0.1,
    "dim": 30,
    "dropout": 0.1,
    "finetuning_task": "sst-2",
    "hidden_dim": 37,
    "id2label": {"0": "NEGATIVE", "1": "NEUTRAL", "2": "POSITIVE"},
    "initializer_range": 0.02,
    "label2id": {"NEGATIVE": 0, "NEUTRAL": 1, "POSITIVE": 2},
    "max_position_embeddings": 40,
    "model_type": "distilbert",
    "n_heads": 3,
    "n_layers": 3,
    "output_past": True,
    "pad_token_id": 0,
    "qa_dropout": 0.1,
    "seq_classif_dropout": 0.2,
    "sinusoidal_pos_embds": False,
    "tie_weights_": True,
    "vocab_size": 101,
}

# google/electra-small-discriminator.
ELECTRA_2020 = {
    "architectures": ["ElectraForPreTraining"],
    "attention_probs_dropout_prob": 0.1,
    "embedding_size": 17,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 30,
    "initializer_range": 0.02,
    "intermediate_size": 37,
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 40,
    "model_type": "electra",
    "num_attention_heads": 3,
    "num_hidden_layers": 3,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "summary_activation": "gelu",
    "summary_last_dropout": 0.1,
    "summary_type": "first",
    "summary_use_proj": True,
    "transformers_version": "4.3.0.dev0",
    "type_vocab_size": 2,
    "vocab_size": 101,
}

# sentence-transformers/all-mpnet-base-v2.
MPNET_2021 = {
    "_name_or_path": "microsoft/mpnet-base",
    "architectures": ["MPNetForMaskedLM"],
    "attention_probs_dropout_prob": 0.1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "gradient_checkpointing": False,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 30,
    "initializer_range": 0.02,
    "intermediate_size": 37,
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 42,
    "model_type": "mpnet",
    "num_attention_heads": 3,
    "num_hidden_layers": 3,
    "pad_token_id": 1,
    "relative_attention_num_buckets": 32,
    "torch_dtype": "float32",
    "transformers_version": "4.8.2",
    "vocab_size": 101,
}


@pytest.mark.parametrize(
    ("family", "task", "rename", "beside", "config"),
    [
        (
            "bert",
            "encoder",
            lambda name: of_2018(f"bert.{name}"),
            {
                "bert.embeddings.position_ids": POSITION_IDS,
                "cls.predictions.bias": torch.zeros(101),
                "cls.predictions.transform.LayerNorm.gamma": torch.zeros(30),
                "cls.seq_relationship.weight": torch.zeros(2, 30),
            },
            BERT_2018,
        ),
        ("bert", "encoder", lambda name: name, {"embeddings.position_ids": POSITION_IDS}, BERT_MULTILINGUAL),
        (
            "xlm-roberta",
            "token",
            lambda name: name,
            {
                "roberta.embeddings.position_ids": POSITION_IDS,
                "roberta.pooler.dense.weight": torch.zeros(30, 30),
                "roberta.pooler.dense.bias": torch.zeros(30),
            },
            XLM_ROBERTA_2019,
        ),
        ("distilbert", "sequence", lambda name: name, {}, DISTILBERT_2019),
        (
            "electra",
            "encoder",
            lambda name: f"electra.{name}",
            {
                "electra.embeddings.position_ids": POSITION_IDS,
                "discriminator_predictions.dense.weight": torch.zeros(30, 30),
                "generator_predictions.dense.weight": torch.zeros(17, 30),
                "generator_lm_head.weight": torch.zeros(101, 17),
            },
            ELECTRA_2020,
        ),
        (
            "mpnet",
            "encoder",
            lambda name: f"mpnet.{name}",
            {"mpnet.embeddings.position_ids": POSITION_IDS, "lm_head.bias": torch.zeros(101)},
            MPNET_2021,
        ),
    ],
)
def test_a_folder_of_earlier_days_answers_the_same(
    tmp_path: Path,
    family: str,
    task: Task,
    rename: Callable[[str], str],
    beside: Tensors,
    config: dict[str, Any],
) -> None:
    folder = save_family(tmp_path, family, task)
    expected = answer(folder, family)
    rewrite(folder, rename, beside, config)
    found = answer(folder, family)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor)


PREFIXES = {
    **dict.fromkeys(("xlm-roberta", "camembert"), ("roberta",)),
    **dict.fromkeys(("qwen2", "qwen3", "gemma3_text", "eurobert"), ("model",)),
    "deberta-v2": ("deberta",),
    "gte": ("gte", "new"),
    "nomic_bert": ("nomic_bert", "bert"),
}


@pytest.mark.parametrize("family", PUBLISHED)
def test_the_prefix_of_a_family_may_be_there_or_not(tmp_path: Path, family: str) -> None:
    """`transformers` leaves it out for encoders and writes it for classifiers."""
    folder = save_family(tmp_path, family)
    expected = answer(folder, family)["last_hidden_state"]
    whole = (folder / "model.safetensors").read_bytes()
    config = json.loads((folder / "config.json").read_text())
    for prefix in PREFIXES.get(family, (family,)):
        (folder / "model.safetensors").write_bytes(whole)
        rewrite(folder, lambda name, prefix=prefix: f"{prefix}.{name}", {}, config)  # type: ignore[misc]
        assert torch.equal(answer(folder, family)["last_hidden_state"], expected)
