"""Exact attention by a plan: all pairs at once, in chunks of queries, or blockwise. The answer is the same.

Letters: B batch, L length, N heads, H head width, V head width of the values.
"""

import torch
from torch import Tensor, nn

from heed.model.attention import AttentionFunction, Bias, Mechanism
from heed.model.attention_plan import AttentionPlan
from heed.model.block_index import is_block_sparse
from heed.model.blockwise import QKV, attend_blockwise
from heed.model.patterns import Pattern
from heed.model.softmax import Normalizer


class ExactAttention(Mechanism):
    """`softmax(score(Q, K) + bias) V` over the pairs that a pattern allows."""

    def __init__(self, score: nn.Module, normalize: Normalizer, pattern: Pattern) -> None:
        super().__init__()
        self.score, self.normalize, self.pattern = score, normalize, pattern

    def forward(
        self, query_BNLH: Tensor, key_BNLH: Tensor, value_BNLV: Tensor, plan: AttentionPlan, bias: Bias | None
    ) -> Tensor:
        function, qkv = self._function(bias), QKV(query_BNLH, key_BNLH, value_BNLV)
        if plan.blockwise and is_block_sparse(self.pattern):
            return attend_blockwise(function, self.pattern, qkv, plan)
        if plan.query_chunk is not None:
            return self._attend_in_chunks(function, qkv, plan, plan.query_chunk)
        scores_BNLL = function.scores(query_BNLH, key_BNLH, plan.pairs)
        return function.attend(scores_BNLL, plan.mask(self.pattern), plan.pairs.j, value_BNLV)

    def weights(self, query_BNLH: Tensor, key_BNLH: Tensor, plan: AttentionPlan, bias: Bias | None) -> Tensor:
        function = self._function(bias)
        scores_BNLL = function.scores(query_BNLH, key_BNLH, plan.pairs)
        return function.weights(scores_BNLL, plan.mask(self.pattern), plan.pairs.j)

    def _function(self, bias: Bias | None) -> AttentionFunction:
        return AttentionFunction(self.score, self.normalize, bias)

    def _attend_in_chunks(self, function: AttentionFunction, qkv: QKV, plan: AttentionPlan, size: int) -> Tensor:
        """All pairs, with the weights of `size` queries in memory at a time."""
        real = plan.layout.real_BL[:, None, None, :]
        attended = []
        for start in range(0, plan.layout.real_BL.shape[1], size):
            chunk = slice(start, start + size)
            pairs = plan.pairs.of_queries(chunk)
            scores = function.scores(qkv.query[:, :, chunk], qkv.key, pairs)
            attended.append(function.attend(scores, self.pattern.allows(pairs) & real, pairs.j, qkv.value))
        return torch.cat(attended, 2)
