"""Multi-head self-attention (Vaswani et al., 2017, section 3.2).

Letters: B batch, L length, D width, N heads, H head width, V head width of the values. The layout says where tokens
lie.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from heed.model.blockwise import Bias, Heads, Rule, blocked, has_cheap_form
from heed.model.config_checks import check_integers
from heed.model.layout import Layout
from heed.model.patterns import Full, Pairs, Pattern, least
from heed.model.positions import Rotary
from heed.model.score_functions import ScaledDot
from heed.model.softmax import Selection, soft


def all_pairs(layout: Layout) -> Pairs:
    """Every query with every key: columns `[1, 1, L, 1]` and `[1, 1, 1, L]`."""
    return layout.shared.once(all_pairs, lambda: _all_pairs(layout))


def _all_pairs(layout: Layout) -> Pairs:
    columns_L = torch.arange(layout.real_BL.shape[1], device=layout.real_BL.device)
    adjacency, tokens = layout.adjacency_BLL, layout.global_tokens
    is_global_BL = None if tokens is None else tokens.among(columns_L).any(-1)
    return Pairs(
        i=columns_L[:, None][None, None],
        j=columns_L[None, :][None, None],
        adjacency=None if adjacency is None else adjacency[:, None],
        global_i=None if is_global_BL is None else is_global_BL[:, None, :, None],
        global_j=None if is_global_BL is None else is_global_BL[:, None, None, :],
    )


class Mechanism(nn.Module):
    """How projected heads attend."""

    def weights(self, query_BNLH: Tensor, key_BNLH: Tensor, layout: Layout, bias: Bias | None) -> Tensor:
        """How much each query takes of each key, `[B, N, L, L]`."""
        raise NotImplementedError

    def forward(
        self, query_BNLH: Tensor, key_BNLH: Tensor, value_BNLV: Tensor, layout: Layout, bias: Bias | None
    ) -> Tensor:
        """What each query takes of the values, `[B, N, L or more, V]`."""
        raise NotImplementedError


class Attention(nn.Module):
    """What lets the tokens of a sequence take something of one another."""

    def forward(self, x: Tensor, layout: Layout, bias: Bias | None = None) -> Tensor:
        """D values per token in, D values per token out."""
        raise NotImplementedError

    def weights(self, x: Tensor, layout: Layout, bias: Bias | None = None) -> Tensor:
        """How much each token takes of each other one, in each head: `[B, N, L, L]`."""
        raise NotImplementedError


class Exact(Mechanism):
    """Attention by scores: `select(score(Q, K)) V` over the pairs that a pattern allows."""

    def __init__(self, score: nn.Module, select: Selection, pattern: Pattern) -> None:
        super().__init__()
        self.score, self.select, self.pattern = score, select, pattern

    def weights(self, query_BNLH: Tensor, key_BNLH: Tensor, layout: Layout, bias: Bias | None) -> Tensor:
        rule, pairs = self._rule(bias), all_pairs(layout)
        return rule.weights(rule.scores(query_BNLH, key_BNLH, pairs), self._allowed(layout), pairs.j)

    def forward(
        self, query_BNLH: Tensor, key_BNLH: Tensor, value_BNLV: Tensor, layout: Layout, bias: Bias | None
    ) -> Tensor:
        heads, rule = Heads(query_BNLH, key_BNLH, value_BNLV), self._rule(bias)
        if has_cheap_form(self.pattern) and not layout.dense:
            return blocked(rule, self.pattern, heads, layout)
        if layout.at_once is None:
            pairs = all_pairs(layout)
            scores_BNLL = rule.scores(query_BNLH, key_BNLH, pairs)
            return rule.attend(scores_BNLL, self._allowed(layout), pairs.j, value_BNLV)
        return self._by_slices(rule, heads, layout, layout.at_once)

    def _rule(self, bias: Bias | None) -> Rule:
        return Rule(self.score, self.select, bias)

    def _allowed(self, layout: Layout) -> Tensor:
        """The pairs that count, `[B, 1, L or 1, L]`."""
        return layout.shared.once(
            self.pattern, lambda: self.pattern.allows(all_pairs(layout)) & layout.real_BL[:, None, None, :]
        )

    def _by_slices(self, rule: Rule, heads: Heads, layout: Layout, at_once: int) -> Tensor:
        """The same, with the weights of so many queries in memory at a time."""
        real = layout.real_BL[:, None, None, :]
        attended = []
        for start in range(0, layout.real_BL.shape[1], at_once):
            queries = slice(start, start + at_once)
            pairs = all_pairs(layout).of(queries)
            scores = rule.scores(heads.query[:, :, queries], heads.key, pairs)
            attended.append(rule.attend(scores, self.pattern.allows(pairs) & real, pairs.j, heads.value))
        return torch.cat(attended, 2)


@dataclass(frozen=True)
class AttentionConfig:
    """How the heads of a layer attend.

    Raises:
        ValueError: a field is out of range, or two do not fit together; the message names them.
    """

    heads: int  # N
    pattern: Pattern | tuple[Pattern, ...] = Full()  # one for all heads, or one for each
    score: Callable[[int, int], nn.Module] = ScaledDot
    select: Selection = soft
    # In place of score, selection and pattern: a module of linear.py that costs linear time.
    approximation: Callable[[int, int], Mechanism] | None = None
    head_width: int | None = None  # H of queries and keys; D / N when left out
    value_width: int | None = None  # H of values; that of the keys when left out
    bias: bool = True  # in the four projections
    out_bias: bool | None = None  # in the last of them, where it differs
    rotary_base: float | None = None  # turn queries and keys by their positions (see positions.py)

    def __post_init__(self) -> None:
        given = [name for name in ("head_width", "value_width") if getattr(self, name) is not None]
        check_integers(self, "heads", *given)
        if self.approximation and (self.pattern, self.score, self.select) != (Full(), ScaledDot, soft):
            raise ValueError("an approximation stands in place of pattern, score and select; leave them out")
        if isinstance(self.pattern, tuple) and len(self.pattern) != self.heads:
            raise ValueError(f"{len(self.pattern)} patterns for {self.heads} heads; give one, or one for each head")

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        """One for each head."""
        return self.pattern if isinstance(self.pattern, tuple) else (self.pattern,) * self.heads

    @property
    def aligned(self) -> bool:
        """Whether the columns of tokens matter: then a token's slot must be its column."""
        return self.approximation is not None or any(pattern != Full() for pattern in self.patterns)

    @property
    def needs(self) -> frozenset[str]:
        """Inputs beside the tokens, by their names in a request."""
        return frozenset().union(*(pattern.needs for pattern in self.patterns))

    @property
    def cheap(self) -> bool:
        """Whether some head has a cheaper form than all pairs."""
        return self.approximation is None and any(has_cheap_form(pattern) for pattern in self.patterns)

    @property
    def dense_up_to(self) -> int:
        """Rows of so many columns and fewer must be computed from all pairs."""
        return 0

    @property
    def plain(self) -> bool:
        """Whether it is nothing but softmax over all pairs by scaled dot products, as Vaswani et al. have it."""
        exact = self.approximation is None and (self.score, self.select) == (ScaledDot, soft)
        sizes = self.value_width in (None, self.head_width)
        return exact and not self.aligned and self.rotary_base is None and sizes and self.bias

    @property
    def has_weights(self) -> bool:
        """Whether there are weights between tokens to show."""
        return getattr(self._mechanism, "has_weights", True)

    @property
    def max_length(self) -> int | None:
        """The longest row that this attention takes; None if it does not care."""
        options = getattr(self.approximation, "keywords", {})  # of a partial
        mechanism = options.get("max_length", getattr(self._mechanism, "max_length", None))
        return least([mechanism, *(pattern.max_length for pattern in self.patterns)])

    @property
    def _mechanism(self) -> object:
        """The class that attends."""
        mechanism = self.approximation or self.score
        return getattr(mechanism, "func", mechanism)

    def build(self, width: int, max_length: int) -> "MultiHeadAttention":
        return MultiHeadAttention(self, width, max_length)


