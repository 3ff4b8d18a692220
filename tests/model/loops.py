"""Attention once more, in plain loops over numpy arrays: slow, and short enough to check by eye.

Letters: B batch, L length, D width, N heads, H head width, V head width of the values.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from heed.model.attention import MultiHeadAttention

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Score = Callable[[Floats, Floats, int], float]  # a query, a key, the number of the head
Selection = Callable[[list[float]], list[float]]


def dot(query: Floats, key: Floats, head: int) -> float:
    return sum(float(a) * float(b) for a, b in zip(query, key, strict=True))


def scaled_dot(query: Floats, key: Floats, head: int) -> float:
    return dot(query, key, head) / math.sqrt(len(query))


def additive(weight_NH: Floats) -> Score:
    def score(query: Floats, key: Floats, head: int) -> float:
        parts = zip(weight_NH[head], query, key, strict=True)
        return sum(float(w) * math.tanh(float(a) + float(b)) for w, a, b in parts)

    return score


def soft(scores: list[float]) -> list[float]:
    exponentials = [math.exp(score - max(scores)) for score in scores]
    return [each / sum(exponentials) for each in exponentials]


def hard(scores: list[float]) -> list[float]:
    best = scores.index(max(scores))  # the first of them
    return [float(place == best) for place in range(len(scores))]


def weights(
    query_BNLH: Floats,
    key_BNLH: Floats,
    allowed_BNLL: Bools,
    score: Score = scaled_dot,
    select: Selection = soft,
    bias_NLL: Floats | None = None,
) -> Floats:
    """For each row, head and query: select among the scores of the keys that are allowed. `[B, N, L, L]`."""
    batch, heads, length, _ = query_BNLH.shape
    weights_BNLL = np.zeros((batch, heads, length, length))
    for b, n, i in np.ndindex(batch, heads, length):
        keys = [j for j in range(length) if allowed_BNLL[b, n, i, j]]
        if not keys:
            continue
        scores = [score(query_BNLH[b, n, i], key_BNLH[b, n, j], n) for j in keys]
        if bias_NLL is not None:
            scores = [each + float(bias_NLL[n, i, j]) for each, j in zip(scores, keys, strict=True)]
        for j, weight in zip(keys, select(scores), strict=True):
            weights_BNLL[b, n, i, j] = weight
    return weights_BNLL


def mixed(weights_BNLL: Floats, value_BNLV: Floats) -> Floats:
    """Each query's weighted sum of the values: `[B, N, L, V]`."""
    batch, heads, length, _ = weights_BNLL.shape
    answers = np.zeros((batch, heads, length, value_BNLV.shape[-1]))
    for b, n, i, j in np.ndindex(batch, heads, length, length):
        answers[b, n, i] += weights_BNLL[b, n, i, j] * value_BNLV[b, n, j]
    return answers


def project(layer: torch.nn.Linear, x: Floats) -> Floats:
    """`W x + b` for every vector in `x`."""
    answers = np.empty((*x.shape[:-1], layer.out_features))
    for place in np.ndindex(*x.shape[:-1]):
        answers[place] = layer.weight.numpy() @ x[place]
        if layer.bias is not None:
            answers[place] += layer.bias.numpy()
    return answers


def split_heads(x_BLD: Floats, heads: int) -> Floats:
    """Head n holds the n-th part of each vector: `[B, N, L, D / N]`."""
    size = x_BLD.shape[-1] // heads
    return np.stack([x_BLD[..., n * size : (n + 1) * size] for n in range(heads)], axis=1)


def join_heads(x_BNLV: Floats) -> Floats:
    return np.concatenate(list(x_BNLV.swapaxes(0, 1)), axis=-1)


def multi_head(
    attention: MultiHeadAttention,
    x_BLD: Floats,
    allowed_BNLL: Bools,
    score: Score = scaled_dot,
    select: Selection = soft,
    bias_NLL: Floats | None = None,
) -> tuple[Floats, Floats]:
    """What `attention` should answer, `[B, L, D]`, and its weights, `[B, N, L, L]`."""
    query, key, value = (
        split_heads(project(layer, x_BLD), attention.heads)
        for layer in (attention.query, attention.key, attention.value)
    )
    weights_BNLL = weights(query, key, allowed_BNLL, score, select, bias_NLL)
    return project(attention.out, join_heads(mixed(weights_BNLL, value))), weights_BNLL


def kernel_attention(
    features: Callable[[Floats], Floats], query_BNLH: Floats, key_BNLH: Floats, value_BNLV: Floats, real_BL: Bools
) -> Floats:
    """`Σⱼ φ(qᵢ)·φ(kⱼ) vⱼ / Σⱼ φ(qᵢ)·φ(kⱼ)` over real keys; 0 without any."""
    answers = np.zeros((*query_BNLH.shape[:3], value_BNLV.shape[-1]))
    for b, n, i in np.ndindex(*query_BNLH.shape[:3]):
        keys = np.flatnonzero(real_BL[b])
        similar = [float(features(query_BNLH[b, n, i]) @ features(key_BNLH[b, n, j])) for j in keys]
        for j, each in zip(keys, similar, strict=True):
            answers[b, n, i] += each / sum(similar) * value_BNLV[b, n, j]
    return answers
