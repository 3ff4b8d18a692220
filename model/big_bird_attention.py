"""Big Bird's attention as its published checkpoints compute it at inference (Zaheer et al., 2020; `transformers`).

A row is cut into blocks; its last block is that of its last real token. The first and the last block see all and are
seen by all, the others see their neighbours. The paper's random blocks are drawn in training only: at inference each of
them is the first block once more, so that its keys count `1 + random` times in the softmax of every block between the
ends. A row of up to `5 + 2 * random` blocks is attended to in full.

(`patterns.big_bird` is the paper's own form.)

Letters: B batch, L length, D width, N heads, H head width, G global tokens.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from heed.model.attention import Attention, AttentionFunction, Bias
from heed.model.attention_config import AttentionVariant
from heed.model.attention_plan import AttentionPlan
from heed.model.blockwise import QKV, attend_globally, attend_locally, put_rows
from heed.model.layout import GlobalTokens, Layout
from heed.model.patterns import BlockWindow, Pairs
from heed.model.score_functions import ScaledDot
from heed.model.softmax import softmax


@dataclass(frozen=True)
class BigBirdConfig(AttentionVariant):
    """Blocks of `block` columns, the first of which counts `random` more times."""

    heads: int
    block: int
    random: int
    bias: bool = True  # in the projections to queries, keys and values

    aligned = True
    block_sparse = True

    def __post_init__(self) -> None:
        for name, least in (("heads", 1), ("block", 1), ("random", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")

    @property
    def full_blocks(self) -> int:
        """Rows of so many blocks and fewer are attended to in full."""
        return 5 + 2 * self.random

    @property
    def dense_up_to(self) -> int:
        return self.full_blocks * self.block

    def build(self, width: int, max_length: int) -> "BigBirdAttention":
        return BigBirdAttention(self, width)


class BigBirdAttention(Attention):
    """Two ways to the same answer: all pairs, or blockwise. Blockwise only rows longer than `dense_up_to` are right."""

    def __init__(self, config: BigBirdConfig, width: int) -> None:
        super().__init__()
        if width % config.heads:
            raise ValueError(f"width {width} does not divide into {config.heads} heads")
        self.config = config
        self.heads = config.heads
        self.query, self.key, self.value = (nn.Linear(width, width, bias=config.bias) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.score = ScaledDot(self.heads, width // self.heads)

    def forward(self, x: Tensor, plan: AttentionPlan, bias: Bias | None = None) -> Tensor:
        projections = self.query, self.key, self.value
        qkv = QKV(*(plan.layout.to_heads(project(x), self.heads) for project in projections))
        if plan.blockwise and self._all_rows_are_long(plan.layout):
            attended = self._attend_blockwise(qkv, plan, bias)
        else:
            attended = self._weights_of_all_pairs(qkv.query, qkv.key, plan, bias) @ qkv.value
        return self.out(plan.layout.from_heads(attended))

    def weights(self, x: Tensor, plan: AttentionPlan, bias: Bias | None = None) -> Tensor:
        """`[B, N, L, L]`; a key's weight is the sum over all times it counts."""
        query, key = (plan.layout.to_heads(project(x), self.heads) for project in (self.query, self.key))
        return self._weights_of_all_pairs(query, key, plan, bias)

    def _all_rows_are_long(self, layout: Layout) -> bool:
        """A graph cannot choose by its rows: the server feeds this one with long rows only."""
        return torch.compiler.is_exporting() or bool((self._last_block(layout) >= self.config.full_blocks).all())

    def _last_block(self, layout: Layout) -> Tensor:
        """The block of each row's last real token, counted from 0: `[B]`."""
        columns_L = torch.arange(layout.real_BL.shape[1], device=layout.real_BL.device)
        return (columns_L * layout.real_BL).amax(1) // self.config.block

    def _weights_of_all_pairs(
        self, query_BNLH: Tensor, key_BNLH: Tensor, plan: AttentionPlan, bias: Bias | None
    ) -> Tensor:
        pairs = plan.pairs
        i, j = pairs.i // self.config.block, pairs.j // self.config.block
        last = self._last_block(plan.layout)[:, None, None, None]
        sees_all = (i == 0) | (i == last) | (last < self.config.full_blocks)  # [B, 1, L, 1]
        seen_by_all = (j == 0) | (j == last)
        mask = sees_all | seen_by_all | ((i - j).abs() <= 1)
        scores = self.score(query_BNLH, key_BNLH)
        scores = scores + torch.where(sees_all, 0.0, self._repeats(pairs, scores.dtype))
        if bias is not None:
            scores = scores + bias(pairs)
        real = plan.layout.real_BL[:, None, None, :]
        return AttentionFunction(self.score, softmax).weights(scores, mask & real, pairs.j)

    def _attend_blockwise(self, qkv: QKV, plan: AttentionPlan, bias: Bias | None) -> Tensor:
        def between_the_ends(pairs: Pairs) -> Tensor:
            repeats = self._repeats(pairs, qkv.query.dtype)
            return repeats if bias is None else repeats + bias(pairs)

        ends = self._ends(plan.layout)
        between = AttentionFunction(self.score, softmax, between_the_ends)
        attended = attend_locally(between, BlockWindow(self.config.block), ends, qkv, plan)
        at_the_ends = AttentionFunction(self.score, softmax, bias)
        return put_rows(attended, attend_globally(at_the_ends, ends, qkv, plan.layout), ends)

    def _repeats(self, pairs: Pairs, dtype: torch.dtype) -> Tensor:
        """What makes a softmax count the keys of the first block `1 + random` times: the logarithm, by key."""
        return (pairs.j < self.config.block).to(dtype) * math.log1p(self.config.random)

    def _ends(self, layout: Layout) -> GlobalTokens:
        """The tokens of each row's first and last block; G is two blocks."""
        batch, length = layout.real_BL.shape
        within_S = torch.arange(self.config.block, device=layout.real_BL.device)
        last_BS = self._last_block(layout)[:, None] * self.config.block + within_S
        slots_BG = torch.cat([within_S.expand(batch, -1), last_BS], 1)
        return GlobalTokens(slots_BG.clamp(max=length - 1), slots_BG < length)