class MultiHeadAttention(Attention):
    """Each of N heads attends in its own projection of the input; their values are concatenated and projected.

    D values per token in, D values per token out.
    """

    rotary: Rotary | None

    def __init__(self, config: AttentionConfig, width: int, max_length: int) -> None:
        super().__init__()
        if config.head_width is None and width % config.heads:
            raise ValueError(f"width {width} does not divide into {config.heads} heads; give head_width")
        self.heads = config.heads
        head_width = config.head_width or width // config.heads
        value_width = config.value_width or head_width
        self.query = nn.Linear(width, self.heads * head_width, bias=config.bias)
        self.key = nn.Linear(width, self.heads * head_width, bias=config.bias)
        self.value = nn.Linear(width, self.heads * value_width, bias=config.bias)
        out_bias = config.bias if config.out_bias is None else config.out_bias
        self.out = nn.Linear(self.heads * value_width, width, bias=out_bias)
        self.rotary = None if config.rotary_base is None else Rotary(head_width, config.rotary_base, max_length)
        # Neighbouring heads with the same pattern attend together.
        self.runs = [len(list(run)) for _, run in groupby(config.patterns)]
        self.mechanisms: Iterable[Mechanism] = nn.ModuleList(  # type: ignore[assignment]
            config.approximation(count, head_width)
            if config.approximation
            else Exact(config.score(count, head_width), config.select, pattern)
            for count, (pattern, _) in zip(self.runs, groupby(config.patterns), strict=True)
        )

    def forward(self, x: Tensor, layout: Layout, bias: Bias | None = None) -> Tensor:
        query_BNLH, key_BNLH = self._queries_and_keys(x, layout)
        value_BNLV = layout.to_heads(self.value(x), self.heads)
        attended = [
            mechanism(query, key, value, layout, run_bias)
            for mechanism, query, key, value, run_bias in zip(
                self.mechanisms,
                self._split(query_BNLH),
                self._split(key_BNLH),
                self._split(value_BNLV),
                self._split_bias(bias),
                strict=True,
            )
        ]
        return self.out(layout.from_heads(_join(attended)))

    def weights(self, x: Tensor, layout: Layout, bias: Bias | None = None) -> Tensor:
        query_BNLH, key_BNLH = self._queries_and_keys(x, layout)
        weights = [
            mechanism.weights(query, key, layout, run_bias)
            for mechanism, query, key, run_bias in zip(
                self.mechanisms,
                self._split(query_BNLH),
                self._split(key_BNLH),
                self._split_bias(bias),
                strict=True,
            )
        ]
        return _join(weights)

    def _queries_and_keys(self, x: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        query, key = self.query(x), self.key(x)
        if self.rotary is not None:
            query, key = (self.rotary(each, layout.positions) for each in (query, key))
        return layout.to_heads(query, self.heads), layout.to_heads(key, self.heads)

    def _split(self, x_BNLH: Tensor) -> Iterable[Tensor]:
        """The heads of each run. A single run is no split: in a graph that would be a copy."""
        return [x_BNLH] if len(self.runs) == 1 else torch.split(x_BNLH, self.runs, 1)

    def _split_bias(self, bias: Bias | None) -> list[Bias | None]:
        """The bias of each run of heads."""
        if bias is None or len(self.runs) == 1:
            return [bias] * len(self.runs)
        starts = [sum(self.runs[:index]) for index in range(len(self.runs))]
        return [_of_heads(bias, slice(start, start + count)) for start, count in zip(starts, self.runs, strict=True)]


def _of_heads(bias: Bias, heads: slice) -> Bias:
    return lambda pairs: bias(pairs)[:, heads]


def _join(runs: list[Tensor]) -> Tensor:
    """Runs of heads side by side again; they may have different numbers of slots beyond L."""
    if len(runs) == 1:
        return runs[0]
    length = min(run.shape[2] for run in runs)
    return torch.cat([run[:, :, :length] for run in runs], 1)
