"""Scores of queries and keys against loops, and by hand."""

import math

import numpy as np
import pytest
import torch

from heed.model.score_functions import Additive, Dot, ScaledDot
from tests.model import loops
from tests.model.support import assert_close, noise, with_random_weights

SHAPES = [(1, 1, 1, 1, 1), (2, 3, 4, 5, 6), (1, 2, 7, 3, 4)]  # B, N, queries, keys, H


def scores_by_loops(score: loops.Score, query: np.ndarray, key: np.ndarray) -> np.ndarray:
    scores = np.empty((*query.shape[:-1], key.shape[-2]))
    for place in np.ndindex(scores.shape):
        scores[place] = score(query[place[:-1]], key[(*place[:-2], place[-1])], place[1])
    return scores


@pytest.mark.parametrize("kind", ["dot", "scaled", "additive"])
@pytest.mark.parametrize(("batch", "heads", "queries", "keys", "width"), SHAPES)
def test_scores_are_what_loops_compute(kind: str, batch: int, heads: int, queries: int, keys: int, width: int) -> None:
    query, key = noise(batch, heads, queries, width, seed=1), noise(batch, heads, keys, width, seed=2)
    additive = with_random_weights(Additive(heads, width))
    ours, expected = {
        "dot": (Dot(heads, width), loops.dot),
        "scaled": (ScaledDot(heads, width), loops.scaled_dot),
        "additive": (additive, loops.additive(additive.weight.numpy())),
    }[kind]
    assert_close(ours(query, key), scores_by_loops(expected, query.numpy(), key.numpy()), 1e-14)


@pytest.mark.parametrize("score", [Dot, ScaledDot, Additive])
def test_scores_in_blocks_are_those_of_each_block(score: type[Dot | ScaledDot | Additive]) -> None:
    """`[B, N, C, S, H]` and `[B, N, C, K, H]`: C is one more dimension to broadcast over."""
    module = with_random_weights(score(3, 4))
    query, key = noise(2, 3, 5, 6, 4, seed=1), noise(2, 3, 5, 7, 4, seed=2)
    together = module(query, key)
    for block in range(5):
        assert_close(together[:, :, block], module(query[:, :, block], key[:, :, block]), 1e-14)
    shared = module(query, key[:, :, :1])
    for block in range(5):
        assert_close(shared[:, :, block], module(query[:, :, block], key[:, :, 0]), 1e-14)


def test_scores_by_hand() -> None:
    """q = (1, 2), k = (3, 4): 11, and 11 / √2. With w = (1, -2): tanh 4 - 2 tanh 6."""
    query, key = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[3.0, 4.0]]]])
    assert float(Dot(1, 2)(query, key)) == 11
    assert float(ScaledDot(1, 2)(query, key)) == pytest.approx(7.7781746)
    additive = Additive(1, 2).requires_grad_(False)
    additive.weight.copy_(torch.tensor([[1.0, -2.0]]))
    assert float(additive(query, key)) == pytest.approx(math.tanh(4) - 2 * math.tanh(6))


def test_a_scaled_product_of_64_values_is_an_eighth() -> None:
    ones = torch.ones(1, 1, 1, 64)
    assert float(Dot(1, 64)(ones, ones)) == 64
    assert float(ScaledDot(1, 64)(ones, ones)) == 8


def test_additive_scores_are_not_symmetric_products() -> None:
    """A control: the sum goes through tanh, so that doubling a query does not double the score."""
    additive = with_random_weights(Additive(1, 4))
    query, key = noise(1, 1, 1, 4, seed=1), noise(1, 1, 1, 4, seed=2)
    assert abs(float(additive(2 * query, key)) - 2 * float(additive(query, key))) > 0.01


def test_an_additive_score_stays_within_the_sum_of_its_weights() -> None:
    additive = with_random_weights(Additive(2, 4))
    scores = additive(1e6 * noise(1, 2, 5, 4, seed=1), 1e6 * noise(1, 2, 5, 4, seed=2))
    assert bool((scores.abs().amax((0, 2, 3)) <= additive.weight.abs().sum(1) + 1e-12).all())
