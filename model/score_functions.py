"""Score functions: how well a query and a key match.

A score is a module `(heads, head_width)` that takes queries `[B, N, ..., Q, H]` and keys `[B, N, ..., K, H]` to
scores `[B, N, ..., Q, K]`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class Dot(nn.Module):
    """`Q Kᵀ`."""

    scale: float

    def __init__(self, heads: int, head_width: int) -> None:
        super().__init__()
        self.scale = 1.0

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        return (query * self.scale) @ key.transpose(-1, -2)


class ScaledDot(Dot):
    """`Q Kᵀ / √H`: the spread of the scores does not grow with the head width (Vaswani et al., 2017, 3.2.1)."""

    def __init__(self, heads: int, head_width: int) -> None:
        super().__init__(heads, head_width)
        self.scale = 1 / math.sqrt(head_width)


@dataclass(frozen=True)
class ScaledDotFor:
    """`ScaledDot` with the scale of another width, whatever that of a head is (Gemma)."""

    width: int

    def __call__(self, heads: int, head_width: int) -> ScaledDot:
        return ScaledDot(heads, self.width)


class Additive(nn.Module):
    """`wᵀ tanh(q + k)` with a learned `w` for each head (Bahdanau et al., 2015).

    Takes H values of memory for each pair and head where a dot product takes one: `max_length` bounds the input.
    """

    max_length = 1024

    def __init__(self, heads: int, head_width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads, head_width))
        nn.init.normal_(self.weight, std=1 / math.sqrt(head_width))

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        sums = torch.tanh(query[..., :, None, :] + key[..., None, :, :])  # [B, N, ..., Q, K, H]
        between = (1,) * (query.dim() - 3)
        weight = self.weight.reshape(len(self.weight), *between, -1, 1)  # [N, ..., H, 1]
        return (sums @ weight)[..., 0]
