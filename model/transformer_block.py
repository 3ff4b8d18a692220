"""A layer of the encoder: attention and a feed-forward network, each with a residual and a norm.

Letters: D width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from heed.model.attention import Attention
from heed.model.blockwise import Bias
from heed.model.layout import Layout

Activation = Literal["gelu", "gelu_tanh", "relu", "silu", "tanh"]

ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


def check_activation(activation: object) -> None:
    if activation not in get_args(Activation):
        raise ValueError(f"activation {activation!r} is none of {', '.join(get_args(Activation))}")


@dataclass(frozen=True)
class NormConfig:
    """LayerNorm (Ba et al., 2016), or RMSNorm (Zhang and Sennrich, 2019), which does not subtract the mean."""

    kind: Literal["layer", "rms"] = "layer"
    epsilon: float = 1e-12
    bias: bool = True  # of a LayerNorm

    def __post_init__(self) -> None:
        if self.kind not in ("layer", "rms"):
            raise ValueError(f"norm {self.kind!r} is none of layer, rms")
        if not isinstance(self.epsilon, int | float) or not 0 < self.epsilon < 1:
            raise ValueError(f"norm_epsilon must lie between 0 and 1, got {self.epsilon!r}")

    def build(self, width: int) -> nn.Module:
        if self.kind == "rms":
            return RMSNorm(width, self.epsilon)
        return nn.LayerNorm(width, eps=self.epsilon, bias=self.bias)


class RMSNorm(nn.Module):
    """`x / √(mean(x²) + ε) · weight`."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.epsilon) * self.weight


@dataclass(frozen=True)
class FeedForwardConfig:
    """Two linear layers with an activation between them; gated: GeGLU, SwiGLU (Shazeer, 2020)."""

    width: int  # between the two layers
    activation: Activation = "gelu"
    gated: bool = False
    bias: bool = True

    def __post_init__(self) -> None:
        if type(self.width) is not int or self.width < 1:
            raise ValueError(f"feed_forward must be a positive integer, got {self.width!r}")
        check_activation(self.activation)

    def build(self, width: int) -> "FeedForward":
        return FeedForward(self, width)


class FeedForward(nn.Module):
    """The same for every token: D values in, D values out (Vaswani et al., 2017, 3.3)."""

    gate: nn.Linear | None

    def __init__(self, config: FeedForwardConfig, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, config.width, bias=config.bias)
        self.gate = nn.Linear(width, config.width, bias=config.bias) if config.gated else None
        self.activation = ACTIVATIONS[config.activation]()
        self.down = nn.Linear(config.width, width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is None:
            return self.down(self.activation(self.up(x)))
        return self.down(self.activation(self.up(x)) * self.gate(x))


class Block(nn.Module):
    """Post-norm: the norm follows the residual sum, as in the original Transformer and BERT."""

    attention: Attention

    def __init__(
        self, attention: Attention, feed_forward: nn.Module, attention_norm: nn.Module, feed_forward_norm: nn.Module
    ) -> None:
        super().__init__()
        self.attention = attention
        self.attention_norm = attention_norm
        self.feed_forward = feed_forward
        self.feed_forward_norm = feed_forward_norm

    def forward(self, x: Tensor, layout: Layout, bias: Bias | None = None, last: bool = False) -> Tensor:
        """`last`: no other layer looks at the tokens that nobody asks for."""
        x = self.attention_norm(x + self.attention(x, layout, bias))
        if last:
            x = layout.kept(x)
        return self.feed_forward_norm(x + self.feed_forward(x))

    def weights(self, x: Tensor, layout: Layout, bias: Bias | None = None) -> Tensor:
        """The attention weights of this layer: `[B, N, L, L]`."""
        return self.attention.weights(x, layout, bias)


class PreNormBlock(Block):
    """Pre-norm: what is added to the residual is computed from normed values (Xiong et al., 2020)."""

    def forward(self, x: Tensor, layout: Layout, bias: Bias | None = None, last: bool = False) -> Tensor:
        x = x + self.attention(self.attention_norm(x), layout, bias)
        if last:
            x = layout.kept(x)
        return x + self.feed_forward(self.feed_forward_norm(x))

    def weights(self, x: Tensor, layout: Layout, bias: Bias | None = None) -> Tensor:
        return self.attention.weights(self.attention_norm(x), layout, bias)
