"""Attention patterns: who may attend to whom, as sets of allowed (query, key) pairs.

A pattern is a small frozen object. Patterns combine by union (`Window(64) | FirstTokens(1)`) and by intersection
(`Window(64) & Causal()`), and each head of a layer may have one of its own (see `AttentionConfig`).

A new pattern is one new class with `allows`. If it also says how far it reaches (`reach`), it is block-sparse and costs
linear time and memory in the length, with nothing else to write: see `block_index.py`.

Letters: B batch, L length. `i` is the column of a query, `j` that of a key.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import reduce
from math import lcm
from operator import and_, or_

import numpy as np
import torch
from torch import Tensor

from heed.model.config_checks import check_integers
from heed.model.layout import GlobalTokens, Layout

SMALLEST_BLOCK = 16  # narrower blocks would make for slow matrix products


def least(limits: Iterable[int | None]) -> int | None:
    """The smallest of the limits; None where there is none."""
    return min((limit for limit in limits if limit is not None), default=None)


@dataclass(frozen=True)
class Pairs:
    """Queries and keys by their columns. All tensors broadcast against each other to the shape of the scores."""

    i: Tensor  # columns of the queries: [1, 1, L, 1], or in blocks [1, 1, blocks, size, 1]
    j: Tensor  # columns of the keys: [1, 1, 1, L], or in blocks [1, 1, blocks, 1, keys]
    adjacency: Tensor | None = None  # [B, 1, L, L]
    global_i: Tensor | None = None  # True where the query is global: [B, 1, L, 1]
    global_j: Tensor | None = None  # the same for keys: [B, 1, 1, L]

    def of_queries(self, queries: slice) -> "Pairs":
        """The pairs of some queries, out of all pairs."""
        return replace(
            self,
            i=self.i[:, :, queries],
            adjacency=None if self.adjacency is None else self.adjacency[:, :, queries],
            global_i=None if self.global_i is None else self.global_i[:, :, queries],
        )


def all_pairs(layout: Layout) -> Pairs:
    """Every query with every key of a row, and what the request says of them."""
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


class Pattern:
    """A set of allowed pairs."""

    def allows(self, pairs: Pairs) -> Tensor:
        """True where query i may attend to key j, of a shape that broadcasts to the scores'."""
        raise NotImplementedError

    @property
    def reach(self) -> int | None:
        """The largest distance |i - j| between allowed pairs; None if there is no bound."""
        return None

    @property
    def block(self) -> int | None:
        """The width of the blocks in which this pattern is computed; None if it is not block-sparse."""
        return None if self.reach is None else max(self.reach, SMALLEST_BLOCK)

    @property
    def step(self) -> int:
        """The width of a block must be a multiple of this."""
        return 1

    def key_blocks(self, query_blocks: Tensor, size: int) -> Tensor:
        """The only blocks of keys that the queries of a block may attend to.

        Args:
            query_blocks: `[blocks]`, counted from 0.
            size: the width of a block.

        Returns:
            `[blocks, n]`. May lie outside the sequence, and may name a block twice.
        """
        assert self.reach is not None
        neighbours = -(-self.reach // size)
        return query_blocks[:, None] + torch.arange(-neighbours, neighbours + 1, device=query_blocks.device)

    @property
    def parts(self) -> tuple["Pattern", ...]:
        """The patterns whose union this is."""
        return (self,)

    @property
    def needs(self) -> frozenset[str]:
        """The inputs that this pattern reads, by their names in a request."""
        return frozenset()

    @property
    def max_length(self) -> int | None:
        """The longest row whose pairs it knows; None if there is no such limit."""
        return None

    def __or__(self, other: "Pattern") -> "Pattern":
        return Union((*self.parts, *other.parts))

    def __and__(self, other: "Pattern") -> "Pattern":
        return Intersection((self, other))


class GlobalPattern(Pattern):
    """Some tokens see all and are seen by all."""

    def tokens(self, layout: Layout) -> GlobalTokens | None:
        """Which ones; None if there are none."""
        raise NotImplementedError


@dataclass(frozen=True)
class Full(Pattern):
    """Every token sees every token (Vaswani et al., 2017)."""

    def allows(self, pairs: Pairs) -> Tensor:
        return torch.ones_like(pairs.j, dtype=torch.bool)


@dataclass(frozen=True)
class Window(Pattern):
    """Tokens at most `radius` columns apart (Longformer, Beltagy et al., 2020; ModernBERT)."""

    radius: int

    def __post_init__(self) -> None:
        check_integers(self, "radius", least=0)

    def allows(self, pairs: Pairs) -> Tensor:
        return (pairs.i - pairs.j).abs() <= self.radius

    @property
    def reach(self) -> int:
        return self.radius


@dataclass(frozen=True)
class Strided(Pattern):
    """Tokens a multiple of `stride` apart, at most `within` columns (sparse transformers, Child et al., 2019)."""

    stride: int
    within: int | None = None

    def __post_init__(self) -> None:
        check_integers(self, "stride")
        if self.within is not None:
            check_integers(self, "within", least=0)

    def allows(self, pairs: Pairs) -> Tensor:
        distance = (pairs.i - pairs.j).abs()
        on_stride = distance % self.stride == 0
        return on_stride if self.within is None else on_stride & (distance <= self.within)

    @property
    def reach(self) -> int | None:
        return self.within


@dataclass(frozen=True)
class Chunk(Pattern):
    """Tokens of the same chunk of `size` columns: truncated attention, common for speech."""

    size: int

    def __post_init__(self) -> None:
        check_integers(self, "size")

    def allows(self, pairs: Pairs) -> Tensor:
        return pairs.i // self.size == pairs.j // self.size

    @property
    def reach(self) -> int:
        return self.size - 1

    @property
    def block(self) -> int:
        return self.size * -(-SMALLEST_BLOCK // self.size)

    def key_blocks(self, query_blocks: Tensor, size: int) -> Tensor:
        whole_chunks = size % self.size == 0
        return query_blocks[:, None] if whole_chunks else super().key_blocks(query_blocks, size)


@dataclass(frozen=True)
class BlockWindow(Pattern):
    """Tokens whose blocks of `size` columns are at most `radius` blocks apart (Big Bird, Zaheer et al., 2020)."""

    size: int
    radius: int = 1

    def __post_init__(self) -> None:
        check_integers(self, "size")
        check_integers(self, "radius", least=0)

    def allows(self, pairs: Pairs) -> Tensor:
        return (pairs.i // self.size - pairs.j // self.size).abs() <= self.radius

    @property
    def reach(self) -> int:
        return self.size * (self.radius + 1) - 1

    @property
    def block(self) -> int:
        return self.size

    def key_blocks(self, query_blocks: Tensor, size: int) -> Tensor:
        if size % self.size:
            return super().key_blocks(query_blocks, size)
        neighbours = -(-self.radius * self.size // size)  # fewer than the reach asks for: blocks stand on blocks
        return query_blocks[:, None] + torch.arange(-neighbours, neighbours + 1, device=query_blocks.device)


@dataclass(frozen=True)
class Causal(Pattern):
    """A token sees itself and what came before."""

    def allows(self, pairs: Pairs) -> Tensor:
        return pairs.j <= pairs.i


@dataclass(frozen=True)
class FirstTokens(GlobalPattern):
    """The first `count` columns see all and are seen by all, as `[CLS]` is."""

    count: int

    def __post_init__(self) -> None:
        check_integers(self, "count")

    def allows(self, pairs: Pairs) -> Tensor:
        return (pairs.i < self.count) | (pairs.j < self.count)

    def tokens(self, layout: Layout) -> GlobalTokens:
        batch, length = layout.real_BL.shape
        slots_G = torch.arange(max(self.count, 2), device=layout.real_BL.device)
        present_G = (slots_G < self.count) & (slots_G < length)
        return GlobalTokens(slots_G.clamp(max=length - 1).expand(batch, -1), present_G.expand(batch, -1))


@dataclass(frozen=True)
class GlobalMask(GlobalPattern):
    """The tokens that the request marks in `global_attention_mask` see all and are seen by all (Longformer)."""

    def allows(self, pairs: Pairs) -> Tensor:
        if pairs.global_i is None or pairs.global_j is None:
            return torch.zeros_like(pairs.j, dtype=torch.bool)
        return pairs.global_i | pairs.global_j

    def tokens(self, layout: Layout) -> GlobalTokens | None:
        return layout.global_tokens

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"global_attention_mask"})


@dataclass(frozen=True)
class Adjacency(Pattern):
    """The edges of a graph, given with the request: attention as a graph network (Veličković et al., 2018)."""

    def allows(self, pairs: Pairs) -> Tensor:
        if pairs.adjacency is None:
            raise ValueError("this model attends along a graph's edges: the input adjacency is missing")
        return pairs.adjacency

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"adjacency"})


