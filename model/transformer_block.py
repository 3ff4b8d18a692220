"""A layer of the encoder: attention and a feed-forward network, each with a residual and a norm.

Letters: B batch, L length, N heads.
"""

from torch import Tensor, nn

from heed.model.attention import Attention, Bias
from heed.model.attention_plan import AttentionPlan


class Block(nn.Module):
    """Post-norm: the norm follows the residual sum, as in the original Transformer and BERT."""

    attention: Attention

    def __init__(
        self, attention: Attention, feed_forward: nn.Module, attention_norm: nn.Module, feed_forward_norm: nn.Module
    ) -> None:
        super().__init__()
        self.attention = attention
        self.attention_norm = attention_norm
        self.feed_forward = feed_forward
        self.feed_forward_norm = feed_forward_norm

    def forward(self, x: Tensor, plan: AttentionPlan, bias: Bias | None = None, last: bool = False) -> Tensor:
        """`last`: no other layer looks at the tokens that nobody asks for."""
        x = self.attention_norm(x + self.attention(x, plan, bias))
        if last:
            x = plan.layout.kept(x)
        return self.feed_forward_norm(x + self.feed_forward(x))

    def weights(self, x: Tensor, plan: AttentionPlan, bias: Bias | None = None) -> Tensor:
        """The attention weights of this layer: `[B, N, L, L]`."""
        return self.attention.weights(x, plan, bias)


class PreNormBlock(Block):
    """Pre-norm: what is added to the residual is computed from normed values (Xiong et al., 2020)."""

    def forward(self, x: Tensor, plan: AttentionPlan, bias: Bias | None = None, last: bool = False) -> Tensor:
        x = x + self.attention(self.attention_norm(x), plan, bias)
        if last:
            x = plan.layout.kept(x)
        return x + self.feed_forward(self.feed_forward_norm(x))

    def weights(self, x: Tensor, plan: AttentionPlan, bias: Bias | None = None) -> Tensor:
        return self.attention.weights(self.attention_norm(x), plan, bias)


class SandwichBlock(PreNormBlock):
    """Sandwich norm: what is added to the residual is computed from normed values, and normed (Ding et al., 2021)."""

    def __init__(
        self,
        attention: Attention,
        feed_forward: nn.Module,
        attention_norm: nn.Module,
        feed_forward_norm: nn.Module,
        attention_out_norm: nn.Module,
        feed_forward_out_norm: nn.Module,
    ) -> None:
        super().__init__(attention, feed_forward, attention_norm, feed_forward_norm)
        self.attention_out_norm = attention_out_norm
        self.feed_forward_out_norm = feed_forward_out_norm

    def forward(self, x: Tensor, plan: AttentionPlan, bias: Bias | None = None, last: bool = False) -> Tensor:
        x = x + self.attention_out_norm(self.attention(self.attention_norm(x), plan, bias))
        if last:
            x = plan.layout.kept(x)
        return x + self.feed_forward_out_norm(self.feed_forward(self.feed_forward_norm(x)))
