"""One vector per sequence, by hand. Letters: B batch, L length, D width."""

from typing import get_args

import numpy as np
import pytest
import torch

from heed.model.config import PoolingConfig, PoolingMode
from heed.model.layout import Padded
from heed.model.norms import NormConfig
from heed.model.pooling import DenseConfig, UnitLengthConfig
from heed.model.positions import column_positions
from tests.model.support import assert_close, noise, packed, padded, random_mask

X = torch.tensor([[[3.0, 4.0], [1.0, -2.0], [-9.0, 9.0]], [[8.0, 8.0], [0.0, 5.0], [0.0, -1.0]]])
REAL = torch.tensor([[True, True, False], [False, True, True]])
LAYOUT = Padded(REAL, column_positions(REAL))
MODES = get_args(PoolingMode)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("mean", [[2.0, 1.0], [0.0, 2.0]]),
        ("max", [[3.0, 4.0], [0.0, 5.0]]),
        ("cls", [[3.0, 4.0], [0.0, 5.0]]),  # the first real token, not column 0
        ("lasttoken", [[1.0, -2.0], [0.0, -1.0]]),
        ("mean_sqrt_len_tokens", [[4.0 / 2**0.5, 2.0 / 2**0.5], [0.0, 4.0 / 2**0.5]]),
        ("weightedmean", [[5.0 / 3, 0.0], [0.0, 1.0]]),  # weights 1/3 and 2/3
        (("mean", "cls"), [[2.0, 1.0, 3.0, 4.0], [0.0, 2.0, 0.0, 5.0]]),
    ],
)
def test_pooling_by_hand(mode: PoolingMode, expected: list[list[float]]) -> None:
    pooled = PoolingConfig(mode, unit_length=False).build(2)(X, LAYOUT)
    np.testing.assert_allclose(pooled.numpy(), expected, rtol=0, atol=1e-6)


def test_unit_length() -> None:
    pooled = PoolingConfig("cls", unit_length=True).build(2)(X, LAYOUT)
    np.testing.assert_allclose(pooled.numpy(), [[0.6, 0.8], [0.0, 1.0]], rtol=0, atol=1e-6)


def test_a_vector_of_zeros_stays_one() -> None:
    pooled = PoolingConfig("mean", unit_length=True).build(2)(torch.zeros(2, 3, 2), LAYOUT)
    assert pooled.tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_dense_layers_come_before_the_length() -> None:
    config = PoolingConfig("cls", unit_length=True, layers=(DenseConfig(1, "relu"), DenseConfig(2, None, bias=False)))
    pooling = config.build(2)
    weights = {
        "layers.0.linear.weight": torch.tensor([[1.0, -1.0]]),
        "layers.0.linear.bias": torch.tensor([2.0]),
        "layers.1.linear.weight": torch.tensor([[3.0], [-4.0]]),
    }
    pooling.load_state_dict(weights)
    with torch.no_grad():
        pooled = pooling(X, LAYOUT)
    np.testing.assert_allclose(pooled.numpy(), [[0.6, -0.8], [0.0, 0.0]], rtol=0, atol=1e-6)
    assert config.width(5) == 2
    assert PoolingConfig("cls", unit_length=False).width(5) == 5


def test_a_dense_layer_is_refused_by_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="width of a dense layer must be a positive integer, got 0"):
        DenseConfig(0)
    with pytest.raises(ValueError, match="activation 'mish' is none of"):
        DenseConfig(1, "mish")  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", MODES)
def test_pooling_without_padding_is_that_of_the_rows(mode: PoolingMode) -> None:
    pooling = PoolingConfig(mode, unit_length=True).build(4)
    real = random_mask(5, 9, seed=0)
    x = noise(5, 9, 4)
    layout = packed(real)
    assert_close(pooling(x[layout.rows_T, layout.columns_T], layout), pooling(x, padded(real)))


@pytest.mark.parametrize("mode", MODES)
def test_what_a_padded_token_holds_does_not_matter(mode: PoolingMode) -> None:
    pooling = PoolingConfig(mode, unit_length=False).build(4)
    real = random_mask(5, 9, seed=0)
    x, other = noise(5, 9, 4), noise(5, 9, 4)
    other[torch.from_numpy(~real)] = 1e6
    assert torch.equal(pooling(x, padded(real)), pooling(other, padded(real)))


def test_a_residual_is_projected_where_the_widths_differ() -> None:
    layers = (DenseConfig(2, None, residual=True), DenseConfig(1, "relu", residual=True))
    pooling = PoolingConfig("cls", unit_length=False, layers=layers).build(2)
    weights = {
        "layers.0.linear.weight": torch.tensor([[0.0, 1.0], [2.0, 0.0]]),
        "layers.0.linear.bias": torch.zeros(2),
        "layers.1.linear.weight": torch.tensor([[-1.0, -1.0]]),
        "layers.1.linear.bias": torch.zeros(1),
        "layers.1.residual.weight": torch.tensor([[1.0, 10.0]]),
    }
    pooling.load_state_dict(weights)
    with torch.no_grad():
        pooled = pooling(X, LAYOUT)  # 3, 4 -> 7, 10 -> 0 + 107; 0, 5 -> 5, 5 -> 0 + 55
    np.testing.assert_allclose(pooled.numpy(), [[107.0], [55.0]], rtol=0, atol=1e-5)


def test_the_first_dimensions_are_those_of_the_whole_vector_at_its_length() -> None:
    config = PoolingConfig("cls", unit_length=True, dimensions=1)
    pooled = config.build(2)(X, LAYOUT)
    np.testing.assert_allclose(pooled.numpy(), [[0.6], [0.0]], rtol=0, atol=1e-6)
    assert not config.gives_unit_length
    assert (config.width(5), config.width(1)) == (1, 1)
    with pytest.raises(ValueError, match="dimensions must be a positive integer, got 0"):
        PoolingConfig("cls", True, dimensions=0)


def test_layers_of_other_kinds() -> None:
    layers = (UnitLengthConfig(), NormConfig(epsilon=1e-9))
    pooled = PoolingConfig("cls", unit_length=False, layers=layers).build(2)(X, LAYOUT)
    np.testing.assert_allclose(pooled.detach().numpy(), [[-1.0, 1.0], [-1.0, 1.0]], rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["mean_sqrt_len", "", "CLS", ("cls", "CLS")])
def test_an_unknown_pooling_mode_is_refused(mode: object) -> None:
    mode_name = mode[-1] if isinstance(mode, tuple) else mode
    with pytest.raises(ValueError, match=f"pooling mode '{mode_name}' is none of cls, max, mean"):
        PoolingConfig(mode, unit_length=True)  # type: ignore[arg-type]
