"""Other ways to attend with a model's own projections: what its attention is measured against on a GPU.

Letters: B batch, L length, T tokens, D width, N heads, H head width.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from bench.gpu.rows import Skipped
from heed.model import Encoder
from heed.model.attention import Attention, Bias, MultiHeadAttention
from heed.model.attention_plan import AttentionPlan
from heed.model.exact_attention import ExactAttention
from heed.model.layout import Layout, Packed, Padded
from heed.model.patterns import Full
from heed.model.score_functions import ScaledDot
from heed.model.softmax import softmax

# Projected queries, keys and values of all heads side by side, and how many heads: what each query takes of the values.
Attend = Callable[[Tensor, Tensor, Tensor, int, Layout], Tensor]


class Swapped(Attention):
    """A model's own four projections around another way to attend."""

    def __init__(self, own: MultiHeadAttention, attend: Attend) -> None:
        super().__init__()
        self.own, self.attend = own, attend

    def forward(self, x: Tensor, plan: AttentionPlan, bias: Bias | None = None) -> Tensor:
        own = self.own
        attended: Tensor = own.out(self.attend(own.query(x), own.key(x), own.value(x), own.heads, plan.layout))
        return attended


def swapped(encoder: Encoder, attend: Attend) -> Encoder:
    """A copy that attends in another way.

    Raises:
        Skipped: its attention is not softmax over all pairs by scaled dot products, which is all that others compute.
    """
    if encoder.relative_bias is not None or not all(_is_plain(block.attention) for block in encoder.blocks):
        raise Skipped("its attention is not plain softmax over all pairs")
    other = copy.deepcopy(encoder)
    for block in other.blocks:
        assert isinstance(block.attention, MultiHeadAttention)
        block.attention = Swapped(block.attention, attend)
    return other


def _is_plain(attention: nn.Module) -> bool:
    return (
        isinstance(attention, MultiHeadAttention)
        and attention.rotary is None
        and all(
            isinstance(each, ExactAttention)
            and type(each.score) is ScaledDot
            and (each.normalize, each.pattern) == (softmax, Full())
            for each in attention.mechanisms.children()
        )
    )


def sdpa(query: Tensor, key: Tensor, value: Tensor, heads: int, layout: Layout) -> Tensor:
    """torch's own, over padded rows `[B, L, D]`, with their mask."""
    assert isinstance(layout, Padded)
    query, key, value = (layout.to_heads(each, heads) for each in (query, key, value))
    return layout.from_heads(scaled_dot_product_attention(query, key, value, layout.real_BL[:, None, None, :]))


@dataclass(frozen=True, kw_only=True)
class EndToEnd(Packed):
    """Tokens end to end, and where each row ends: what attention over rows of any length wants to know."""

    ends_B1: Tensor  # int32, 0 first
    longest: int


def varlen(query: Tensor, key: Tensor, value: Tensor, heads: int, layout: Layout) -> Tensor:
    """torch's flash attention over rows of any length `[T, D]`: nothing is padded, and nothing gathered."""
    from torch.nn.attention.varlen import varlen_attn  # torch 2.10 and later

    assert isinstance(layout, EndToEnd)
    query, key, value = (each.reshape(len(each), heads, -1) for each in (query, key, value))
    ends, longest = layout.ends_B1, layout.longest
    attended = varlen_attn(query, key, value, ends, ends, longest, longest)
    assert isinstance(attended, Tensor)  # it is, without return_aux
    return attended.flatten(1)
