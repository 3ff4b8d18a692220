"""Attention in blocks: linear time and memory in the length, for patterns that look at few blocks.

The queries of a block see the keys of a few blocks (`Pattern.key_blocks`) and the global tokens; a global token's own
query sees everything. Which of those pairs count is still the pattern's to say, so the answer is that of the dense
form (Longformer and Big Bird compute in blocks, too).

Letters: B batch, L length, N heads, H head width, G global tokens, `C` blocks of `S` slots, `K` keys that a block sees.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from heed.model.layout import GlobalTokens, Layout
from heed.model.patterns import GlobalPattern, Pairs, Pattern, Union
from heed.model.softmax import Selection

Bias = Callable[[Pairs], Tensor]  # added to the scores: [1, N, ..., Q, K]


class Heads(NamedTuple):
    """What each head works on: queries and keys `[B, N, L, H]`, values `[B, N, L, V]`."""

    query: Tensor
    key: Tensor
    value: Tensor


@dataclass(frozen=True)
class Rule:
    """How pairs are scored and what is taken of them."""

    score: nn.Module
    select: Selection
    bias: Bias | None = None

    def scores(self, queries: Tensor, keys: Tensor, pairs: Pairs) -> Tensor:
        """`[B, N, ..., Q, K]` for queries `[B, N, ..., Q, H]` and keys `[B, N, ..., K, H]`."""
        scores: Tensor = self.score(queries, keys)
        return scores if self.bias is None else scores + self.bias(pairs)

    def weights(self, scores: Tensor, allowed: Tensor, columns: Tensor) -> Tensor:
        """How much to take of each key, `[B, N, ..., Q, K]`: all 0 for a query that is allowed none."""
        return self.select(scores, allowed, columns) * _has_any(scores, allowed)

    def attend(self, scores: Tensor, allowed: Tensor, columns: Tensor, values: Tensor) -> Tensor:
        """What is taken of values `[B, N, ..., K, V]`: `weights(...) @ values`, but the zeros go where there are fewer
        numbers to touch, `[B, N, ..., Q, V]`."""
        return (self.select(scores, allowed, columns) @ values) * _has_any(scores, allowed)


def _has_any(scores: Tensor, allowed: Tensor) -> Tensor:
    """1 for a query that is allowed some key, 0 for others: `[..., Q or 1, 1]`."""
    return allowed.any(-1, keepdim=True).to(scores.dtype)


def has_cheap_form(pattern: Pattern) -> bool:
    """Whether all of the pattern is either global tokens or few blocks."""
    local = _local(pattern)
    return local is not None and local.block is not None and not local.needs  # blocks know columns, not requests


def _local(pattern: Pattern) -> Pattern | None:
    """The pattern without its global tokens."""
    parts = tuple(part for part in pattern.parts if not isinstance(part, GlobalPattern))
    return Union(parts) if parts else None


def _global_tokens(pattern: Pattern, layout: Layout) -> GlobalTokens | None:
    tokens = [part.tokens(layout) for part in pattern.parts if isinstance(part, GlobalPattern)]
    present = [each for each in tokens if each is not None]
    if not present:
        return None
    return union_of(present)


def union_of(tokens: list[GlobalTokens]) -> GlobalTokens:
    """All of them, each once."""
    slots_BG = torch.cat([each.slots_BG for each in tokens], 1)
    counts_BG = torch.cat([each.counts_BG for each in tokens], 1)
    same_BGG = (slots_BG[:, :, None] == slots_BG[:, None, :]) & counts_BG[:, None, :]
    earlier_GG = torch.ones(slots_BG.shape[1], slots_BG.shape[1], dtype=torch.bool, device=slots_BG.device).tril(-1)
    return GlobalTokens(slots_BG, counts_BG & ~(same_BGG & earlier_GG).any(-1))


def rows_at(x_BNLH: Tensor, slots_BG: Tensor) -> Tensor:
    """The vectors in some slots of each row: `[B, N, G, H]`."""
    index = slots_BG[:, None, :, None].expand(-1, x_BNLH.shape[1], -1, x_BNLH.shape[3])
    return x_BNLH.gather(2, index)


class Blocks:
    """Which slots the queries and keys of each block stand in."""

    def __init__(self, pattern: Pattern, layout: Layout) -> None:
        local = _local(pattern)
        assert local is not None
        assert local.block is not None
        self.size = local.block
        length = layout.real_BL.shape[1]
        device = layout.real_BL.device
        within_S = torch.arange(self.size, device=device)
        blocks_C = torch.arange((length + self.size - 1) // self.size, device=device)
        key_blocks_CM = local.key_blocks(blocks_C, self.size)
        columns_CK = (key_blocks_CM[:, :, None] * self.size + within_S).flatten(1)
        queries_CS = blocks_C[:, None] * self.size + within_S
        self.queries_CS = queries_CS.clamp(max=length - 1)
        self.keys_CK = columns_CK.clamp(0, length - 1)
        pairs = Pairs(i=queries_CS[None, None, :, :, None], j=columns_CK[None, None, :, None, :])
        self.pairs = pairs
        inside_CK = (columns_CK >= 0) & (columns_CK < length) & _first_of(key_blocks_CM).repeat_interleave(self.size, 1)
        self.allowed = local.allows(pairs) & inside_CK[None, None, :, None, :]  # [1, 1, C, S, K]

    def queries(self, x_BNLH: Tensor) -> Tensor:
        return _at(x_BNLH, self.queries_CS)  # [B, N, C, S, H]

    def keys(self, x_BNLH: Tensor) -> Tensor:
        return _at(x_BNLH, self.keys_CK)  # [B, N, C, K, H]

    def of_keys(self, values_BL: Tensor) -> Tensor:
        return values_BL[:, self.keys_CK][:, None, :, None, :]  # [B, 1, C, 1, K]


def _at(x_BNLH: Tensor, slots: Tensor) -> Tensor:
    """The vectors in some slots, the same of each row: `[B, N, ..., H]`.

    An index along one axis: onnxruntime copies whole vectors then, and transposes nothing.
    """
    return x_BNLH.index_select(2, slots.reshape(-1)).reshape(*x_BNLH.shape[:2], *slots.shape, x_BNLH.shape[-1])


def _first_of(blocks_CM: Tensor) -> Tensor:
    """True where a block is named for the first time in its row, so that no key counts twice."""
    count = blocks_CM.shape[1]
    same_CMM = blocks_CM[:, :, None] == blocks_CM[:, None, :]
    earlier_MM = torch.ones(count, count, dtype=torch.bool, device=blocks_CM.device).tril(-1)
    return ~(same_CMM & earlier_MM).any(-1)


def blocked(rule: Rule, pattern: Pattern, heads: Heads, layout: Layout) -> Tensor:
    """What each query takes of the values it may look at: `[B, N, C * S, V]`, L slots and some beyond them."""
    tokens = _global_tokens(pattern, layout)
    attended = local_rows(rule, pattern, tokens, heads, layout)
    return attended if tokens is None else put_rows(attended, global_rows(rule, tokens, heads, layout), tokens)


def local_rows(rule: Rule, pattern: Pattern, tokens: GlobalTokens | None, heads: Heads, layout: Layout) -> Tensor:
    """Each block's queries with the keys of few blocks and, once each, the global tokens: `[B, N, C * S, V]`."""
    blocks = layout.shared.once((Blocks, pattern), lambda: Blocks(pattern, layout))
    queries = blocks.queries(heads.query)
    scores = rule.scores(queries, blocks.keys(heads.key), blocks.pairs)
    allowed = blocks.allowed & blocks.of_keys(layout.real_BL)
    columns = blocks.pairs.j
    if tokens is None:
        return rule.attend(scores, allowed, columns, blocks.keys(heads.value)).flatten(2, 3)

    slots_L = torch.arange(layout.real_BL.shape[1], device=layout.real_BL.device)
    allowed = allowed & ~blocks.of_keys(tokens.among(slots_L).any(-1))  # looked at apart
    global_columns = tokens.slots_BG[:, None, None, None, :]
    global_keys = rows_at(heads.key, tokens.slots_BG)[:, :, None]  # [B, N, 1, G, H]
    global_scores = rule.scores(queries, global_keys, Pairs(i=blocks.pairs.i, j=global_columns))  # [B, N, C, S, G]
    real_BG = tokens.counts_BG & layout.real_BL.gather(1, tokens.slots_BG)
    global_allowed = real_BG[:, None, None, None, :]
    shape = (*allowed.shape[:-1], global_allowed.shape[-1])
    # The global tokens last: how many places they have depends on the neighbours in a batch, and nothing else may.
    weights = rule.weights(
        torch.cat([scores, global_scores], -1),
        torch.cat([allowed, global_allowed.expand(shape)], -1),
        torch.cat([columns.expand(allowed.shape), global_columns.expand(*shape)], -1),
    )
    count = scores.shape[-1]
    global_values = rows_at(heads.value, tokens.slots_BG)[:, :, None]
    attended = weights[..., :count] @ blocks.keys(heads.value) + weights[..., count:] @ global_values
    return attended.flatten(2, 3)


def global_rows(rule: Rule, tokens: GlobalTokens, heads: Heads, layout: Layout) -> Tensor:
    """The global tokens' queries with every key: `[B, N, G, V]`."""
    columns = torch.arange(layout.real_BL.shape[1], device=layout.real_BL.device)[None, None, None, :]
    pairs = Pairs(i=tokens.slots_BG[:, None, :, None], j=columns)
    scores = rule.scores(rows_at(heads.query, tokens.slots_BG), heads.key, pairs)
    return rule.attend(scores, layout.real_BL[:, None, None, :], columns, heads.value)


def put_rows(x_BNLV: Tensor, rows_BNGV: Tensor, tokens: GlobalTokens) -> Tensor:
    """`x` with the rows of the global tokens in their slots."""
    slots = torch.arange(x_BNLV.shape[2], device=x_BNLV.device)
    among_BLG = tokens.among(slots)
    place_BL = among_BLG.to(torch.int64).argmax(-1)
    return torch.where(among_BLG.any(-1)[:, None, :, None], rows_at(rows_BNGV, place_BL), x_BNLV)
