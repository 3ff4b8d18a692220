"""How attention is computed in one forward pass. A plan is made once for a batch, and all layers follow it.

It changes time and memory, never the answer:

    all pairs            every query with every key at once, and a mask
    in chunks            the same for some queries at a time, so that fewer weights are in memory
    blockwise            only the blocks of keys that a pattern reaches, where it is block-sparse

`exact_attention.py` and `blockwise.py` compute what a plan says. The plan holds what layers share: masks and indices.
"""

from functools import cached_property

import torch
from torch import Tensor

from heed.model.block_index import BlockIndex
from heed.model.layout import Layout
from heed.model.patterns import Pairs, Pattern, all_pairs

# Up to this many columns a dense product of all pairs is faster than blocks.
DENSE_COLUMNS = 512
# Up to this many columns all weights of a head are in memory together when rows are padded.
WHOLE_COLUMNS = 2048


class AttentionPlan:
    """
    Args:
        layout: where the tokens of the batch lie.
        blockwise: whether to compute block-sparse patterns blockwise.
        query_chunk: of how many queries the weights are in memory at a time where all pairs are computed; None: of all.
    """

    def __init__(self, layout: Layout, blockwise: bool = False, query_chunk: int | None = None) -> None:
        self.layout, self.blockwise, self.query_chunk = layout, blockwise, query_chunk
        self._masks: dict[Pattern, Tensor] = {}
        self._blocks: dict[Pattern, BlockIndex] = {}

    @cached_property
    def pairs(self) -> Pairs:
        """All pairs of a row: columns `[1, 1, L, 1]` of queries and `[1, 1, 1, L]` of keys."""
        return all_pairs(self.layout)

    def mask(self, pattern: Pattern) -> Tensor:
        """True where a query may attend to a key, `[B, 1, L or 1, L]`: the pattern's pairs, of real keys."""
        if pattern not in self._masks:
            self._masks[pattern] = pattern.allows(self.pairs) & self.layout.real_BL[:, None, None, :]
        return self._masks[pattern]

    def blocks(self, pattern: Pattern) -> BlockIndex:
        """The blocks of a block-sparse pattern."""
        if pattern not in self._blocks:
            real_BL = self.layout.real_BL
            self._blocks[pattern] = BlockIndex(pattern, real_BL.shape[1], real_BL.device)
        return self._blocks[pattern]


def plan_for_padded_rows(layout: Layout) -> AttentionPlan:
    """Blockwise for long rows; all pairs, in chunks if need be, for others."""
    length = layout.real_BL.shape[1]
    whole = torch.compiler.is_exporting() or length <= WHOLE_COLUMNS  # a graph is for rows of any length
    return AttentionPlan(
        layout,
        blockwise=length > 2 * DENSE_COLUMNS,
        query_chunk=None if whole else max(1, WHOLE_COLUMNS**2 // length),
    )
