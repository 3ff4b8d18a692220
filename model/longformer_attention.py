"""Longformer's attention: windows, and global tokens with projections of their own (Beltagy et al., 2020).

Letters: B batch, L length, D width, N heads, H head width, G global tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from heed.model.attention import Attention, AttentionFunction, Bias
from heed.model.attention_config import AttentionVariant
from heed.model.attention_plan import AttentionPlan
from heed.model.blockwise import QKV, attend_globally, put_rows
from heed.model.exact_attention import ExactAttention
from heed.model.layout import Layout
from heed.model.patterns import GlobalMask, Window
from heed.model.score_functions import ScaledDot
from heed.model.softmax import softmax


@dataclass(frozen=True)
class LongformerConfig(AttentionVariant):
    """Windows of `radius` to either side, half of what the published configs call `attention_window`."""

    heads: int
    radius: int

    aligned = True
    block_sparse = True
    needs = frozenset({"global_attention_mask"})

    def build(self, width: int, max_length: int) -> "LongformerAttention":
        return LongformerAttention(self, width)


class LongformerAttention(Attention):
    """Tokens see their window and the global tokens; a global token sees all, through `W_q, W_k, W_v` of its own."""

    def __init__(self, config: LongformerConfig, width: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.query_global, self.key_global, self.value_global = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.score = ScaledDot(self.heads, width // self.heads)
        self.local = ExactAttention(self.score, softmax, Window(config.radius) | GlobalMask())

    def forward(self, x: Tensor, plan: AttentionPlan, bias: Bias | None = None) -> Tensor:
        layout = plan.layout
        query, key, value = self._projected(x, layout, self.query, self.key, self.value)
        attended = self.local(query, key, value, plan, bias)[:, :, : layout.real_BL.shape[1]]
        # A masked token takes nothing. Only a classifier that reads a masked first column can tell.
        attended = attended * layout.real_BL[:, None, :, None].to(attended.dtype)
        tokens = layout.global_tokens
        if tokens is not None:
            qkv = QKV(*self._projected(x, layout, self.query_global, self.key_global, self.value_global))
            function = AttentionFunction(self.score, softmax, bias)
            attended = put_rows(attended, attend_globally(function, tokens, qkv, layout), tokens)
        return self.out(layout.from_heads(attended))

    def weights(self, x: Tensor, plan: AttentionPlan, bias: Bias | None = None) -> Tensor:
        """`[B, N, L, L]`; the rows of global tokens come from their own projections."""
        query, key = self._projected(x, plan.layout, self.query, self.key)
        weights = self.local.weights(query, key, plan, bias)
        pairs = plan.pairs
        if pairs.global_i is None:
            return weights
        function = AttentionFunction(self.score, softmax, bias)
        query, key = self._projected(x, plan.layout, self.query_global, self.key_global)
        scores = function.scores(query, key, pairs)
        global_weights = function.weights(scores, plan.layout.real_BL[:, None, None, :], pairs.j)
        return torch.where(pairs.global_i, global_weights, weights)

    def _projected(self, x: Tensor, layout: Layout, *projections: nn.Linear) -> list[Tensor]:
        """One `[B, N, L, H]` for each projection."""
        return [layout.to_heads(project(x), self.heads) for project in projections]
