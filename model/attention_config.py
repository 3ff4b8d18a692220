"""The settings of a layer's attention, from which the layer builds it.

`AttentionConfig` covers what varies within multi-head attention: patterns, scores, widths, rotary positions. Any other
attention (Longformer, Big Bird) has a config of its own, a subclass of `AttentionVariant`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

from torch import nn

from heed.model.attention import Attention, Mechanism, MultiHeadAttention
from heed.model.block_index import is_block_sparse
from heed.model.config_checks import check_integers
from heed.model.exact_attention import ExactAttention
from heed.model.head_groups import HeadGroups
from heed.model.norms import NormConfig
from heed.model.patterns import Full, Pattern, least
from heed.model.positions import RotaryPositions
from heed.model.score_functions import ScaledDot
from heed.model.softmax import Normalizer, softmax


class AttentionVariant:
    """What a layer and the exporter ask of the config of an attention. A subclass says what differs from here."""

    heads: int  # N

    @property
    def aligned(self) -> bool:
        """Whether the columns of tokens matter: then a token's slot must be its column."""
        return False

    @property
    def block_sparse(self) -> bool:
        """Whether some head can be computed blockwise, for less than all pairs."""
        return False

    @property
    def dense_up_to(self) -> int:
        """Rows of so many columns and fewer must be computed from all pairs."""
        return 0

    @property
    def plain(self) -> bool:
        """Whether it is nothing but softmax over all pairs by scaled dot products, as Vaswani et al. have it."""
        return False

    @property
    def has_weights(self) -> bool:
        """Whether there are attention weights between tokens to return."""
        return True

    @property
    def has_scores(self) -> bool:
        """Whether there are scores, to which a bias can be added."""
        return True

    @property
    def reads_distances(self) -> bool:
        """Whether it reads the vectors of distances that all layers share."""
        return False

    @property
    def needs(self) -> frozenset[str]:
        """Inputs beside the tokens, by their names in a request."""
        return frozenset()

    @property
    def max_length(self) -> int | None:
        """The longest row that it takes; None if there is no limit."""
        return None

    def build(self, width: int, max_length: int) -> Attention:
        """The module, for hidden vectors of `width` values and rows of up to `max_length` positions."""
        raise NotImplementedError


@dataclass(frozen=True)
class AttentionConfig(AttentionVariant):
    """How the heads of a layer attend.

    Raises:
        ValueError: a field is out of range, or two do not fit together; the message names them.
    """

    heads: int  # N
    pattern: Pattern | tuple[Pattern, ...] = Full()  # one for all heads, or one for each
    score: Callable[[int, int], nn.Module] = ScaledDot
    normalize: Normalizer = softmax
    # In place of pattern, score and normalize: a class of linear_attention.py, whose time is linear in the length.
    approximation: Callable[[int, int], Mechanism] | None = None
    key_heads: int | None = None  # of keys and values, where several heads share one (grouped queries)
    head_norm: NormConfig | None = None  # of each head's queries and keys, before they are rotated
    head_width: int | None = None  # H of queries and keys; D / N when left out
    value_width: int | None = None  # H of values; that of the keys when left out
    bias: bool = True  # in the four projections
    out_bias: bool | None = None  # in the last of them, where it differs
    rotary_base: float | None = None  # rotate queries and keys by their positions (see positions.py)
    rotary_factor: float = 1.0  # how much longer rows are than those that the base was made for

    def __post_init__(self) -> None:
        given = [name for name in ("key_heads", "head_width", "value_width") if getattr(self, name) is not None]
        check_integers(self, "heads", *given)
        if self.key_heads is not None and self.heads % self.key_heads:
            raise ValueError(f"{self.heads} heads cannot share {self.key_heads} key_heads in groups of one size")
        if self.approximation and (self.pattern, self.score, self.normalize) != (Full(), ScaledDot, softmax):
            raise ValueError("an approximation stands in place of pattern, score and normalize; leave them out")
        if isinstance(self.pattern, tuple) and len(self.pattern) != self.heads:
            raise ValueError(f"{len(self.pattern)} patterns for {self.heads} heads; give one, or one for each head")

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        """One for each head."""
        return self.pattern if isinstance(self.pattern, tuple) else (self.pattern,) * self.heads

    @property
    def aligned(self) -> bool:
        return self.approximation is not None or any(pattern != Full() for pattern in self.patterns)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset().union(*(pattern.needs for pattern in self.patterns))

    @property
    def block_sparse(self) -> bool:
        return self.approximation is None and any(is_block_sparse(pattern) for pattern in self.patterns)

    @property
    def plain(self) -> bool:
        exact = self.approximation is None and (self.score, self.normalize) == (ScaledDot, softmax)
        sizes = self.value_width in (None, self.head_width)
        own = self.key_heads in (None, self.heads) and self.head_norm is None and self.rotary_base is None
        return exact and not self.aligned and own and sizes and self.bias

    @property
    def has_weights(self) -> bool:
        return getattr(self._class, "has_weights", True)

    @property
    def has_scores(self) -> bool:
        return self.approximation is None

    @property
    def max_length(self) -> int | None:
        options = getattr(self.approximation, "keywords", {})  # of a partial
        limit = options.get("max_length", getattr(self._class, "max_length", None))
        return least([limit, *(pattern.max_length for pattern in self.patterns)])

    @property
    def _class(self) -> object:
        """The class of the approximation, or of the score."""
        made_by = self.approximation or self.score
        return getattr(made_by, "func", made_by)

    def build(self, width: int, max_length: int) -> MultiHeadAttention:
        if self.head_width is None and width % self.heads:
            raise ValueError(f"width {width} does not divide into {self.heads} heads; give head_width")
        head_width = self.head_width or width // self.heads
        return MultiHeadAttention(
            width,
            self.heads,
            self._mechanisms,
            head_width,
            self.value_width or head_width,
            bias=self.bias,
            out_bias=self.bias if self.out_bias is None else self.out_bias,
            rotary=self._rotary(head_width, max_length),
            key_heads=self.key_heads,
            head_norm=self.head_norm.build if self.head_norm else None,
        )

    def _rotary(self, head_width: int, max_length: int) -> RotaryPositions | None:
        if self.rotary_base is None:
            return None
        return RotaryPositions(head_width, self.rotary_base, max_length, self.rotary_factor)

    def _mechanisms(self, heads: int, head_width: int) -> HeadGroups:
        """One mechanism for all neighbouring heads with the same pattern."""
        groups = [(pattern, len(list(same))) for pattern, same in groupby(self.patterns)]
        return HeadGroups([self._mechanism(p, size, head_width) for p, size in groups], [size for _, size in groups])

    def _mechanism(self, pattern: Pattern, heads: int, head_width: int) -> Mechanism:
        if self.approximation is not None:
            return self.approximation(heads, head_width)
        return ExactAttention(self.score(heads, head_width), self.normalize, pattern)
