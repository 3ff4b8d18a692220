"""What an encoder is made of. Frozen, and checked when it is made."""

from dataclasses import dataclass
from typing import Literal, get_args

Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]
PoolingMode = Literal["cls", "mean", "max"]
PositionRule = Literal["column", "counted"]


@dataclass(frozen=True)
class EncoderConfig:
    """A post-norm encoder over tokens, as in BERT (Devlin et al., 2018).

    Raises:
        ValueError: a field is out of range; the message names it.
    """

    vocabulary: int  # rows of the token table
    positions: int  # rows of the position table
    token_types: int  # rows of the token type table
    width: int  # D: the length of a hidden vector
    heads: int  # N: each works on H = D / N values
    layers: int
    feed_forward: int  # the inner width of the feed-forward layer
    activation: Activation = "gelu"
    norm_epsilon: float = 1e-12
    position_rule: PositionRule = "column"  # see positions.py
    padding_id: int = 0  # only the "counted" rule looks at it

    def __post_init__(self) -> None:
        for name in ("vocabulary", "positions", "token_types", "width", "heads", "layers", "feed_forward"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads")
        if self.activation not in get_args(Activation):
            raise ValueError(f"activation {self.activation!r} is none of {', '.join(get_args(Activation))}")
        if self.position_rule not in get_args(PositionRule):
            raise ValueError(f"position_rule {self.position_rule!r} is none of {', '.join(get_args(PositionRule))}")
        if not isinstance(self.norm_epsilon, int | float) or not 0 < self.norm_epsilon < 1:
            raise ValueError(f"norm_epsilon must lie between 0 and 1, got {self.norm_epsilon!r}")
        if type(self.padding_id) is not int or not 0 <= self.padding_id < self.vocabulary:
            raise ValueError(f"padding_id {self.padding_id!r} is outside the vocabulary of {self.vocabulary}")
        if self.max_length < 1:
            raise ValueError(f"{self.positions} positions leave no room after padding id {self.padding_id}")

    @property
    def max_length(self) -> int:
        """The longest sequence in tokens; the counted rule starts behind the padding id."""
        return self.positions - (self.padding_id + 1 if self.position_rule == "counted" else 0)


@dataclass(frozen=True)
class PoolingConfig:
    """How the hidden vectors of a sequence become one (sentence-transformers' `Pooling` and `Normalize`)."""

    mode: PoolingMode
    unit_length: bool  # scale the vector to length 1

    def __post_init__(self) -> None:
        if self.mode not in get_args(PoolingMode):
            raise ValueError(f"pooling mode {self.mode!r} is none of {', '.join(get_args(PoolingMode))}")
