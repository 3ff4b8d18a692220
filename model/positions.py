"""Where a token stands: attention alone does not know, permuting its input permutes its output.

Position ids come from the full row, before any padding is left out. Then one of

    LearnedPositions      a learned table of vectors, added to the input
    SinusoidalPositions   a fixed table, added to the input; any length
    RotaryPositions       rotate queries and keys, so that their product depends on the distance
    RelativeBias          a learned bias for each head and distance, added to the scores
    LinearBias            a bias that falls with the distance, by a slope for each head (ALiBi)

Tables are made on the CPU in float32, whatever device the weights are made on: they are constants, not weights.

Letters: B batch, L length, T tokens, D width, N heads, H head width. `...` is `[B, L]` or `[T]`, as the layout says.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from heed.model.config_checks import check_integers
from heed.model.patterns import Pairs

RuleKind = Literal["column", "counted", "stripped"]


@dataclass(frozen=True)
class PositionRule:
    """Which position a token of a row gets."""

    kind: RuleKind = "column"
    padding_id: int = 0  # only "counted" looks at it

    def __post_init__(self) -> None:
        if self.kind not in get_args(RuleKind):
            raise ValueError(f"position rule {self.kind!r} is none of {', '.join(get_args(RuleKind))}")


def column_positions(real_BL: Tensor) -> Tensor:
    """BERT: the column index, wherever the padding is. Returns `[B, L]`."""
    return torch.arange(real_BL.shape[1], device=real_BL.device).expand(real_BL.shape)


def counted_positions(input_ids_BL: Tensor, padding_id: int) -> Tensor:
    """RoBERTa: the n-th token that is not the padding id gets `padding_id + n`, a padding id gets `padding_id`.

    It counts by ids, not by the mask: a masked token with another id is counted, as the published models do.
    Returns `[B, L]`.
    """
    counts_BL = (input_ids_BL != padding_id).long()
    return counts_BL.cumsum(1) * counts_BL + padding_id


class LearnedPositions(nn.Module):
    """A table of `rows` vectors (BERT)."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, width)

    def forward(self, positions: Tensor) -> Tensor:
        """`[...]` to `[..., D]`."""
        return self.table(positions)


class SinusoidalPositions(nn.Module):
    """`PE[p, 2i] = sin(p / 10000^(2i/D))`, `PE[p, 2i+1] = cos(...)` (Vaswani et al., 2017, 3.5)."""

    table: Tensor

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        rates = 10000.0 ** -(torch.arange(0, width, 2, device="cpu", dtype=torch.float64) / width)
        angles = torch.arange(rows, device="cpu")[:, None] * rates  # in float32 an angle of 5000 is off by 0.0005
        table = torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :width]
        self.register_buffer("table", table.float(), persistent=False)

    def forward(self, positions: Tensor) -> Tensor:
        """`[...]` to `[..., D]`."""
        return self.table[positions]


class RotaryPositions(nn.Module):
    """Rotates each pair of values (i, i + H/2) of a head by an angle that grows with the position (Su et al., 2021).

    With a factor it does so for rows that much longer than the model was first trained for (NTK-aware scaling, Peng et
    al., 2023): the slowest pair turns `factor` times as slowly, the fastest almost as before.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, head_width: int, base: float, rows: int, factor: float = 1.0) -> None:
        super().__init__()
        if head_width % 2:
            raise ValueError(f"rotary positions rotate pairs of values; a head of {head_width} values has an odd one")
        self.head_width = head_width
        rates = 1.0 / (base * factor) ** (torch.arange(0, head_width, 2, device="cpu").float() / head_width)
        rates = rates / factor ** (2 / head_width)
        angles = torch.arange(rows, device="cpu").float()[:, None] * rates
        both = torch.cat([angles, angles], -1)
        self.register_buffer("cos", both.cos(), persistent=False)
        self.register_buffer("sin", both.sin(), persistent=False)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """Queries or keys of all heads, `[..., N * H]`, rotated."""
        heads = x.reshape(*x.shape[:-1], -1, self.head_width)
        first, second = heads.chunk(2, -1)
        rotated = torch.cat([-second, first], -1)
        cos, sin = self.cos[positions][..., None, :], self.sin[positions][..., None, :]
        return (heads * cos + rotated * sin).flatten(-2)


Bucketing = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LogBuckets:
    """T5's buckets of distances, in both directions (Raffel et al., 2020): near ones each, far ones by their log."""

    buckets: int = 32
    farthest: int = 128

    def __post_init__(self) -> None:
        check_integers(self, "buckets", least=4)
        if self.buckets % 2:
            raise ValueError(f"buckets must be an even number, half for each direction, got {self.buckets}")
        check_integers(self, "farthest", least=self.buckets // 4 + 1)  # nearer ones have buckets of their own

    def build(self, heads: int, width: int, max_length: int) -> "RelativeBias":
        return RelativeBias(heads, self, max_length)

    def __call__(self, distance: Tensor) -> Tensor:
        """Key's column minus query's, any shape, to a bucket from 0 up."""
        half = self.buckets // 2
        exact = half // 2
        far = distance.abs()
        log_steps = torch.log(far.clamp(min=1).float() / exact) / math.log(self.farthest / exact) * (half - exact)
        large = (exact + log_steps.to(torch.int64)).clamp(max=half - 1)
        return torch.where(far < exact, far, large) + (distance > 0) * half


class RelativeBias(nn.Module):
    """A learned bias for each head and bucket of distances, added to the scores (T5, MPNet)."""

    bucket_of_distance: Tensor

    def __init__(self, heads: int, buckets: LogBuckets, max_length: int) -> None:
        super().__init__()
        self.table = nn.Embedding(buckets.buckets, heads)
        self.max_length = max_length
        distances = torch.arange(1 - max_length, max_length, device="cpu")
        self.register_buffer("bucket_of_distance", buckets(distances), persistent=False)

    def forward(self, pairs: Pairs) -> Tensor:
        """`[1 or B, N, ..., Q, K]`, for columns that broadcast to `[1 or B, 1, ..., Q, K]`."""
        limit = self.max_length - 1
        distance = (pairs.j - pairs.i).clamp(-limit, limit)
        return self.table(self.bucket_of_distance[distance + limit][:, 0]).movedim(-1, 1)


@dataclass(frozen=True)
class Alibi:
    """A bias that grows with the distance, by a slope for each head and to both sides; nothing in it is learned."""

    def build(self, heads: int, width: int, max_length: int) -> "LinearBias":
        return LinearBias(heads)


def alibi_slopes(heads: int) -> list[float]:
    """Press et al., 2022: `2^(-8/N), 2^(-16/N), ..., 2^-8` for N heads where N is a power of two.

    For others, those of the next smaller power of two, and then every other one of twice as many.
    """
    fewer = 2 ** int(math.log2(heads))
    own = [2 ** (-8 * number / fewer) for number in range(1, fewer + 1)]
    between = [2 ** (-4 * number / fewer) for number in range(1, 2 * fewer, 2)]
    return own + between[: heads - fewer]


class LinearBias(nn.Module):
    """`-slope · |i - j|` for each head, added to the scores: attention with linear biases (ALiBi)."""

    slopes: Tensor

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.register_buffer("slopes", torch.tensor(alibi_slopes(heads), device="cpu"), persistent=False)

    def forward(self, pairs: Pairs) -> Tensor:
        """`[1 or B, N, ..., Q, K]`, for columns that broadcast to `[1 or B, 1, ..., Q, K]`."""
        distance = (pairs.j - pairs.i).abs()
        return -self.slopes.reshape(-1, *(1,) * (distance.dim() - 2)) * distance
