"""Scores out of logits, as the model's folder promises them. Letters: C labels."""

import numpy as np

from heed.bundle.manifest import ScoreActivation
from heed.bundle.sequence_packing import Floats, Ints


def scores(logits: Floats, activation: ScoreActivation) -> Floats:
    """`[..., C]` in float64: the share of each label (softmax), each label on its own (sigmoid), or the logits."""
    logits = logits.astype(np.float64)
    if activation == "none":
        return logits
    if activation == "sigmoid":
        return np.asarray(np.exp(-np.logaddexp(0.0, -logits)))
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def best_first(logits_C: Floats) -> Ints:
    """The order of labels, or of texts. By logits: a sigmoid of large ones is 1, whichever is larger.

    Equal ones stay in their order.
    """
    return np.argsort(-logits_C, kind="stable")
