"""The feed-forward network of a layer, and activations.

Letters: D width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor, nn

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
class FeedForwardConfig:
    """Two linear layers with an activation between them; gated: GeGLU, SwiGLU (Shazeer, 2020)."""

    width: int  # between the two layers
    activation: Activation = "gelu"
    gated: bool = False
    bias: bool = True  # in all of its linear layers
    out_bias: bool | None = None  # in the last of them, where it differs

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
        out_bias = config.bias if config.out_bias is None else config.out_bias
        self.down = nn.Linear(config.width, width, bias=out_bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is None:
            return self.down(self.activation(self.up(x)))
        return self.down(self.activation(self.up(x)) * self.gate(x))
