"""Labels, for sequences and for tokens.

Letters: B batch, L length, D width, C labels.
"""

from typing import Any

import numpy as np
import pytest
import torch

from heed.model.classification_head import LabelsConfig
from heed.model.norms import NormConfig
from tests.model.support import assert_close, noise, packed, padded, random_mask, with_random_weights

NAMES = ("noun", "verb", "other")


def test_scores_of_tokens_are_a_linear_layer() -> None:
    head = with_random_weights(LabelsConfig(NAMES, "token").build(4))
    x, real = noise(2, 5, 4), random_mask(2, 5, seed=0)
    expected = x.numpy() @ head.out.weight.numpy().T + head.out.bias.numpy()
    assert expected.shape == (2, 5, 3)
    assert_close(head(x, padded(real)), expected)
    layout = packed(real)
    kept = layout.rows_T, layout.columns_T
    assert_close(head(x[kept], layout), torch.from_numpy(expected)[kept])


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
def test_scores_of_sequences_are_made_of_one_vector(pooling: Any) -> None:
    head = with_random_weights(LabelsConfig(NAMES, "sequence", pooling).build(4))
    x, real = noise(3, 5, 4), random_mask(3, 5, seed=0)
    vectors = {
        "cls": x[:, 0].numpy(),
        "mean": np.stack([row[kept].mean(0) for row, kept in zip(x.numpy(), real, strict=True)]),
        "max": np.stack([row[kept].max(0) for row, kept in zip(x.numpy(), real, strict=True)]),
    }[pooling]
    expected = vectors @ head.out.weight.numpy().T + head.out.bias.numpy()
    assert expected.shape == (3, 3)
    assert_close(head(x, padded(real)), expected)
    layout = packed(real)
    assert_close(head(x[layout.rows_T, layout.columns_T], layout), expected)


@pytest.mark.parametrize("per", ["sequence", "token"])
def test_a_hidden_layer_is_linear_then_activated_then_normed(per: Any) -> None:
    config = LabelsConfig(NAMES, per, hidden="tanh", hidden_norm=NormConfig(epsilon=1e-3), bias=False)
    head = with_random_weights(config.build(4))
    assert head.hidden is not None
    assert head.norm is not None
    x = noise(2, 5, 4)
    hidden = np.tanh(x.numpy() @ head.hidden.weight.numpy().T + head.hidden.bias.numpy())
    normed = (hidden - hidden.mean(-1, keepdims=True)) / np.sqrt(hidden.var(-1, keepdims=True) + 1e-3)
    normed = normed * head.norm.state_dict()["weight"].numpy() + head.norm.state_dict()["bias"].numpy()
    scores = normed @ head.out.weight.numpy().T
    assert_close(head(x, padded(np.ones((2, 5), bool))), scores if per == "token" else scores[:, 0])


def test_layers_have_a_bias_unless_told_otherwise() -> None:
    def names(**options: Any) -> list[str]:
        return [name for name, _ in LabelsConfig(NAMES, "token", **options).build(4).named_parameters()]

    assert names() == ["out.weight", "out.bias"]
    assert names(bias=False) == ["out.weight"]
    assert names(hidden="gelu") == ["hidden.weight", "hidden.bias", "out.weight", "out.bias"]
    assert names(hidden="gelu", hidden_bias=False) == ["hidden.weight", "out.weight", "out.bias"]


def test_a_single_label_makes_a_score() -> None:
    head = with_random_weights(LabelsConfig(("relevance",), "sequence").build(4))
    assert head(noise(3, 5, 4), padded(np.ones((3, 5), bool))).shape == (3, 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"names": ()}, r"labels must have names of their own, got \(\)"),
        ({"names": ("a", "b", "a")}, r"labels must have names of their own, got \('a', 'b', 'a'\)"),
        ({"per": "batch"}, "labels are per sequence or per token, not per 'batch'"),
        ({"hidden": "mish"}, "activation 'mish' is none of gelu, gelu_tanh, relu, silu, tanh"),
        ({"pooling": "sum"}, "pooling mode 'sum' is none of cls, first_real, lasttoken, mean, max"),
    ],
)
def test_a_bad_field_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        LabelsConfig(**({"names": NAMES, "per": "token"} | fields))


def test_labels_of_tokens_need_no_hidden_vector_of_others() -> None:
    head = with_random_weights(LabelsConfig(NAMES, "token", hidden="relu").build(4))
    x = noise(1, 5, 4)
    layout = padded(np.ones((1, 5), bool))
    changed = x.clone()
    changed[0, 2] += 1
    differs = (head(x, layout) != head(changed, layout)).any(-1)
    assert differs[0].tolist() == [False, False, True, False, False]
    assert torch.isfinite(head(x, layout)).all()
