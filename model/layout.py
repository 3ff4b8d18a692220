"""Where tokens lie: in padded rows, or end to end without padding; and what else came with them.

Letters: B batch, L length, T tokens, K kept tokens, G global tokens, D width, N heads, H head width.

Attention is the only part of an encoder in which tokens meet. Everything else works on one token at a time, wherever it
lies, so an encoder written against a layout runs in both forms:

    Padded   hidden vectors [B, L, D]. The form to read, and the reference's own.
    Packed   hidden vectors [T, D], the tokens of all sequences end to end (padding-free). The form to serve: there is
             padding inside attention alone.

Inside attention a token stands in a slot of `[B, L]`. Where a model looks at columns (windows, graphs, ...) the slot
is the token's column.
"""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import embedding  # whole rows by number: onnxruntime copies them faster than x[index]


@dataclass(frozen=True)
class GlobalTokens:
    """Tokens that see all and are seen by all.

    G is the number of entries of each row, 2 or more: a matrix product of one row adds up in an order that depends on
    the length, and its bits would depend on the other rows of a batch. So an entry may hold no token.
    """

    slots_BG: Tensor
    present_BG: Tensor  # False where an entry holds no token

    def among(self, slots_L: Tensor) -> Tensor:
        """For each slot and entry, whether the entry's token stands in that slot: `[B, L, G]`."""
        return (slots_L[:, None] == self.slots_BG[:, None, :]) & self.present_BG[:, None, :]


class Layout(Protocol):
    """What the parts of an encoder need to know about where tokens lie."""

    @property
    def real_BL(self) -> Tensor:
        """True where a slot holds a real token."""

    @property
    def positions(self) -> Tensor:
        """The position of each token, in this layout: `[B, L]` or `[T]`."""

    @property
    def adjacency_BLL(self) -> Tensor | None:
        """The edges between slots, where the request gave them."""

    @property
    def global_tokens(self) -> GlobalTokens | None:
        """The tokens that the request made global."""

    def to_heads(self, x: Tensor, heads: int) -> Tensor:
        """Projected vectors of all tokens, by head: `[B, N, L, H]`."""

    def from_heads(self, x_BNLH: Tensor) -> Tensor:
        """Back to one vector of N * H values per token, in this layout. Slots beyond L are dropped."""

    def to_rows(self, x: Tensor) -> Tensor:
        """One row per sequence: `[B, L, D]`."""

    def kept(self, x: Tensor) -> Tensor:
        """Those of all tokens that somebody asks for, once the last layer has attended to all."""

    def first(self, kept: Tensor) -> Tensor:
        """Column 0 of every row, whether it is real or not, `[B, D]`: it is among those of a head that reads it."""

    def first_real(self, kept: Tensor) -> Tensor:
        """The first real token of every row, `[B, D]`: the same."""


def token_in(x_BLD: Tensor, column_B1: Tensor) -> Tensor:
    """The vector in one column of each row, `[B, D]`."""
    return x_BLD.gather(1, column_B1[:, :, None].expand(-1, -1, x_BLD.shape[-1]))[:, 0]


@dataclass(frozen=True)
class Padded:
    """`[B, L, D]`: each sequence a row, with padding wherever `real_BL` is False."""

    real_BL: Tensor
    positions: Tensor
    adjacency_BLL: Tensor | None = None
    global_tokens: GlobalTokens | None = None

    def to_heads(self, x: Tensor, heads: int) -> Tensor:
        return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)

    def from_heads(self, x_BNLH: Tensor) -> Tensor:
        return x_BNLH[:, :, : self.real_BL.shape[1]].transpose(1, 2).flatten(2)

    def to_rows(self, x: Tensor) -> Tensor:
        return x

    def kept(self, x: Tensor) -> Tensor:
        return x

    def first(self, kept: Tensor) -> Tensor:
        return kept[:, 0]

    def first_real(self, kept: Tensor) -> Tensor:
        return token_in(kept, self.real_BL.long().argmax(1, keepdim=True))


@dataclass(frozen=True)
class Packed:
    """`[T, D]`: all tokens end to end.

    `slots_BL` holds the token in each slot of the padded form; an empty slot repeats a token of its own row, so
    that what is computed there stays finite if the row is, and never reads a neighbour.
    `rows_T` and `columns_T` hold the slot of each token.
    `real_BL` is True where the slot holds a real token. Every row has one.
    `kept_K` holds the tokens that somebody asks for, and `first_B` where each row's first one is among them, that of
    column 0 or the first real one, as the head reads it; without them all tokens are asked for.
    """

    slots_BL: Tensor
    rows_T: Tensor
    columns_T: Tensor
    real_BL: Tensor
    positions: Tensor
    adjacency_BLL: Tensor | None = None
    global_tokens: GlobalTokens | None = None
    kept_K: Tensor | None = None
    first_B: Tensor | None = None
    _head_slots: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def to_heads(self, x: Tensor, heads: int) -> Tensor:
        # One gather of H-long rows does the work of a gather and a transpose. All layers share its index [B, N, L].
        if heads not in self._head_slots:
            self._head_slots[heads] = self.slots_BL[:, None, :] * heads + torch.arange(heads, device=x.device)[:, None]
        return embedding(self._head_slots[heads], x.reshape(-1, x.shape[-1] // heads))

    def from_heads(self, x_BNLH: Tensor) -> Tensor:
        _, heads, length, width = x_BNLH.shape
        head_N = torch.arange(heads, device=x_BNLH.device)
        index_TN = (self.rows_T[:, None] * heads + head_N) * length + self.columns_T[:, None]
        return embedding(index_TN, x_BNLH.reshape(-1, width)).flatten(1)

    def to_rows(self, x: Tensor) -> Tensor:
        return x[self.slots_BL]

    def kept(self, x: Tensor) -> Tensor:
        return x if self.kept_K is None else embedding(self.kept_K, x)

    def first(self, kept: Tensor) -> Tensor:
        return embedding(self.slots_BL[:, 0] if self.first_B is None else self.first_B, kept)

    def first_real(self, kept: Tensor) -> Tensor:
        if self.first_B is not None:
            return embedding(self.first_B, kept)
        return embedding(self.slots_BL.gather(1, self.real_BL.long().argmax(1, keepdim=True))[:, 0], kept)
