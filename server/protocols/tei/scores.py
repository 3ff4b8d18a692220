"""Scores out of logits. Letters: B batch, C labels."""

import numpy as np

from heed.bundle.sequence_packing import Floats, Ints


def scores(logits_BC: Floats, raw: bool) -> Floats:
    """`[B, C]` in float64: the logits as they are, or shares of the labels; of a single label its sigmoid."""
    logits_BC = logits_BC.astype(np.float64)
    if raw:
        return logits_BC
    if logits_BC.shape[-1] == 1:
        return np.asarray(np.exp(-np.logaddexp(0.0, -logits_BC)))
    powers_BC = np.exp(logits_BC - logits_BC.max(-1, keepdims=True))
    return np.asarray(powers_BC / powers_BC.sum(-1, keepdims=True))


def best_first(scores: Floats) -> Ints:
    """The order of `[C]` scores; equal ones stay in theirs."""
    return np.argsort(-scores, kind="stable")
