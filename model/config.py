"""What an encoder is made of: small frozen objects, each checked when it is made.

EncoderConfig(
    inputs=TokensConfig(vocabulary=1000),
    width=64,
    positions=SinusoidalConfig(),
    max_length=512,
    layers=(LayerConfig(AttentionConfig(heads=4, pattern=Window(16)), FeedForwardConfig(256)),) * 2,
    head=LabelsConfig(("noun", "verb"), per="token"),
)
"""

from dataclasses import dataclass, field

from torch import nn

from heed.model.attention_config import AttentionConfig, AttentionVariant
from heed.model.classification_head import LabelsConfig
from heed.model.config_checks import check_integers
from heed.model.disentangled_attention import DisentangledConfig, DistancesConfig
from heed.model.embeddings import ImagesConfig, TokensConfig, VectorsConfig
from heed.model.feed_forward import Activation, FeedForwardConfig
from heed.model.longformer_attention import LongformerConfig
from heed.model.norms import NormConfig
from heed.model.pooling import PoolingConfig, PoolingMode
from heed.model.positions import Alibi, LearnedPositions, LogBuckets, PositionRule, SinusoidalPositions
from heed.model.transformer_block import Block, PreNormBlock, SandwichBlock

__all__ = [
    "Activation",
    "Alibi",
    "AttentionConfig",
    "DisentangledConfig",
    "DistancesConfig",
    "EncoderConfig",
    "FeedForwardConfig",
    "ImagesConfig",
    "LabelsConfig",
    "LayerConfig",
    "LearnedConfig",
    "LogBuckets",
    "LongformerConfig",
    "NormConfig",
    "PoolingConfig",
    "PoolingMode",
    "PositionRule",
    "SinusoidalConfig",
    "TokensConfig",
    "VectorsConfig",
]


@dataclass(frozen=True)
class LayerConfig:
    """One layer."""

    attention: AttentionVariant
    feed_forward: FeedForwardConfig
    norm: NormConfig = NormConfig()
    norm_first: bool = False  # pre-norm; post-norm when false
    attention_norm: bool = True  # false leaves out the first norm (ModernBERT's first layer)
    sandwich: bool = False  # pre-norm, and norms of what is added as well (Gemma)

    def build(self, width: int, max_length: int) -> Block:
        parts = (
            self.attention.build(width, max_length),
            self.feed_forward.build(width),
            self.norm.build(width) if self.attention_norm else nn.Identity(),
            self.norm.build(width),
        )
        if self.sandwich:
            return SandwichBlock(*parts, self.norm.build(width), self.norm.build(width))
        return (PreNormBlock if self.norm_first else Block)(*parts)


@dataclass(frozen=True)
class LearnedConfig:
    """A table of position vectors."""

    rows: int

    def __post_init__(self) -> None:
        check_integers(self, "rows")

    def build(self, width: int, max_length: int) -> LearnedPositions:
        return LearnedPositions(self.rows, width)


@dataclass(frozen=True)
class SinusoidalConfig:
    """Sines and cosines of the position."""

    def build(self, width: int, max_length: int) -> SinusoidalPositions:
        return SinusoidalPositions(max_length, width)


