"""Norms over the values of a hidden vector.

Letters: D width.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class NormConfig:
    """LayerNorm (Ba et al., 2016), or RMSNorm (Zhang and Sennrich, 2019), which does not subtract the mean."""

    kind: Literal["layer", "rms"] = "layer"
    epsilon: float = 1e-12
    bias: bool = True  # of a LayerNorm
    unit_offset: bool = False  # the weight of an RMSNorm is less by 1 than what it multiplies by (Gemma)

    def __post_init__(self) -> None:
        if self.kind not in ("layer", "rms"):
            raise ValueError(f"norm {self.kind!r} is none of layer, rms")
        if not isinstance(self.epsilon, int | float) or not 0 < self.epsilon < 1:
            raise ValueError(f"norm_epsilon must lie between 0 and 1, got {self.epsilon!r}")

    def build(self, width: int) -> nn.Module:
        if self.kind == "rms":
            return OffsetRMSNorm(width, self.epsilon) if self.unit_offset else RMSNorm(width, self.epsilon)
        return nn.LayerNorm(width, eps=self.epsilon, bias=self.bias)


class RMSNorm(nn.Module):
    """`x / √(mean(x²) + ε) · weight`."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return self.unscaled(x) * self.weight

    def unscaled(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.epsilon)


class OffsetRMSNorm(RMSNorm):
    """`x / √(mean(x²) + ε) · (1 + weight)`, so that weights near 0 change little."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__(width, epsilon)
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.unscaled(x) * (1 + self.weight)
