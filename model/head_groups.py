"""Heads of one layer that attend in different ways: each group of neighbours that are alike attends together.

Letters: B batch, L length, N heads, H head width.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import cast

import torch
from torch import Tensor, nn

from heed.model.attention import Bias, Mechanism
from heed.model.attention_plan import AttentionPlan


class HeadGroups(nn.ModuleList, Mechanism):
    """The mechanism of each group of heads, in order; together they are one mechanism of all heads."""

    def __init__(self, mechanisms: Sequence[Mechanism], sizes: Sequence[int]) -> None:
        super().__init__(mechanisms)
        self.sizes = list(sizes)  # the number of heads of each group

    def __iter__(self) -> Iterator[Mechanism]:
        return cast(Iterator[Mechanism], super().__iter__())

    def forward(
        self, query_BNLH: Tensor, key_BNLH: Tensor, value_BNLV: Tensor, plan: AttentionPlan, bias: Bias | None
    ) -> Tensor:
        groups = zip(self, *map(self._split, (query_BNLH, key_BNLH, value_BNLV)), self._split_bias(bias), strict=True)
        return _concatenate([mechanism(query, key, value, plan, bias) for mechanism, query, key, value, bias in groups])

    def weights(self, query_BNLH: Tensor, key_BNLH: Tensor, plan: AttentionPlan, bias: Bias | None) -> Tensor:
        groups = zip(self, *map(self._split, (query_BNLH, key_BNLH)), self._split_bias(bias), strict=True)
        return _concatenate([mechanism.weights(query, key, plan, bias) for mechanism, query, key, bias in groups])

    def _split(self, x_BNLH: Tensor) -> Sequence[Tensor]:
        """The heads of each group. A single group is not split: in a graph that would be a copy."""
        return [x_BNLH] if len(self.sizes) == 1 else torch.split(x_BNLH, self.sizes, 1)

    def _split_bias(self, bias: Bias | None) -> list[Bias | None]:
        if bias is None or len(self.sizes) == 1:
            return [bias] * len(self.sizes)
        ends = list(accumulate(self.sizes))
        return [_bias_of(bias, slice(end - size, end)) for size, end in zip(self.sizes, ends, strict=True)]


def _bias_of(bias: Bias, heads: slice) -> Bias:
    return lambda pairs: bias(pairs)[:, heads]


def _concatenate(groups: list[Tensor]) -> Tensor:
    """All heads side by side; groups may have different numbers of slots beyond L, which are dropped."""
    if len(groups) == 1:
        return groups[0]
    length = min(group.shape[2] for group in groups)
    return torch.cat([group[:, :, :length] for group in groups], 1)
