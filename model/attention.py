"""Multi-head self-attention, as the paper has it (Vaswani et al., 2017, section 3.2).

    MultiHead(X)       = Concat(head_1, ..., head_N) W_out    head_n = Attention(X W_query, X W_key, X W_value)
    Attention(Q, K, V) = softmax(Q Kᵀ / √H + mask) V

The letters at the end of a tensor's name are its dimensions:

    B  batch                        D  width of the model         N  heads
    L  length of the longest row    H  width of a head's queries and keys, V of its values
    Q  some queries, K  some keys: all L of a row, or those that meet in a block; `...` stands for blocks

Around this file: `layout.py` says where tokens lie, `attention_plan.py` which pairs are computed at once and with which
mask, `exact_attention.py` follows the plan. Other scores than `Q Kᵀ / √H` are in `score_functions.py`, softmax and
hardmax in `softmax.py`, and who may attend to whom in `patterns.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from heed.model.attention_plan import AttentionPlan
from heed.model.layout import Layout
from heed.model.patterns import Pairs
from heed.model.positions import RotaryPositions
from heed.model.softmax import Normalizer

Bias = Callable[[Pairs], Tensor]  # what is added to the scores of pairs: [1 or B, N, ..., Q, K]


@dataclass(frozen=True)
class AttentionFunction:
    """Maps queries, keys and values to outputs: `softmax(score(Q, K) + bias + mask) V`."""

    score: nn.Module  # of score_functions.py
    normalize: Normalizer  # softmax or hardmax
    bias: Bias | None = None

    def scores(self, query: Tensor, key: Tensor, pairs: Pairs) -> Tensor:
        """`[B, N, ..., Q, K]` for queries `[B, N, ..., Q, H]` and keys `[B, N, ..., K, H]`."""
        scores: Tensor = self.score(query, key)
        return scores if self.bias is None else scores + self.bias(pairs)

    def weights(self, scores: Tensor, mask: Tensor, key_columns: Tensor) -> Tensor:
        """`[B, N, ..., Q, K]`, each row adds up to 1; all 0 for a query whose keys are all masked out.

        Args:
            mask: True where a query may attend to a key; broadcasts to the scores.
            key_columns: the columns of the keys, which decide between equal scores; broadcasts to the scores.
        """
        return self.normalize(scores, mask, key_columns) * _attends_to_any(scores, mask)

    def attend(self, scores: Tensor, mask: Tensor, key_columns: Tensor, value: Tensor) -> Tensor:
        """The outputs `[B, N, ..., Q, V]` for values `[B, N, ..., K, V]`.

        This is `weights(...) @ value`; the zeros go in after the product, where there are fewer numbers to multiply.
        """
        return (self.normalize(scores, mask, key_columns) @ value) * _attends_to_any(scores, mask)


def _attends_to_any(scores: Tensor, mask: Tensor) -> Tensor:
    """1 for a query that may attend to some key, 0 for others: `[..., Q or 1, 1]`."""
    return mask.any(-1, keepdim=True).to(scores.dtype)


class Mechanism(nn.Module):
    """What heads do with their queries, keys and values: `ExactAttention`, or an approximation."""

    def forward(
        self, query_BNLH: Tensor, key_BNLH: Tensor, value_BNLV: Tensor, plan: AttentionPlan, bias: Bias | None
    ) -> Tensor:
        """The outputs of the heads, `[B, N, L or more, V]`."""
        raise NotImplementedError

    def weights(self, query_BNLH: Tensor, key_BNLH: Tensor, plan: AttentionPlan, bias: Bias | None) -> Tensor:
        """The attention weights, `[B, N, L, L]`."""
        raise NotImplementedError


class Attention(nn.Module):
    """The attention of a layer, with its projections: the only part of an encoder in which tokens meet."""

    def forward(self, x: Tensor, plan: AttentionPlan, bias: Bias | None = None) -> Tensor:
        """D values per token in, D values per token out, as the plan's layout has them."""
        raise NotImplementedError

    def weights(self, x: Tensor, plan: AttentionPlan, bias: Bias | None = None) -> Tensor:
        """The attention weights of every head, `[B, N, L, L]`."""
        raise NotImplementedError


class MultiHeadAttention(Attention):
    """N heads, each with projections of its own; their outputs are concatenated and projected.

    With grouped queries several heads share the keys and values of one (Ainslie et al., 2023).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mechanisms: Callable[[int, int], Mechanism],  # of all heads, made from their number and their width H
        head_width: int,
        value_width: int,
        bias: bool = True,
        out_bias: bool = True,
        rotary: RotaryPositions | None = None,
        key_heads: int | None = None,
        head_norm: Callable[[int], nn.Module] | None = None,  # of queries and keys, made from their width H
    ) -> None:
        super().__init__()
        self.heads, self.key_heads = heads, key_heads or heads
        self.query = nn.Linear(width, heads * head_width, bias=bias)
        self.key = nn.Linear(width, self.key_heads * head_width, bias=bias)
        self.value = nn.Linear(width, self.key_heads * value_width, bias=bias)
        self.out = nn.Linear(heads * value_width, width, bias=out_bias)
        self.query_norm = HeadNorm(head_norm(head_width), heads) if head_norm else None
        self.key_norm = HeadNorm(head_norm(head_width), self.key_heads) if head_norm else None
        self.rotary = rotary
        self.mechanisms = mechanisms(heads, head_width)

    def forward(self, x: Tensor, plan: AttentionPlan, bias: Bias | None = None) -> Tensor:
        query_BNLH, key_BNLH = self._query_and_key(x, plan.layout)
        value_BNLV = plan.layout.to_heads(self._shared(self.value(x)), self.heads)
        attended_BNLV = self.mechanisms(query_BNLH, key_BNLH, value_BNLV, plan, bias)
        return self.out(plan.layout.from_heads(attended_BNLV))

    def weights(self, x: Tensor, plan: AttentionPlan, bias: Bias | None = None) -> Tensor:
        return self.mechanisms.weights(*self._query_and_key(x, plan.layout), plan, bias)

    def _query_and_key(self, x: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        query, key = self.query(x), self.key(x)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if self.rotary is not None:
            query, key = self.rotary(query, layout.positions), self.rotary(key, layout.positions)
        return layout.to_heads(query, self.heads), layout.to_heads(self._shared(key), self.heads)

    def _shared(self, x: Tensor) -> Tensor:
        """Keys or values of `key_heads` heads, each as often as there are heads that share it."""
        if self.key_heads == self.heads:
            return x
        heads = x.reshape(*x.shape[:-1], self.key_heads, 1, -1)
        return heads.expand(*heads.shape[:-2], self.heads // self.key_heads, -1).flatten(-3)


class HeadNorm(nn.Module):
    """A norm of each head's values by themselves: `[..., N * H]` to the same."""

    def __init__(self, norm: nn.Module, heads: int) -> None:
        super().__init__()
        self.norm, self.heads = norm, heads

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(x.reshape(*x.shape[:-1], self.heads, -1))
        return normed.flatten(-2)
