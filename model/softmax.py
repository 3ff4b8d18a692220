"""From scores to attention weights: softmax, or hardmax.

A normalizer is a function of scores `[..., Q, K]`, a mask (True where a query may attend to a key) and the columns of
the keys; both broadcast to the scores. It returns weights of the scores' shape: 0 where the mask is False, and any
finite numbers for a query whose keys are all masked out: `AttentionFunction` makes those 0.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Normalizer = Callable[[Tensor, Tensor, Tensor], Tensor]

# Low enough to leave a weight of exactly 0 beside any score that float32 computes with, in float64 too.
LOWEST = torch.finfo(torch.float32).min / 2


def masked(scores: Tensor, mask: Tensor) -> Tensor:
    """The scores, as low as can be where the mask is False.

    By addition: onnxruntime runs it faster than `where` on the scores, and what is added is made once for all heads.
    """
    return scores + torch.where(mask, 0.0, LOWEST).to(scores.dtype)


def softmax(scores: Tensor, mask: Tensor, key_columns: Tensor) -> Tensor:
    """Each key's share of the exponentials (soft attention)."""
    return masked(scores, mask).softmax(-1)


def hardmax(scores: Tensor, mask: Tensor, key_columns: Tensor) -> Tensor:
    """Weight 1 for the key with the highest score, the first one of equals (hard attention). For inference only."""
    scores = masked(scores, mask)
    best = mask & (scores == scores.amax(-1, keepdim=True))
    first = torch.where(best, key_columns, torch.iinfo(torch.int64).max).amin(-1, keepdim=True)
    return (best & (key_columns == first)).to(scores.dtype)