@dataclass(frozen=True)
class Random(Pattern):
    """Every block of queries sees `count` random blocks of keys (Big Bird).

    Which ones depends on the seed and the query's block alone, never on the length: they are drawn from the blocks up
    to about twice as far as the query's own. Those beyond the sequence's end fall away.
    """

    count: int
    size: int
    blocks: int  # how many blocks of queries there can be
    seed: int = 0

    def __post_init__(self) -> None:
        check_integers(self, "count", "size", "blocks")
        check_integers(self, "seed", least=0)

    def _drawn(self, device: torch.device) -> Tensor:
        """The key blocks of every query block, `[blocks, count]`."""
        rows = [
            np.random.default_rng([self.seed, block]).choice(2 * block + self.count + 1, self.count, replace=False)
            for block in range(self.blocks)
        ]
        return torch.from_numpy(np.stack(rows)).to(device)

    def allows(self, pairs: Pairs) -> Tensor:
        query_blocks = (pairs.i // self.size).clamp(max=self.blocks - 1)  # a block of slots may reach past the end
        drawn = self._drawn(pairs.i.device)[query_blocks]  # [..., 1, count]
        return (drawn == (pairs.j // self.size)[..., None]).any(-1)

    @property
    def block(self) -> int:
        return self.size

    @property
    def step(self) -> int:
        return self.size

    @property
    def max_length(self) -> int:
        return self.blocks * self.size

    def key_blocks(self, query_blocks: Tensor, size: int) -> Tensor:
        fold = size // self.size  # of this pattern's blocks in one of `size` columns
        drawn = self._drawn(query_blocks.device)
        own_blocks = query_blocks[:, None] * fold + torch.arange(fold, device=query_blocks.device)
        return drawn[own_blocks.clamp(max=self.blocks - 1)].flatten(1) // fold


@dataclass(frozen=True)
class Combination(Pattern):
    """Several patterns in one."""

    patterns: tuple[Pattern, ...]

    @property
    def needs(self) -> frozenset[str]:
        return frozenset().union(*(pattern.needs for pattern in self.patterns))

    @property
    def max_length(self) -> int | None:
        return least(pattern.max_length for pattern in self.patterns)


@dataclass(frozen=True)
class Union(Combination):
    """Pairs that any of the patterns allows. Written `a | b`."""

    def allows(self, pairs: Pairs) -> Tensor:
        return reduce(or_, (pattern.allows(pairs) for pattern in self.patterns))

    @property
    def reach(self) -> int | None:
        reaches = [pattern.reach for pattern in self.patterns]
        return None if None in reaches else max(reach for reach in reaches if reach is not None)

    @property
    def block(self) -> int | None:
        blocks = [pattern.block for pattern in self.patterns]
        if None in blocks:
            return None
        return -(-max(block for block in blocks if block is not None) // self.step) * self.step

    @property
    def step(self) -> int:
        return lcm(*(pattern.step for pattern in self.patterns))

    def key_blocks(self, query_blocks: Tensor, size: int) -> Tensor:
        return torch.cat([pattern.key_blocks(query_blocks, size) for pattern in self.patterns], 1)

    @property
    def parts(self) -> tuple[Pattern, ...]:
        return self.patterns


@dataclass(frozen=True)
class Intersection(Combination):
    """Pairs that all of the patterns allow. Written `a & b`."""

    def allows(self, pairs: Pairs) -> Tensor:
        return reduce(and_, (pattern.allows(pairs) for pattern in self.patterns))

    @property
    def reach(self) -> int | None:
        return least(pattern.reach for pattern in self.patterns)


def big_bird(size: int, random: int, blocks: int, seed: int = 0) -> Pattern:
    """Big Bird's pattern: neighbouring blocks, the first block for all, and random blocks (Zaheer et al., 2020)."""
    return BlockWindow(size) | FirstTokens(size) | Random(random, size, blocks, seed)
