"""The reference against an independent implementation: `transformers`, in float64."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

from heed.bundle.contract import error_of
from heed.model import load_checkpoint
from heed.model.embeddings import TokensConfig
from tests.support import save_bert, save_roberta

BUDGET = 1e-9  # both sides in float64


def masks(length: int) -> torch.Tensor:
    """Rows without padding, padded right, left, in holes, and with one real token: `[5, L]`."""
    mask = torch.ones(5, length, dtype=torch.long)
    mask[1, length // 2 + 1 :] = 0
    mask[2, : length // 2] = 0
    mask[3, ::3] = 0
    mask[3, 1] = 1
    mask[4, 1:] = 0
    return mask


def assert_equal_to_transformers(folder: Path, length: int) -> None:
    encoder = load_checkpoint(folder).encoder.double()
    oracle = AutoModel.from_pretrained(folder, dtype=torch.float64).eval()
    generator = torch.Generator().manual_seed(length)
    inputs = encoder.config.inputs
    assert isinstance(inputs, TokensConfig)
    ids = torch.randint(0, inputs.vocabulary, (5, length), generator=generator)
    types = torch.randint(0, inputs.token_types, (5, length), generator=generator)
    mask = masks(length)
    with torch.no_grad():
        ours = encoder(ids, mask, types)["last_hidden_state"]
        theirs = oracle(ids, attention_mask=mask, token_type_ids=types).last_hidden_state
    real = mask.bool()
    assert error_of(ours[real].numpy(), theirs[real].numpy()) < BUDGET
    assert not ours[~real].any()


@pytest.mark.parametrize("length", [2, 3, 17, 256, 512])
def test_minilm_is_equal_to_transformers(minilm: Path, length: int) -> None:
    assert_equal_to_transformers(minilm, length)


@pytest.mark.parametrize("length", [2, 9, 40])
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "silu"])
def test_bert_is_equal_to_transformers(tmp_path: Path, length: int, activation: str) -> None:
    assert_equal_to_transformers(save_bert(tmp_path, hidden_act=activation, layer_norm_eps=1e-3), length)


@pytest.mark.parametrize("length", [2, 9, 40])
def test_roberta_is_equal_to_transformers(tmp_path: Path, length: int) -> None:
    assert_equal_to_transformers(save_roberta(tmp_path), length)


def test_activations_can_be_told_apart(tmp_path: Path) -> None:
    """A control: exact and tanh GELU differ by far more than the budget on these weights."""
    exact = load_checkpoint(save_bert(tmp_path / "a", hidden_act="gelu")).encoder.double()
    tanh = load_checkpoint(save_bert(tmp_path / "b", hidden_act="gelu_new")).encoder.double()
    ids = torch.arange(20)[None]
    difference = exact(ids)["last_hidden_state"] - tanh(ids)["last_hidden_state"]
    assert float(np.abs(difference.numpy()).max()) > 1e4 * BUDGET
