"""Where tokens lie: in padded rows, or end to end without padding.

Letters: B batch, L length, T tokens, D width, N heads, H head width (D = N * H).

Attention is the only part of an encoder in which tokens meet. Everything else works on one token at a time
and does not care how they lie, so an encoder written against a layout runs in both forms:

    Padded   hidden vectors [B, L, D]. The form to read, and the reference's own.
    Packed   hidden vectors [T, D], the tokens of all sequences end to end. The form to serve: padding exists
             inside attention alone.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Layout(Protocol):
    """What attention and pooling need to know about where tokens lie."""

    def to_heads(self, x: Tensor, heads: int) -> Tensor:
        """Projected vectors of all tokens, by head: `[B, N, L, H]`."""

    def from_heads(self, x_BNLH: Tensor) -> Tensor:
        """Back to one vector of D values per token, in this layout."""

    def to_rows(self, x: Tensor) -> Tensor:
        """One row per sequence: `[B, L, D]`."""

    def softmax(self, scores_BNLL: Tensor) -> Tensor:
        """Weights over the real keys of each sequence; a key that is padding gets exactly 0."""

    @property
    def real_BL(self) -> Tensor:
        """True where a column holds a real token."""


@dataclass(frozen=True)
class Padded:
    """`[B, L, D]`: each sequence a row, with padding wherever `real_BL` is False."""

    real_BL: Tensor

    def to_heads(self, x: Tensor, heads: int) -> Tensor:
        return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)

    def from_heads(self, x_BNLH: Tensor) -> Tensor:
        return x_BNLH.transpose(1, 2).flatten(2)

    def to_rows(self, x: Tensor) -> Tensor:
        return x

    def softmax(self, scores_BNLL: Tensor) -> Tensor:
        real = self.real_BL[:, None, None, :]
        weights = scores_BNLL.masked_fill(~real, -torch.inf).softmax(-1)
        # Without one real key softmax is 0/0; such a row attends to nothing.
        return torch.where(real.any(-1, keepdim=True), weights, 0.0)


@dataclass(frozen=True)
class Packed:
    """`[T, D]`: all tokens end to end.

    `slots_BL` holds the token in each slot of the padded form; an empty slot repeats a token of its own row, so
    that what is computed there stays finite if the row is, and never reads a neighbour.
    `rows_T` and `columns_T` hold the slot of each token.
    `real_BL` is True where the slot holds a real token. Every row has one.
    """

    slots_BL: Tensor
    rows_T: Tensor
    columns_T: Tensor
    real_BL: Tensor

    def to_heads(self, x: Tensor, heads: int) -> Tensor:
        # One gather of H-long rows does the work of a gather and a transpose.
        head_N = torch.arange(heads, device=x.device)
        index_BNL = self.slots_BL[:, None, :] * heads + head_N[:, None]
        return x.reshape(-1, x.shape[-1] // heads)[index_BNL]

    def from_heads(self, x_BNLH: Tensor) -> Tensor:
        _, heads, length, width = x_BNLH.shape
        head_N = torch.arange(heads, device=x_BNLH.device)
        index_TN = (self.rows_T[:, None] * heads + head_N) * length + self.columns_T[:, None]
        return x_BNLH.reshape(-1, width)[index_TN].flatten(1)

    def to_rows(self, x: Tensor) -> Tensor:
        return x[self.slots_BL]

    def softmax(self, scores_BNLL: Tensor) -> Tensor:
        # A float bias: onnxruntime runs an addition faster than a selection by a boolean mask.
        # Made in float32, whatever the scores are: in float64 too it is low enough to leave a weight of exactly 0.
        lowest = max(torch.finfo(scores_BNLL.dtype).min, torch.finfo(torch.float32).min) / 2
        bias_BL = torch.where(self.real_BL, 0.0, lowest).to(scores_BNLL.dtype)
        return (scores_BNLL + bias_BL[:, None, None, :]).softmax(-1)
