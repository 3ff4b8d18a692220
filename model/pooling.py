"""One vector per sequence out of one vector per token (sentence-transformers' `Pooling` and what follows it).

Letters: B batch, L length, D width.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from heed.model.feed_forward import ACTIVATIONS, Activation, check_activation
from heed.model.layout import Layout, token_in
from heed.model.norms import NormConfig

PoolingMode = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]


@dataclass(frozen=True)
class DenseConfig:
    """A linear layer behind the pooling (sentence-transformers' `Dense`)."""

    width: int  # of what comes out
    activation: Activation | None = "tanh"
    bias: bool = True
    residual: bool = False  # adds what came in, projected without a bias where the widths differ

    def __post_init__(self) -> None:
        if type(self.width) is not int or self.width < 1:
            raise ValueError(f"width of a dense layer must be a positive integer, got {self.width!r}")
        if self.activation is not None:
            check_activation(self.activation)

    def build(self, width: int) -> "Dense":
        return Dense(self, width)


@dataclass(frozen=True)
class UnitLengthConfig:
    """Scales the vector to length 1 (sentence-transformers' `Normalize`)."""

    def build(self, width: int) -> "UnitLength":
        return UnitLength()


@dataclass(frozen=True)
class PoolingConfig:
    """How the hidden vectors of a sequence become one (sentence-transformers' `Pooling` and the modules behind it)."""

    mode: PoolingMode | tuple[PoolingMode, ...]  # of several the vectors are put end to end
    unit_length: bool  # scale the vector to length 1, at last
    layers: tuple[DenseConfig | NormConfig | UnitLengthConfig, ...] = ()  # one after the other, before that
    dimensions: int | None = None  # keep the first so many values, after everything else; None: all

    def __post_init__(self) -> None:
        for mode in self.modes:
            if mode not in get_args(PoolingMode):
                raise ValueError(f"pooling mode {mode!r} is none of {', '.join(get_args(PoolingMode))}")
        if not self.modes:
            raise ValueError("pooling needs a mode at least")
        if self.dimensions is not None and (type(self.dimensions) is not int or self.dimensions < 1):
            raise ValueError(f"dimensions must be a positive integer, got {self.dimensions!r}")

    def build(self, width: int) -> "Pooling":
        return Pooling(self, width)

    @property
    def modes(self) -> tuple[PoolingMode, ...]:
        return self.mode if isinstance(self.mode, tuple) else (self.mode,)

    def width(self, width: int) -> int:
        """The length of the one vector, for hidden vectors of a width."""
        whole = self.widths(width)[-1]
        return whole if self.dimensions is None else min(self.dimensions, whole)

    def widths(self, width: int) -> list[int]:
        """The lengths of the vector behind the pooling and behind each layer."""
        widths = [width * len(self.modes)]
        for layer in self.layers:
            widths.append(layer.width if isinstance(layer, DenseConfig) else widths[-1])
        return widths

    @property
    def gives_unit_length(self) -> bool:
        """Whether the vector that comes out has length 1: a part of one has not."""
        return self.unit_length and self.dimensions is None


def weighted_sum(x_BLD: Tensor, weights_BL: Tensor) -> Tensor:
    """The sum over a row's columns, each by its weight: `[B, D]`.

    Written as a matrix product of two equal rows, because a product of two rows or more adds up in the same order
    however many columns of padding follow, and a sum or a single row does not: the bits of a mean would depend on
    the neighbours in a batch.
    """
    return (weights_BL[:, None, :].expand(-1, 2, -1) @ x_BLD)[:, 0]


def pooling_weights(mode: PoolingMode, real_BL: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight of every column in a mean, `[B, L]`: 0 at padding."""
    real = real_BL.to(dtype)
    counts_B1 = real_BL.sum(1, keepdim=True).clamp(min=1).to(dtype)
    if mode == "mean":
        return real / counts_B1
    if mode == "mean_sqrt_len_tokens":
        return real / counts_B1.sqrt()
    # Each token by its number in the row, from 1. Divided in two steps: their sum is beyond float16 in a long row.
    numbers_BL = real_BL.cumsum(1).to(dtype) * real
    return numbers_BL / counts_B1 * (2 / (counts_B1 + 1))


class Dense(nn.Module):
    """A linear layer and its activation."""

    residual: nn.Module | None

    def __init__(self, config: DenseConfig, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, config.width, bias=config.bias)
        self.activation = ACTIVATIONS[config.activation]() if config.activation else nn.Identity()
        self.residual = None
        if config.residual:
            self.residual = nn.Identity() if width == config.width else nn.Linear(width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.linear(x))
        return y if self.residual is None else y + self.residual(x)


class UnitLength(nn.Module):
    """`x / |x|`, as torch's `normalize` does it, without stretching the lengths: a GPU leaves that to its host."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12)


class Pooling(nn.Module):
    """Over the real tokens of each sequence; `cls` is the first of them, `lasttoken` the last."""

    def __init__(self, config: PoolingConfig, width: int) -> None:
        super().__init__()
        self.config = config
        widths = config.widths(width)
        self.layers = nn.Sequential(
            *(layer.build(before) for layer, before in zip(config.layers, widths, strict=False))
        )
        self.unit_length = UnitLength()

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """`[B, D]`."""
        return self.scaled(self.unscaled(x, layout))

    def unscaled(self, x: Tensor, layout: Layout) -> Tensor:
        """`[B, D]`, of any length."""
        pooled = [self._pooled(mode, x, layout) for mode in self.config.modes]
        return self.layers(pooled[0] if len(pooled) == 1 else torch.cat(pooled, -1))

    def _pooled(self, mode: PoolingMode, x: Tensor, layout: Layout) -> Tensor:
        if mode == "cls":
            return layout.first_real(x)
        x_BLD, real_BL = layout.to_rows(x), layout.real_BL
        if mode == "max":
            return x_BLD.masked_fill(~real_BL[:, :, None], -torch.inf).amax(1)
        if mode == "lasttoken":
            last_B1 = real_BL.long().cumsum(1).argmax(1, keepdim=True)  # where the count is first complete
            return token_in(x_BLD, last_B1)
        return weighted_sum(x_BLD, pooling_weights(mode, real_BL, x_BLD.dtype))

    def scaled(self, pooled_BD: Tensor) -> Tensor:
        """At its final length, and with as many values as are kept."""
        if self.config.unit_length:
            pooled_BD = self.unit_length(pooled_BD)
        return pooled_BD if self.config.dimensions is None else pooled_BD[:, : self.config.dimensions]
