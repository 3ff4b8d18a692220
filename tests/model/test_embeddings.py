"""What goes in: ids, vectors, and images cut into patches.

Letters: B batch, L length, D width, F features.
"""

from typing import Any

import numpy as np
import pytest
import torch

from heed.bundle.sequence_packing import cut_into_patches as served_cut
from heed.model.embeddings import ImagesConfig, TokensConfig, VectorsConfig, cut_into_patches
from tests.model.support import assert_close, noise, with_random_weights

IDS = torch.tensor([[3, 0, 4], [4, 4, 1]])
TYPES = torch.tensor([[0, 1, 1], [0, 0, 0]])


def test_tokens_are_one_hot_rows_times_the_table() -> None:
    tokens = with_random_weights(TokensConfig(5, token_types=2).build(3))
    assert tokens.types is not None
    one_hot = np.eye(5)[IDS] @ tokens.tokens.weight.numpy() + np.eye(2)[TYPES] @ tokens.types.weight.numpy()
    assert_close(tokens({"input_ids": IDS, "token_type_ids": TYPES}), one_hot)


def test_types_may_be_left_out() -> None:
    tokens = with_random_weights(TokensConfig(5).build(3))
    assert_close(tokens({"input_ids": IDS, "token_type_ids": TYPES}), np.eye(5)[IDS] @ tokens.tokens.weight.numpy())
    assert [name for name, _ in tokens.named_parameters()] == ["tokens.weight"]


def test_tables_may_be_narrower_than_the_model() -> None:
    assert TokensConfig(5, width=2).build(8).tokens.weight.shape == (5, 2)


def test_vectors_go_through_a_linear_layer() -> None:
    vectors = with_random_weights(VectorsConfig(4).build(3))
    weights = {name: tensor.numpy() for name, tensor in vectors.state_dict().items()}
    x = noise(2, 5, 4)
    assert_close(vectors({"features": x}), x.numpy() @ weights["project.weight"].T + weights["project.bias"])


def test_vectors_of_the_model_s_width_come_as_they_are() -> None:
    vectors = VectorsConfig(3).build(3)
    x = noise(2, 5, 3)
    assert torch.equal(vectors({"features": x}), x)
    assert not list(vectors.parameters())


@pytest.mark.parametrize(("channels", "height", "width", "patch"), [(3, 8, 12, 4), (1, 6, 6, 2), (2, 4, 4, 4)])
def test_patches_are_a_convolution_with_a_class_token_before_it(
    channels: int, height: int, width: int, patch: int
) -> None:
    config = ImagesConfig(channels, height, width, patch)
    assert config.features == channels * patch * patch
    patches = with_random_weights(config.build(7))
    pixels = noise(2, channels, height, width)
    kernel = patches.project.weight.reshape(7, channels, patch, patch)
    convolved = torch.nn.functional.conv2d(pixels, kernel, patches.project.bias, stride=patch)
    expected = torch.cat([patches.class_token.expand(2, 1, 7), convolved.flatten(2).mT], 1)
    features = cut_into_patches(pixels, patch)
    assert features.shape == (2, 1 + config.patches, config.features)
    positions = torch.arange(1 + config.patches).expand(2, -1)
    assert_close(patches({"features": features, "position_ids": positions}), expected)


def test_patches_by_hand() -> None:
    """Two channels of 2 x 4 pixels, patches of 2: row by row, and in each channel, row, column."""
    pixels = torch.arange(16.0).reshape(1, 2, 2, 4)
    by_hand = [[0] * 8, [0, 1, 4, 5, 8, 9, 12, 13], [2, 3, 6, 7, 10, 11, 14, 15]]
    assert cut_into_patches(pixels, 2)[0].tolist() == by_hand
    assert served_cut(pixels.numpy(), 2)[0].tolist() == by_hand


def test_patches_of_rows_by_hand() -> None:
    pixels = torch.tensor([[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]])
    assert cut_into_patches(pixels, 1)[0, :, 0].tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_the_server_cuts_as_the_reference_does() -> None:
    pixels = noise(2, 3, 12, 8)
    assert np.array_equal(served_cut(pixels.numpy(), 4), cut_into_patches(pixels, 4).numpy())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TokensConfig(0), "vocabulary must be a positive integer, got 0"),
        (lambda: TokensConfig("5"), "vocabulary must be a positive integer, got '5'"),  # type: ignore[arg-type]
        (lambda: TokensConfig(5, -1), "token_types must be an integer of at least 0, got -1"),
        (lambda: TokensConfig(5, True), "token_types must be an integer of at least 0, got True"),
        (lambda: TokensConfig(5, 1, 0), "width must be a positive integer, got 0"),
        (lambda: VectorsConfig(0), "features must be a positive integer, got 0"),
        (lambda: ImagesConfig(0, 4, 4, 2), "channels must be a positive integer, got 0"),
        (lambda: ImagesConfig(1, -4, 4, 2), "height must be a positive integer, got -4"),
        (lambda: ImagesConfig(1, 4, None, 2), "image_width must be a positive integer, got None"),  # type: ignore[arg-type]
        (lambda: ImagesConfig(1, 4, 4, 0), "patch must be a positive integer, got 0"),
        (lambda: ImagesConfig(1, 4, 6, 4), "an image of 4 x 6 is not cut into patches of 4"),
        (lambda: ImagesConfig(1, 6, 4, 4), "an image of 6 x 4 is not cut into patches of 4"),
    ],
)
def test_a_bad_field_is_refused_by_name(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        make()
