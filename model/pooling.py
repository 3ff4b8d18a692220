"""One vector per sequence out of one vector per token (sentence-transformers' `Pooling`)."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from heed.model.feed_forward import ACTIVATIONS, Activation, check_activation
from heed.model.layout import Layout

PoolingMode = Literal["cls", "mean", "max"]


@dataclass(frozen=True)
class DenseConfig:
    """A linear layer behind the pooling (sentence-transformers' `Dense`)."""

    width: int  # of what comes out
    activation: Activation | None = "tanh"
    bias: bool = True

    def __post_init__(self) -> None:
        if type(self.width) is not int or self.width < 1:
            raise ValueError(f"width of a dense layer must be a positive integer, got {self.width!r}")
        if self.activation is not None:
            check_activation(self.activation)


@dataclass(frozen=True)
class PoolingConfig:
    """How the hidden vectors of a sequence become one (sentence-transformers' `Pooling`, `Dense` and `Normalize`)."""

    mode: PoolingMode
    unit_length: bool  # scale the vector to length 1
    dense: tuple[DenseConfig, ...] = ()  # one after the other, before that

    def __post_init__(self) -> None:
        if self.mode not in get_args(PoolingMode):
            raise ValueError(f"pooling mode {self.mode!r} is none of {', '.join(get_args(PoolingMode))}")

    def build(self, width: int) -> "Pooling":
        return Pooling(self, width)

    def width(self, width: int) -> int:
        """The length of the one vector, for hidden vectors of a width."""
        return self.dense[-1].width if self.dense else width


def mean_of_rows(x_BLD: Tensor, real_BL: Tensor) -> Tensor:
    """The mean over real tokens, `[B, D]`.

    Written as a matrix product of two equal rows, because a product of two rows or more adds up in the same order
    however many columns of padding follow, and a sum or a single row does not: the bits of a mean would depend on
    the neighbours in a batch.
    """
    counts_B1 = real_BL.sum(1, keepdim=True).clamp(min=1)
    weights_BL = real_BL.to(x_BLD.dtype) / counts_B1.to(x_BLD.dtype)
    return (weights_BL[:, None, :].expand(-1, 2, -1) @ x_BLD)[:, 0]


class Dense(nn.Module):
    """A linear layer and its activation."""

    def __init__(self, config: DenseConfig, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, config.width, bias=config.bias)
        self.activation = ACTIVATIONS[config.activation]() if config.activation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.linear(x))


class Pooling(nn.Module):
    """`cls` takes column 0 as it is, `mean` and `max` go over the real tokens."""

    def __init__(self, config: PoolingConfig, width: int) -> None:
        super().__init__()
        self.config = config
        widths = [width, *(dense.width for dense in config.dense)]
        self.dense = nn.Sequential(*(Dense(dense, before) for dense, before in zip(config.dense, widths, strict=False)))

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """`[B, D]`."""
        return self.scaled(self.unscaled(x, layout))

    def unscaled(self, x: Tensor, layout: Layout) -> Tensor:
        """`[B, D]`, of any length."""
        if self.config.mode == "cls":
            pooled_BD = layout.first(x)
        elif self.config.mode == "mean":
            pooled_BD = mean_of_rows(layout.to_rows(x), layout.real_BL)
        else:
            pooled_BD = layout.to_rows(x).masked_fill(~layout.real_BL[:, :, None], -torch.inf).amax(1)
        return self.dense(pooled_BD)

    def scaled(self, pooled_BD: Tensor) -> Tensor:
        if not self.config.unit_length:
            return pooled_BD
        # As torch's `normalize` does it, without stretching the lengths: for a GPU that is work for the host.
        return pooled_BD / pooled_BD.norm(dim=-1, keepdim=True).clamp_min(1e-12)
