"""Folders of sentence-transformers, read as its version 6.2 reads them.

Letters: D width.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from heed.model import CheckpointError, load_checkpoint
from heed.model.sentence_transformers_folder import Prompts
from tests import sentence_transformers_folders as folders

ANSWERS: dict[str, list[list[float]]] = json.loads(folders.ANSWERS.read_text())


@pytest.mark.parametrize("name", folders.FOLDERS)
def test_texts_are_answered_as_by_sentence_transformers(tmp_path: Path, name: str) -> None:
    checkpoint = load_checkpoint(folders.save(tmp_path, name))
    tokenizer = Tokenizer.from_buffer(checkpoint.tokenizer_json())
    tokenizer.enable_truncation(checkpoint.max_text_length)
    encoder = checkpoint.encoder.double()
    for text, expected_D in zip(folders.TEXTS, ANSWERS[name], strict=True):
        with torch.no_grad():
            answer_1D = encoder(torch.tensor([tokenizer.encode(text).ids]))["sentence_embedding"]
        np.testing.assert_allclose(answer_1D[0].numpy(), expected_D, rtol=0, atol=2e-7)


@pytest.mark.parametrize(
    ("file", "settings", "message"),
    [
        ("config_sentence_transformers.json", {"truncate_dim": 0}, "truncate_dim=0: dimensions must be a positive"),
        (
            "config_sentence_transformers.json",
            {"model_type": "SparseEncoder"},
            "model_type='SparseEncoder' is not",
        ),
        ("config_sentence_transformers.json", {"a": 1, "b": [2]}, r"a=1, b=\[2\] is not known to this version"),
        ("sentence_bert_config.json", {"query_length": 32}, "query_length=32 is not supported, only None"),
        (
            "sentence_bert_config.json",
            {"transformer_task": "fill-mask"},
            "transformer_task='fill-mask' is not",
        ),
        ("sentence_bert_config.json", {"model_args": {"pruned": 1}}, "model_args: pruned=1 is not known"),
        ("sentence_bert_config.json", {"config_kwargs": {"hidden_act": "relu"}}, "config_kwargs: hidden_act='relu' is"),
        ("sentence_bert_config.json", {"tokenizer_args": [1]}, "tokenizer_args holds list, expected an object"),
        (
            "sentence_bert_config.json",
            {"processing_kwargs": {"text": {"truncation": False}}},
            "processing_kwargs: text: truncation=False is not supported, only True, 'longest_first'",
        ),
        ("sentence_bert_config.json", {"mine": True}, "sentence_bert_config.json: mine=True is not known"),
        ("1_Pooling/config.json", {"pooling_mode": "cls+mean"}, r"pooling_mode='cls\+mean' is not supported, only cls"),
        ("1_Pooling/config.json", {"pooling_mode": []}, r"pooling_mode=\[\] is not supported"),
        ("1_Pooling/config.json", {"pooling_mode": [["cls"]]}, "pooling_mode=.* is not supported"),
        ("1_Pooling/config.json", {"weights": 1}, "1_Pooling/config.json: weights=1 is not known"),
        ("2_Normalize/config.json", {"module_input_name": "token_embeddings"}, "module_input_name='token_emb.* is not"),
    ],
)
def test_a_key_that_is_not_honoured_is_refused_by_name(
    tmp_path: Path, file: str, settings: dict[str, object], message: str
) -> None:
    folders.save(tmp_path, "cls")
    folders.write(tmp_path / file, **settings)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("file", "settings"),
    [
        ("sentence_bert_config.json", {"unpad_inputs": True, "model_args": {"torch_dtype": "float16"}}),
        (
            "sentence_bert_config.json",
            {
                "transformer_task": "feature-extraction",
                "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
                "module_output_name": "token_embeddings",
            },
        ),
        ("config_sentence_transformers.json", {"model_type": "SentenceTransformer", "similarity_fn_name": "dot"}),
    ],
)
def test_keys_that_cannot_matter_are_passed_over(tmp_path: Path, file: str, settings: dict[str, object]) -> None:
    plain = load_checkpoint(folders.save(tmp_path, "cls"))
    folders.write(tmp_path / file, **settings)
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.encoder.config == plain.encoder.config
    assert checkpoint.max_text_length == plain.max_text_length


def test_code_that_came_with_a_folder_is_refused(tmp_path: Path) -> None:
    folders.save(tmp_path, "cls")
    modules = json.loads((tmp_path / "modules.json").read_text())
    modules[0] |= {"type": "custom_st.Transformer", "kwargs": ["task"]}
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(CheckpointError, match=r"custom_st\.Transformer is code that came with the folder"):
        load_checkpoint(tmp_path)


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    note = "left out: the head of config.json's architectures, because modules.json pools"
    assert note not in load_checkpoint(folders.save(tmp_path / "a", "cls")).notes
    assert note in load_checkpoint(folders.save(tmp_path / "b", "classifier")).notes


def test_prompts_whose_tokens_are_not_pooled_are_left_out(tmp_path: Path) -> None:
    folders.save(tmp_path, "cls")
    folders.write(tmp_path / "1_Pooling/config.json", include_prompt=False)
    settings = tmp_path / "config_sentence_transformers.json"
    folders.write(settings, prompts={"query": "query: ", "document": "", "passage": None})
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.prompts == Prompts({"document": "", "passage": ""})
    assert "left out: the prompts query, because 1_Pooling does not pool their tokens" in checkpoint.notes
    folders.write(settings, default_prompt_name="query")
    with pytest.raises(CheckpointError, match="include_prompt=false is not supported beside the default"):
        load_checkpoint(tmp_path)
