"""Which patterns are block-sparse, and which slots stand in which block: the indices of blockwise attention.

A row is cut into blocks of S slots. The queries of a block see the keys of a few blocks (`Pattern.key_blocks`).

Letters: B batch, L length, N heads, H head width, C blocks, S slots of a block, M key blocks that a block sees,
K = M * S keys that it sees.
"""

import torch
from torch import Tensor

from heed.model.patterns import GlobalPattern, Pairs, Pattern, Union


def is_block_sparse(pattern: Pattern) -> bool:
    """Whether all of the pattern is either global tokens or few blocks: then it costs linear time and memory."""
    local = _local_part(pattern)
    return local is not None and local.block is not None and not local.needs  # blocks know columns, not requests


def _local_part(pattern: Pattern) -> Pattern | None:
    """The pattern without its global tokens."""
    parts = tuple(part for part in pattern.parts if not isinstance(part, GlobalPattern))
    return Union(parts) if parts else None


class BlockIndex:
    """The slots of the queries and of the keys of each block, for rows of one length."""

    def __init__(self, pattern: Pattern, length: int, device: torch.device) -> None:
        local = _local_part(pattern)
        assert local is not None
        assert local.block is not None
        size = local.block
        within_S = torch.arange(size, device=device)
        blocks_C = torch.arange((length + size - 1) // size, device=device)
        key_blocks_CM = local.key_blocks(blocks_C, size)
        columns_CK = (key_blocks_CM[:, :, None] * size + within_S).flatten(1)
        queries_CS = blocks_C[:, None] * size + within_S
        self.queries_CS = queries_CS.clamp(max=length - 1)
        self.keys_CK = columns_CK.clamp(0, length - 1)
        self.pairs = Pairs(i=queries_CS[None, None, :, :, None], j=columns_CK[None, None, :, None, :])
        inside_CK = (columns_CK >= 0) & (columns_CK < length) & _first_of(key_blocks_CM).repeat_interleave(size, 1)
        self.mask = local.allows(self.pairs) & inside_CK[None, None, :, None, :]  # [1, 1, C, S, K]

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