@dataclass(frozen=True)
class EncoderConfig:
    """A self-attention encoder.

    Raises:
        ValueError: a field is out of range, or two do not fit together; the message names them.
    """

    inputs: TokensConfig | VectorsConfig | ImagesConfig
    width: int  # D: the length of a hidden vector
    layers: tuple[LayerConfig, ...]
    max_length: int  # columns of the longest row
    positions: LearnedConfig | SinusoidalConfig | None = None  # added to the input
    position_rule: PositionRule = PositionRule()
    relative_bias: LogBuckets | Alibi | DistancesConfig | None = None  # what all layers share about distances
    embedding_norm: NormConfig | None = None
    final_norm: NormConfig | None = None
    head: PoolingConfig | LabelsConfig | None = None
    first_tokens_global: int = 0  # the global tokens where a request names none
    needs: frozenset[str] = field(init=False, repr=False)  # inputs beside the tokens, by their names in a request

    def __post_init__(self) -> None:
        check_integers(self, "width", "max_length")
        check_integers(self, "first_tokens_global", least=0)
        if not self.layers:
            raise ValueError("layers must hold at least one layer")
        needs: frozenset[str] = frozenset().union(*(layer.attention.needs for layer in self.layers))
        object.__setattr__(self, "needs", needs)
        self._check_lengths()
        self._check_positions()
        self._check_relative_bias()
        if self.first_tokens_global and "global_attention_mask" not in needs:
            raise ValueError("first_tokens_global stands in for a global_attention_mask, which no layer reads")

    def _check_lengths(self) -> None:
        for layer in self.layers:
            limit = layer.attention.max_length
            if limit is not None and self.max_length > limit:
                raise ValueError(f"max_length {self.max_length} is more than the attention takes, {limit}")
        if isinstance(self.inputs, ImagesConfig) and self.max_length != self.inputs.patches + 1:
            raise ValueError(f"max_length must be {self.inputs.patches + 1}: the patches and the class token")

    def _check_positions(self) -> None:
        if isinstance(self.inputs, TokensConfig):
            padding_id = self.position_rule.padding_id
            if type(padding_id) is not int or not 0 <= padding_id < self.inputs.vocabulary:
                raise ValueError(f"padding_id {padding_id!r} is outside the vocabulary of {self.inputs.vocabulary}")
        elif self.position_rule.kind == "counted":
            raise ValueError("position_rule counted goes by token ids, and the inputs are none")
        if isinstance(self.positions, LearnedConfig) and self.positions.rows < self.position_rows:
            raise ValueError(
                f"{self.positions.rows} positions are too few for {self.max_length} columns "
                f"that are counted from {self.first_position}"
            )

    def _check_relative_bias(self) -> None:
        reads_them = isinstance(self.relative_bias, DistancesConfig)
        if self.relative_bias and not all(layer.attention.has_scores for layer in self.layers):
            raise ValueError("relative_bias is added to scores, and an approximation has none")
        if any(layer.attention.reads_distances != reads_them for layer in self.layers):
            raise ValueError("a DistancesConfig as relative_bias goes with disentangled attention, in all layers")
        if self.relative_bias and len({layer.attention.heads for layer in self.layers}) > 1:
            raise ValueError("relative_bias is shared by all layers, so they must have the same number of heads")

    @property
    def vocabulary(self) -> int:
        """How many token ids there are; 0 for models over vectors and images."""
        return self.inputs.vocabulary if isinstance(self.inputs, TokensConfig) else 0

    @property
    def token_types(self) -> int:
        return self.inputs.token_types if isinstance(self.inputs, TokensConfig) else 0

    @property
    def first_position(self) -> int:
        """The position of a row's first token."""
        return self.position_rule.padding_id + 1 if self.position_rule.kind == "counted" else 0

    @property
    def position_rows(self) -> int:
        """One more than the last position of the longest row."""
        return self.max_length + self.first_position

    @property
    def aligned(self) -> bool:
        """Whether the columns of tokens matter inside attention: then a token's slot must be its column."""
        return self.relative_bias is not None or any(layer.attention.aligned for layer in self.layers)

    @property
    def reads_first(self) -> bool:
        """Whether the head reads nothing but the first token of each row."""
        return self.reads_first_real or (
            isinstance(self.head, LabelsConfig) and self.head.per == "sequence" and self.head.pooling == "cls"
        )

    @property
    def reads_first_real(self) -> bool:
        """Whether that is the first real token, and not that of column 0 whether it is real or not."""
        if isinstance(self.head, LabelsConfig):
            return self.head.per == "sequence" and self.head.pooling == "first_real"
        return isinstance(self.head, PoolingConfig) and self.head.modes == ("cls",)

    @property
    def plain(self) -> bool:
        """Whether all layers attend by nothing but softmax over all pairs."""
        return self.relative_bias is None and all(layer.attention.plain for layer in self.layers)

    @property
    def block_sparse(self) -> bool:
        """Whether some layer can be computed blockwise, for less than all pairs."""
        return any(layer.attention.block_sparse for layer in self.layers)
