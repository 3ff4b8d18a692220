"""Softmax and the best key, over keys that are allowed."""

import numpy as np
import pytest
import torch
from torch import Tensor

from heed.model.attention import AttentionFunction
from heed.model.score_functions import Dot
from heed.model.softmax import Normalizer, hardmax, softmax
from tests.model import loops
from tests.model.support import noise

NORMALIZERS: list[tuple[Normalizer, loops.Selection]] = [(softmax, loops.soft), (hardmax, loops.hard)]


def columns_of(scores: Tensor) -> Tensor:
    return torch.arange(scores.shape[-1])


def weights_by(normalize: Normalizer, scores: Tensor, allowed: Tensor) -> Tensor:
    return AttentionFunction(Dot(1, 1), normalize).weights(scores, allowed, columns_of(scores))


def row(normalize: Normalizer, scores: list[float], allowed: list[bool] | None = None) -> list[float]:
    scores_K = torch.tensor([scores], dtype=torch.float64)
    allowed_K = torch.tensor([allowed or [True] * len(scores)])
    weights: list[float] = normalize(scores_K, allowed_K, columns_of(scores_K))[0].tolist()
    return weights


@pytest.mark.parametrize(("normalize", "by_loops"), NORMALIZERS)
@pytest.mark.parametrize("shape", [(1, 1), (5, 9), (2, 3, 4, 7)])
def test_weights_are_what_loops_compute(
    normalize: Normalizer, by_loops: loops.Selection, shape: tuple[int, ...]
) -> None:
    scores = 3 * noise(*shape, seed=1)
    allowed = noise(*shape, seed=2) > 0
    weights = weights_by(normalize, scores, allowed).numpy()
    expected = np.zeros(shape)
    for place in np.ndindex(shape[:-1]):
        keys = np.flatnonzero(allowed[place].numpy())
        if len(keys):
            expected[place][keys] = by_loops([float(scores[place][key]) for key in keys])
    np.testing.assert_allclose(weights, expected, rtol=0, atol=1e-14)


def test_softmax_of_a_textbook_row() -> None:
    assert row(softmax, [2.0, 1.0, 0.1]) == pytest.approx([0.659, 0.242, 0.099], abs=5e-4)


def test_softmax_leaves_out_what_is_not_allowed() -> None:
    """Of scores 0 and ln 3, a quarter and three quarters; the largest by far takes no part."""
    weights = row(softmax, [0.0, 1e4, np.log(3.0)], [True, False, True])
    assert weights == pytest.approx([0.25, 0.0, 0.75])
    assert weights[1] == 0.0


@pytest.mark.parametrize("normalize", [softmax, hardmax])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_is_taken_where_nothing_is_allowed(normalize: Normalizer, dtype: torch.dtype) -> None:
    scores = torch.tensor([[5.0, -3.0, 0.0], [1.0, 2.0, 3.0]], dtype=dtype)
    allowed = torch.tensor([[False, False, False], [True, True, False]])
    weights = weights_by(normalize, scores, allowed)
    assert weights[0].tolist() == [0.0, 0.0, 0.0]
    assert float(weights[1].sum()) == pytest.approx(1.0)
    assert weights.dtype == dtype


@pytest.mark.parametrize("normalize", [softmax, hardmax])
def test_what_is_taken_of_values_is_their_sum_by_weights(normalize: Normalizer) -> None:
    scores, values = noise(2, 3, 5, 7, seed=5), noise(2, 3, 7, 4, seed=6)
    allowed = noise(2, 1, 5, 7, seed=7) > 0
    allowed[0, 0, 2] = False
    taken = AttentionFunction(Dot(1, 1), normalize).attend(scores, allowed, columns_of(scores), values)
    expected = weights_by(normalize, scores, allowed) @ values
    np.testing.assert_allclose(taken, expected, rtol=0, atol=1e-14)
    assert not taken[0, :, 2].any()
    assert taken[0, :, 1].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [30.0, 1e4, 1e30])
def test_large_scores_stay_finite_and_sum_to_1(dtype: torch.dtype, size: float) -> None:
    """Unscaled products grow large. Also where the masked score is the largest, and where all are far below 0."""
    scores = (size * noise(20, 50, seed=3)).to(dtype)
    scores = torch.cat([scores, scores - 3 * size])
    allowed = noise(40, 50, seed=4) > 0
    allowed[:, 0] = True
    weights = softmax(scores, allowed, columns_of(scores))
    assert torch.isfinite(weights).all()
    np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=0, atol=1e-6)
    assert not weights[~allowed].any()


@pytest.mark.parametrize(
    ("scores", "allowed", "best"),
    [
        ([1.0, 3.0, 2.0], [True, True, True], 1),
        ([3.0, 7.0, 7.0, 7.0], [True, True, True, True], 1),
        ([7.0, 7.0, 7.0, 7.0], [False, False, True, True], 2),
        ([9.0, -4.0, -4.0], [False, True, True], 1),
        ([0.0, 0.0, 0.0], [True, True, True], 0),
        ([-2.0, 0.0, -2.0], [True, False, True], 0),
    ],
)
def test_the_best_key_takes_all_and_of_equal_ones_the_first(
    scores: list[float], allowed: list[bool], best: int
) -> None:
    assert row(hardmax, scores, allowed) == [float(place == best) for place in range(len(scores))]


def test_of_equal_keys_the_one_in_the_lowest_column_wins_wherever_it_stands() -> None:
    """In blocks the keys come in another order, global tokens first."""
    scores = torch.tensor([[4.0, 4.0, 1.0, 4.0]])
    columns = torch.tensor([[9, 5, 0, 7]])
    assert hardmax(scores, torch.ones(1, 4, dtype=torch.bool), columns).tolist() == [[0.0, 1.0, 0.0, 0.0]]
