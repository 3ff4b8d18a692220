"""What to take of the keys, given their scores.

A selection is a function of scores `[..., Q, K]`, `allowed` (bool) and the keys' columns, both of which broadcast to
the scores. It returns weights of the scores' shape: 0 for what is not allowed, and any finite numbers where nothing is:
nobody takes anything by those (see `Rule` in blockwise.py).
"""

from collections.abc import Callable

import torch
from torch import Tensor

Selection = Callable[[Tensor, Tensor, Tensor], Tensor]

# Low enough to leave a weight of exactly 0 beside any score that float32 computes with, in float64 too.
LOWEST = torch.finfo(torch.float32).min / 2


def masked(scores: Tensor, allowed: Tensor) -> Tensor:
    """The scores, out of reach where not allowed.

    By addition: onnxruntime runs it faster than a selection by a boolean mask, and the mask is made once where
    heads share it.
    """
    return scores + torch.where(allowed, 0.0, LOWEST).to(scores.dtype)


def soft(scores: Tensor, allowed: Tensor, columns: Tensor) -> Tensor:
    """Softmax over the allowed keys."""
    return masked(scores, allowed).softmax(-1)


def hard(scores: Tensor, allowed: Tensor, columns: Tensor) -> Tensor:
    """Weight 1 for the best allowed key, the first of them where several score the same. For inference only."""
    scores = masked(scores, allowed)
    best = allowed & (scores == scores.amax(-1, keepdim=True))
    first = torch.where(best, columns, torch.iinfo(torch.int64).max).amin(-1, keepdim=True)
    return (best & (columns == first)).to(scores.dtype)
