"""A layer around its attention, against the formulas written out.

Letters: B batch, L length, D width.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from heed.model.attention import MultiHeadAttention
from heed.model.attention_config import AttentionConfig
from heed.model.config import LayerConfig
from heed.model.feed_forward import Activation, FeedForwardConfig
from heed.model.layout import Layout, Padded
from heed.model.norms import NormConfig, RMSNorm
from heed.model.transformer_block import Block, PreNormBlock
from tests.model.loops import Floats
from tests.model.support import assert_close, masks, noise, padded, plan, with_random_weights


def erf_gelu(x: float) -> float:
    return x * (1 + math.erf(x / math.sqrt(2))) / 2


def tanh_gelu(x: float) -> float:
    return x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS: dict[Activation, Any] = {
    "gelu": erf_gelu,
    "gelu_tanh": tanh_gelu,
    "relu": lambda x: max(x, 0.0),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "tanh": math.tanh,
}


def linear(layer: nn.Linear, x: Floats) -> Floats:
    answer: Floats = x @ layer.weight.numpy().T + (0.0 if layer.bias is None else layer.bias.numpy())
    return answer


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_feed_forward_is_its_formula(activation: Activation, gated: bool, bias: bool) -> None:
    """`W₂ f(W₁ x)`, and gated `W₂ (f(W₁ x) · W₃ x)`: GeGLU is with GELU, SwiGLU with SiLU."""
    feed_forward = with_random_weights(FeedForwardConfig(7, activation, gated, bias).build(5))
    assert all((layer.bias is not None) == bias for layer in feed_forward.modules() if isinstance(layer, nn.Linear))
    x = 2 * noise(3, 4, 5)
    inner = np.vectorize(ACTIVATIONS[activation])(linear(feed_forward.up, x.numpy()))
    if gated:
        assert feed_forward.gate is not None
        inner = inner * linear(feed_forward.gate, x.numpy())
    assert_close(feed_forward(x), linear(feed_forward.down, inner))


def test_the_two_gelus_can_be_told_apart() -> None:
    """A control: they differ by up to 0.0005, far more than any budget."""
    assert abs(erf_gelu(2.2) - tanh_gelu(2.2)) > 1e-4


@pytest.mark.parametrize("epsilon", [1e-12, 1e-5, 0.1])
def test_rms_norm_is_torch_s(epsilon: float) -> None:
    ours = with_random_weights(RMSNorm(6, epsilon))
    theirs = nn.RMSNorm(6, epsilon, dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict())
    x = 3 * noise(4, 5, 6) + 1
    assert_close(ours(x), theirs(x).detach())


def test_norms_by_hand() -> None:
    """Of (1, 3): mean 2 and spread 1, so LayerNorm gives (-1, 1); the mean of the squares is 5."""
    x = torch.tensor([1.0, 3.0], dtype=torch.float64)
    assert_close(NormConfig("layer").build(2).double()(x).detach(), np.array([-1.0, 1.0]))
    assert_close(NormConfig("rms").build(2).double()(x).detach(), np.array([1.0, 3.0]) / np.sqrt(5))


@pytest.mark.parametrize("bias", [False, True])
def test_layer_norm_is_its_formula(bias: bool) -> None:
    norm = with_random_weights(NormConfig("layer", epsilon=0.1, bias=bias).build(6))
    x = noise(4, 6).numpy()
    spread = np.sqrt(x.var(-1, keepdims=True) + 0.1)
    expected = (x - x.mean(-1, keepdims=True)) / spread * norm.state_dict()["weight"].numpy()
    assert ("bias" in norm.state_dict()) == bias
    if bias:
        expected = expected + norm.state_dict()["bias"].numpy()
    assert_close(norm(torch.from_numpy(x)), expected)


def layer_norm(x: Floats, norm: nn.Module) -> Floats:
    weights = {name: tensor.numpy() for name, tensor in norm.state_dict().items()}
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-3)
    answer: Floats = normed * weights["weight"] + weights["bias"]
    return answer


def parts(norm_first: bool, **options: Any) -> tuple[Block, Tensor, Padded]:
    config = LayerConfig(
        AttentionConfig(2), FeedForwardConfig(7), NormConfig(epsilon=1e-3), norm_first=norm_first, **options
    )
    real = masks(5)
    return with_random_weights(config.build(6, 16)), noise(6, 5, 6), padded(real)


def attended(block: Block, x: Floats, layout: Layout) -> Floats:
    answer: Floats = block.attention(torch.from_numpy(x), plan(layout), None).numpy()
    return answer


def fed(block: Block, x: Floats) -> Floats:
    answer: Floats = block.feed_forward(torch.from_numpy(x)).numpy()
    return answer


def test_post_norm_norms_each_residual_sum() -> None:
    block, x, layout = parts(norm_first=False)
    assert type(block) is Block
    middle = layer_norm(x.numpy() + attended(block, x.numpy(), layout), block.attention_norm)
    assert_close(block(x, plan(layout)), layer_norm(middle + fed(block, middle), block.feed_forward_norm))


def test_pre_norm_norms_what_goes_into_each_part() -> None:
    block, x, layout = parts(norm_first=True)
    assert type(block) is PreNormBlock
    middle = x.numpy() + attended(block, layer_norm(x.numpy(), block.attention_norm), layout)
    assert_close(block(x, plan(layout)), middle + fed(block, layer_norm(middle, block.feed_forward_norm)))


def test_the_first_norm_may_be_left_out() -> None:
    """As in ModernBERT's first layer."""
    block, x, layout = parts(norm_first=True, attention_norm=False)
    middle = x.numpy() + attended(block, x.numpy(), layout)
    assert_close(block(x, plan(layout)), middle + fed(block, layer_norm(middle, block.feed_forward_norm)))


@pytest.mark.parametrize("norm_first", [False, True])
def test_the_weights_of_a_layer_are_those_of_what_its_attention_sees(norm_first: bool) -> None:
    block, x, layout = parts(norm_first)
    seen = torch.from_numpy(layer_norm(x.numpy(), block.attention_norm)) if norm_first else x
    attention = block.attention
    assert isinstance(attention, MultiHeadAttention)
    assert_close(block.weights(x, plan(layout)), attention.weights(seen, plan(layout)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FeedForwardConfig(0), "feed_forward must be a positive integer, got 0"),
        (lambda: FeedForwardConfig(2.0), "feed_forward must be a positive integer, got 2.0"),  # type: ignore[arg-type]
        (lambda: FeedForwardConfig(2, "mish"), "activation 'mish' is none of gelu, gelu_tanh, relu, silu, tanh"),  # type: ignore[arg-type]
        (lambda: NormConfig("batch"), "norm 'batch' is none of layer, rms"),  # type: ignore[arg-type]
        *(
            (lambda value=value: NormConfig(epsilon=value), f"norm_epsilon must lie between 0 and 1, got {value!r}")
            for value in (0, -1e-12, 1, "1e-12", float("nan"), None)
        ),
    ],
)
def test_a_bad_field_is_refused_by_name(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        make()
