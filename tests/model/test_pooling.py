"""One vector per sequence, by hand. Letters: B batch, L length, D width."""

import numpy as np
import pytest
import torch

from model.config import PoolingConfig, PoolingMode
from model.layout import Padded
from model.pooling import Pooling

X = torch.tensor([[[3.0, 4.0], [1.0, -2.0], [-9.0, 9.0]], [[8.0, 8.0], [0.0, 5.0], [0.0, -1.0]]])
REAL = torch.tensor([[True, True, False], [False, True, True]])


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("mean", [[2.0, 1.0], [0.0, 2.0]]),
        ("max", [[3.0, 4.0], [0.0, 5.0]]),
        ("cls", [[3.0, 4.0], [8.0, 8.0]]),  # column 0, even where it is no real token
    ],
)
def test_pooling_by_hand(mode: PoolingMode, expected: list[list[float]]) -> None:
    pooled = Pooling(PoolingConfig(mode, unit_length=False))(X, Padded(REAL))
    np.testing.assert_allclose(pooled.numpy(), expected, rtol=0, atol=1e-6)


def test_unit_length() -> None:
    pooled = Pooling(PoolingConfig("cls", unit_length=True))(X, Padded(REAL))
    np.testing.assert_allclose(pooled.numpy(), [[0.6, 0.8], [0.5**0.5, 0.5**0.5]], rtol=0, atol=1e-6)


def test_a_vector_of_zeros_stays_one() -> None:
    pooled = Pooling(PoolingConfig("mean", unit_length=True))(torch.zeros(1, 2, 3), Padded(REAL[:1, :2]))
    assert pooled.tolist() == [[0.0, 0.0, 0.0]]
