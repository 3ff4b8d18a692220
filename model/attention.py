"""Multi-head self-attention (Vaswani et al., 2017, section 3.2).

Letters: B batch, L length, D width, N heads, H head width. The layout says where tokens lie.
"""

import math

from torch import Tensor, nn

from model.layout import Layout


class MultiHeadAttention(nn.Module):
    """`softmax(Q Kᵀ / √H) V` in each of N heads, concatenated and projected: D values in, D values out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = 1 / math.sqrt(width // heads)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        query_BNLH, key_BNLH, value_BNLH = (
            layout.to_heads(project(x), self.heads) for project in (self.query, self.key, self.value)
        )
        scores_BNLL = (query_BNLH * self.scale) @ key_BNLH.transpose(-1, -2)
        weights_BNLL = layout.softmax(scores_BNLL)
        return self.out(layout.from_heads(weights_BNLL @ value_BNLH))
