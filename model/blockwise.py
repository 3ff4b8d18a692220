"""Blockwise attention: linear time and memory in the length, for block-sparse patterns.

The queries of a block see the keys of a few blocks (`Pattern.key_blocks`) and the global tokens; a global token's own
query sees everything. Which of those pairs count is still the pattern's to say, so the answer is that of the dense
form (Longformer and Big Bird compute in blocks, too).

Letters: B batch, L length, N heads, H head width, V head width of the values, G global tokens, C blocks of S slots, K
keys that a block sees.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from heed.model.attention import AttentionFunction
from heed.model.attention_plan import AttentionPlan
from heed.model.layout import GlobalTokens, Layout
from heed.model.patterns import GlobalPattern, Pairs, Pattern


class QKV(NamedTuple):
    """Projected by head: queries and keys `[B, N, L, H]`, values `[B, N, L, V]`."""

    query: Tensor
    key: Tensor
    value: Tensor


def _global_tokens(pattern: Pattern, layout: Layout) -> GlobalTokens | None:
    """The global tokens of all parts of a pattern; None if it has none."""
    tokens = [part.tokens(layout) for part in pattern.parts if isinstance(part, GlobalPattern)]
    present = [each for each in tokens if each is not None]
    return union_of(present) if present else None


def union_of(tokens: list[GlobalTokens]) -> GlobalTokens:
    """All of them, each once."""
    slots_BG = torch.cat([each.slots_BG for each in tokens], 1)
    present_BG = torch.cat([each.present_BG for each in tokens], 1)
    same_BGG = (slots_BG[:, :, None] == slots_BG[:, None, :]) & present_BG[:, None, :]
    earlier_GG = torch.ones(slots_BG.shape[1], slots_BG.shape[1], dtype=torch.bool, device=slots_BG.device).tril(-1)
    return GlobalTokens(slots_BG, present_BG & ~(same_BGG & earlier_GG).any(-1))


def rows_at(x_BNLH: Tensor, slots_BG: Tensor) -> Tensor:
    """The vectors in some slots of each row: `[B, N, G, H]`."""
    index = slots_BG[:, None, :, None].expand(-1, x_BNLH.shape[1], -1, x_BNLH.shape[3])
    return x_BNLH.gather(2, index)


def attend_blockwise(function: AttentionFunction, pattern: Pattern, qkv: QKV, plan: AttentionPlan) -> Tensor:
    """The outputs `[B, N, C * S, V]`: L slots and some beyond them."""
    tokens = _global_tokens(pattern, plan.layout)
    attended = attend_locally(function, pattern, tokens, qkv, plan)
    if tokens is None:
        return attended
    return put_rows(attended, attend_globally(function, tokens, qkv, plan.layout), tokens)


def attend_locally(
    function: AttentionFunction, pattern: Pattern, tokens: GlobalTokens | None, qkv: QKV, plan: AttentionPlan
) -> Tensor:
    """Each block's queries with the keys of few blocks and, once each, the global tokens: `[B, N, C * S, V]`."""
    layout, blocks = plan.layout, plan.blocks(pattern)
    queries = blocks.queries(qkv.query)
    scores = function.scores(queries, blocks.keys(qkv.key), blocks.pairs)
    mask = blocks.mask & blocks.of_keys(layout.real_BL)
    if tokens is None:
        return function.attend(scores, mask, blocks.pairs.j, blocks.keys(qkv.value)).flatten(2, 3)

    slots_L = torch.arange(layout.real_BL.shape[1], device=layout.real_BL.device)
    mask = mask & ~blocks.of_keys(tokens.among(slots_L).any(-1))  # the global tokens' keys come apart
    global_columns = tokens.slots_BG[:, None, None, None, :]
    global_keys = rows_at(qkv.key, tokens.slots_BG)[:, :, None]  # [B, N, 1, G, H]
    global_scores = function.scores(queries, global_keys, Pairs(i=blocks.pairs.i, j=global_columns))  # [B, N, C, S, G]
    real_BG = tokens.present_BG & layout.real_BL.gather(1, tokens.slots_BG)
    global_mask = real_BG[:, None, None, None, :]
    shape = (*mask.shape[:-1], global_mask.shape[-1])
    # The global tokens last: how many of them a batch has room for depends on the other rows, and the bits may not.
    weights = function.weights(
        torch.cat([scores, global_scores], -1),
        torch.cat([mask, global_mask.expand(shape)], -1),
        torch.cat([blocks.pairs.j.expand(mask.shape), global_columns.expand(*shape)], -1),
    )
    count = scores.shape[-1]
    global_values = rows_at(qkv.value, tokens.slots_BG)[:, :, None]
    attended = weights[..., :count] @ blocks.keys(qkv.value) + weights[..., count:] @ global_values
    return attended.flatten(2, 3)


def attend_globally(function: AttentionFunction, tokens: GlobalTokens, qkv: QKV, layout: Layout) -> Tensor:
    """The global tokens' queries with every key: `[B, N, G, V]`."""
    columns = torch.arange(layout.real_BL.shape[1], device=layout.real_BL.device)[None, None, None, :]
    pairs = Pairs(i=tokens.slots_BG[:, None, :, None], j=columns)
    scores = function.scores(rows_at(qkv.query, tokens.slots_BG), qkv.key, pairs)
    return function.attend(scores, layout.real_BL[:, None, None, :], columns, qkv.value)


def put_rows(x_BNLV: Tensor, rows_BNGV: Tensor, tokens: GlobalTokens) -> Tensor:
    """`x` with the rows of the global tokens in their slots."""
    slots = torch.arange(x_BNLV.shape[2], device=x_BNLV.device)
    among_BLG = tokens.among(slots)
    entry_BL = among_BLG.to(torch.int64).argmax(-1)
    return torch.where(among_BLG.any(-1)[:, None, :, None], rows_at(rows_BNGV, entry_BL), x_BNLV)
