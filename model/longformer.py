"""Longformer's attention: windows, and global tokens with projections of their own (Beltagy et al., 2020).

Letters: B batch, L length, D width, N heads, H head width, G global tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from heed.model.attention import Attention, Exact, all_pairs
from heed.model.blockwise import Bias, Heads, Rule, global_rows, put_rows
from heed.model.layout import Layout
from heed.model.patterns import GlobalMask, Window
from heed.model.score_functions import ScaledDot
from heed.model.softmax import soft


@dataclass(frozen=True)
class LongformerConfig:
    """Windows of `radius` to either side, half of what the published configs call `attention_window`."""

    heads: int
    radius: int

    aligned = True
    cheap = True
    dense_up_to = 0
    has_weights = True
    plain = False
    max_length = None
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
        self.ordinary = Exact(ScaledDot(self.heads, width // self.heads), soft, Window(config.radius) | GlobalMask())

    def forward(self, x: Tensor, layout: Layout, bias: Bias | None = None) -> Tensor:
        local = [layout.to_heads(project(x), self.heads) for project in (self.query, self.key, self.value)]
        length = layout.real_BL.shape[1]
        attended = self.ordinary(*local, layout, bias)[:, :, :length]
        # A masked token takes nothing. Only a classifier that reads a masked first column can tell.
        attended = attended * layout.real_BL[:, None, :, None].to(attended.dtype)
        tokens = layout.global_tokens
        if tokens is not None:
            projections = self.query_global, self.key_global, self.value_global
            heads = Heads(*(layout.to_heads(project(x), self.heads) for project in projections))
            attended = put_rows(
                attended, global_rows(Rule(self.ordinary.score, soft, bias), tokens, heads, layout), tokens
            )
        return self.out(layout.from_heads(attended))

    def weights(self, x: Tensor, layout: Layout, bias: Bias | None = None) -> Tensor:
        """`[B, N, L, L]`; the rows of global tokens come from their own projections."""
        query, key = (layout.to_heads(project(x), self.heads) for project in (self.query, self.key))
        weights = self.ordinary.weights(query, key, layout, bias)
        pairs = all_pairs(layout)
        if pairs.global_i is None:
            return weights
        query, key = (layout.to_heads(project(x), self.heads) for project in (self.query_global, self.key_global))
        rule = Rule(self.ordinary.score, soft, bias)
        global_weights = rule.weights(rule.scores(query, key, pairs), layout.real_BL[:, None, None, :], pairs.j)
        return torch.where(pairs.global_i, global_weights, weights)
