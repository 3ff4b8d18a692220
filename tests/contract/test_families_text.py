"""Every text family and architecture, exported and served: over gRPC, tensors, texts and pairs are answered as
`transformers` answers them in float64."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from heed.bundle.sequence_packing import Arrays
from heed.client import Client
from tests.bundles import export_bundle
from tests.checkpoints import PUBLISHED, Task, oracle_answer, random_inputs, save_family
from tests.contract.support import BUDGET
from tests.support import run_server
from tests.tokenizers import save_byte_bpe, save_unigram, save_wordpiece

TOKENIZERS: dict[str, Callable[[Path], int]] = {
    "bert": save_wordpiece,
    "roberta": save_byte_bpe,
    "xlm-roberta": save_unigram,
    "camembert": save_unigram,
    "distilbert": save_wordpiece,  # with token types, which this family does not have
    "electra": save_wordpiece,
    "mpnet": save_unigram,
    "nomic_bert": save_wordpiece,
    "gte": save_unigram,
    "deberta-v2": save_unigram,
    "qwen2": save_byte_bpe,
    "qwen3": save_byte_bpe,
    "gemma3_text": save_unigram,
    "eurobert": save_byte_bpe,
}

TEXTS = ["I saw a saw.", "", "naïve cafés & 🦊", "the quick brown fox jumped over"]
PAIRS = ["The fox saw nothing.", "a query", "", "3.14"]

# Each family once; the other architectures take their time.
SOON = {
    ("bert", "sequence"),
    ("roberta", "token"),
    ("xlm-roberta", "encoder"),
    ("camembert", "sequence"),
    ("distilbert", "token"),
    ("electra", "sequence"),
    ("mpnet", "encoder"),
    ("nomic_bert", "sequence"),
    ("gte", "encoder"),
    ("deberta-v2", "sequence"),
    ("qwen2", "token"),
    ("qwen3", "sequence"),
    ("gemma3_text", "encoder"),
    ("eurobert", "sequence"),
}
CASES = [
    pytest.param(family, task, marks=[] if (family, task) in SOON else pytest.mark.long)
    for family in PUBLISHED
    for task in PUBLISHED[family].tasks
]


def assert_close(answer: np.ndarray, reference: np.ndarray) -> None:
    assert answer.dtype == np.float32
    assert answer.shape == reference.shape
    budget = BUDGET * max(1.0, float(np.abs(reference).max()))
    assert float(np.abs(answer - reference).max()) <= budget


def of_transformers(source: Path, task: Task, inputs: Arrays) -> np.ndarray:
    """Its answer in float64, zeros at padding."""
    answer = oracle_answer(source, task, {name: torch.from_numpy(array) for name, array in inputs.items()}).numpy()
    real = inputs["attention_mask"].astype(bool)
    return answer if task == "sequence" else np.where(real[:, :, None], answer, 0.0)


def tensors(family: str, length: int) -> Arrays:
    """Rows padded right, left and in holes."""
    return {name: tensor.numpy() for name, tensor in random_inputs(family, length).items()}


def rows_to_compare(family: str, task: Task, inputs: Arrays) -> np.ndarray:
    """All but those whose first column is padding, where a classifier reads the first real token instead."""
    return inputs["attention_mask"][:, 0].astype(bool) | ((family, task) != ("deberta-v2", "sequence"))


def tokenized(source: Path, family: str, text: str, pair: str | None) -> Arrays:
    """One row, by `transformers`' own reading of the tokenizer."""
    kind: Any = PreTrainedTokenizerFast
    tokenizer = kind(tokenizer_file=str(source / "tokenizer.json"))
    # In lists: beside a text alone it takes an empty pair for none.
    rows = tokenizer([text], None if pair is None else [pair], return_token_type_ids=True)
    names = ["input_ids", "attention_mask"] + ["token_type_ids"] * PUBLISHED[family].types
    return {name: np.array(rows[name]) for name in names}


def expected_labels(logits: np.ndarray) -> list[str]:
    return [("red", "green", "blue")[best] for best in logits.argmax(-1)]


@pytest.mark.parametrize(("family", "task"), CASES)
def test_a_served_family_answers_as_transformers(tmp_path: Path, family: str, task: Task) -> None:
    source = tmp_path / "source"
    source.mkdir()
    vocabulary = TOKENIZERS[family](source)
    save_family(source, family, task, num_hidden_layers=1, layer_types=None, vocab_size=vocabulary)
    output = "last_hidden_state" if task == "encoder" else "logits"
    with (
        run_server(export_bundle(source, tmp_path / "bundle"), tmp_path / "log") as server,
        Client(server.address, "bundle") as client,
    ):
        for length in (1, 2, 9, 40):
            inputs = tensors(family, length)
            rows = rows_to_compare(family, task, inputs)
            found, expected = client.infer(inputs, [output])[output], of_transformers(source, task, inputs)
            assert_close(found[rows], expected[rows])
        for pairs in (None, PAIRS):
            texts: Arrays = {"text": np.array(TEXTS)} | ({} if pairs is None else {"text_pair": np.array(pairs)})
            answer = client.infer(texts)
            for row, text in enumerate(TEXTS):
                inputs = tokenized(source, family, text, None if pairs is None else pairs[row])
                expected = of_transformers(source, task, inputs)[0]
                length = inputs["input_ids"].shape[1]
                found = answer[output][row]
                assert_close(found if task == "sequence" else found[:length], expected)
                if task == "sequence":
                    assert answer["labels"][row] == expected_labels(expected[None])[0]
                elif task == "token":
                    assert list(answer["labels"][row][:length]) == expected_labels(expected)
        assert_bits_do_not_depend_on_neighbours(client, texts, output)


def assert_bits_do_not_depend_on_neighbours(client: Client, texts: Arrays, output: str) -> None:
    together = client.infer(texts, [output])[output]
    for row in range(len(TEXTS)):
        alone = client.infer({name: array[row : row + 1] for name, array in texts.items()}, [output])[output][0]
        assert np.array_equal(alone, together[row][: len(alone)])
