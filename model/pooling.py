"""One vector per sequence out of one vector per token (sentence-transformers' `Pooling`)."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from model.layout import Layout

PoolingMode = Literal["cls", "mean", "max"]


@dataclass(frozen=True)
class PoolingConfig:
    """How the hidden vectors of a sequence become one (sentence-transformers' `Pooling` and `Normalize`)."""

    mode: PoolingMode
    unit_length: bool  # scale the vector to length 1

    def __post_init__(self) -> None:
        if self.mode not in get_args(PoolingMode):
            raise ValueError(f"pooling mode {self.mode!r} is none of {', '.join(get_args(PoolingMode))}")

    def build(self, width: int) -> "Pooling":
        return Pooling(self)


def mean_of_rows(x_BLD: Tensor, real_BL: Tensor) -> Tensor:
    """The mean over real tokens, `[B, D]`.

    Written as a matrix product of two equal rows, because a product of two rows or more adds up in the same order
    however many columns of padding follow, and a sum or a single row does not: the bits of a mean would depend on
    the neighbours in a batch.
    """
    counts_B1 = real_BL.sum(1, keepdim=True).clamp(min=1)
    weights_BL = real_BL.to(x_BLD.dtype) / counts_B1.to(x_BLD.dtype)
    return (weights_BL[:, None, :].expand(-1, 2, -1) @ x_BLD)[:, 0]


class Pooling(nn.Module):
    """`cls` takes column 0 as it is, `mean` and `max` go over the real tokens. Returns `[B, D]`."""

    def __init__(self, config: PoolingConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        x_BLD, real_BL = layout.to_rows(x), layout.real_BL
        if self.config.mode == "cls":
            pooled_BD = x_BLD[:, 0]
        elif self.config.mode == "mean":
            pooled_BD = mean_of_rows(x_BLD, real_BL)
        else:
            pooled_BD = x_BLD.masked_fill(~real_BL[:, :, None], -torch.inf).amax(1)
        if self.config.unit_length:
            pooled_BD = nn.functional.normalize(pooled_BD, dim=-1)
        return pooled_BD
