"""A layer of the encoder: attention and a feed-forward network, each with a residual and a norm."""

from collections.abc import Callable

from torch import Tensor, nn

from model.attention import MultiHeadAttention
from model.config import Activation, EncoderConfig
from model.layout import Layout

ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "relu": nn.ReLU,
    "silu": nn.SiLU,
}


class FeedForward(nn.Module):
    """Two linear layers with an activation between them, the same for every token (Vaswani et al., 2017, 3.3)."""

    def __init__(self, width: int, inner: int, activation: Activation) -> None:
        super().__init__()
        self.up = nn.Linear(width, inner)
        self.activation = ACTIVATIONS[activation]()
        self.down = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class Block(nn.Module):
    """Post-norm: the norm follows the residual sum, as in the original Transformer and BERT."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(config.width, config.heads)
        self.attention_norm = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.feed_forward = FeedForward(config.width, config.feed_forward, config.activation)
        self.feed_forward_norm = nn.LayerNorm(config.width, eps=config.norm_epsilon)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        x = self.attention_norm(x + self.attention(x, layout))
        return self.feed_forward_norm(x + self.feed_forward(x))
