"""Multi-head self-attention against plain loops, and against numbers worked out by hand.

Letters: B batch, L length, D width, N heads, H head width.
"""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from bundle.manifest import PositionRule
from bundle.packing import pack, sequence
from model.attention import MultiHeadAttention
from model.layout import Layout, Packed, Padded
from tests.support import make_noisy

SHAPES = [(1, 1, 4, 1), (1, 1, 4, 4), (2, 3, 6, 2), (3, 7, 8, 4), (4, 12, 10, 5), (2, 33, 12, 3)]  # B, L, D, N


def make_attention(width: int, heads: int, seed: int = 0) -> MultiHeadAttention:
    torch.manual_seed(seed)
    attention = MultiHeadAttention(width, heads).double()
    make_noisy(attention, seed)
    return attention.requires_grad_(False)


def random_mask(batch: int, length: int, seed: int) -> np.ndarray:
    """Holes anywhere, and a real token in every row."""
    generator = np.random.default_rng(seed)
    real_BL = generator.random((batch, length)) < 0.6
    real_BL[np.arange(batch), generator.integers(0, length, batch)] = True
    return real_BL


def attend_by_loops(attention: MultiHeadAttention, x_BLD: np.ndarray, real_BL: np.ndarray) -> np.ndarray:
    """What attention is: for each head and each query, exponentials of dot products over the keys that are real."""

    def project(layer: torch.nn.Linear, vector: np.ndarray) -> np.ndarray:
        projected: np.ndarray = layer.weight.numpy() @ vector + layer.bias.numpy()
        return projected

    batch, length, width = x_BLD.shape
    size = width // attention.heads
    answers = np.empty_like(x_BLD)
    for row in range(batch):
        keys = [column for column in range(length) if real_BL[row, column]]
        for column in range(length):
            query = project(attention.query, x_BLD[row, column])
            joined = np.zeros(width)
            for head in range(attention.heads):
                part = slice(head * size, (head + 1) * size)
                weights = [
                    math.exp(float(query[part] @ project(attention.key, x_BLD[row, key])[part]) / math.sqrt(size))
                    for key in keys
                ]
                for weight, key in zip(weights, keys, strict=True):
                    joined[part] += weight / sum(weights) * project(attention.value, x_BLD[row, key])[part]
            answers[row, column] = project(attention.out, joined)
    return answers


def packed_layout(real_BL: np.ndarray) -> tuple[Packed, np.ndarray, np.ndarray]:
    """The layout without padding, and row and column of each of its tokens in the padded form."""
    types = np.zeros(real_BL.shape[1], np.int64)
    members = [sequence(PositionRule(kind="column"), {"input_ids": types}, real) for real in real_BL]
    feeds = {name: torch.from_numpy(array) for name, array in pack(members).items()}
    rows = np.repeat(np.arange(len(members)), [len(member) for member in members])
    columns = np.concatenate([member.columns for member in members])
    return Packed(feeds["slots"], feeds["rows"], feeds["columns"], feeds["real"]), rows, columns


@pytest.mark.parametrize(("batch", "length", "width", "heads"), SHAPES)
def test_padded_attention_is_what_loops_compute(batch: int, length: int, width: int, heads: int) -> None:
    attention = make_attention(width, heads)
    x_BLD = np.random.default_rng(length).normal(size=(batch, length, width))
    real_BL = random_mask(batch, length, seed=length)
    ours = attention(torch.from_numpy(x_BLD), Padded(torch.from_numpy(real_BL))).numpy()
    np.testing.assert_allclose(ours, attend_by_loops(attention, x_BLD, real_BL), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("batch", "length", "width", "heads"), SHAPES)
def test_packed_attention_is_what_loops_compute(batch: int, length: int, width: int, heads: int) -> None:
    attention = make_attention(width, heads)
    x_BLD = np.random.default_rng(length).normal(size=(batch, length, width))
    real_BL = random_mask(batch, length, seed=length)
    layout, rows, columns = packed_layout(real_BL)
    ours = attention(torch.from_numpy(x_BLD[rows, columns]), layout).numpy()
    expected = attend_by_loops(attention, x_BLD, real_BL)[rows, columns]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12)


def test_two_tokens_by_hand() -> None:
    """Q = K = x, V = (2x₁, 4x₂), two orthogonal tokens: each gives itself e^(1/√2) to 1, that is 0.6698 to 0.3302."""
    attention = MultiHeadAttention(2, 1).double().requires_grad_(False)
    for layer in (attention.query, attention.key, attention.value, attention.out):
        layer.weight.copy_(torch.eye(2))
        layer.bias.zero_()
    attention.value.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 4.0]]))
    attention.out.bias.copy_(torch.tensor([10.0, 0.0]))
    x = torch.eye(2, dtype=torch.float64)[None]
    answer = attention(x, Padded(torch.ones(1, 2, dtype=torch.bool)))
    by_hand = [
        [10 + 2 * 0.6697615493266569, 4 * 0.3302384506733431],
        [10 + 2 * 0.3302384506733431, 4 * 0.6697615493266569],
    ]
    np.testing.assert_allclose(answer[0].numpy(), by_hand, rtol=0, atol=1e-14)


def test_softmax_of_a_textbook_row() -> None:
    scores = torch.tensor([2.0, 1.0, 0.1]).expand(1, 1, 3, 3)
    real = torch.ones(1, 3, dtype=torch.bool)
    slots = torch.tensor([[0, 1, 2]])
    layouts: list[Layout] = [Padded(real), Packed(slots, torch.zeros(3, dtype=torch.long), slots[0], real)]
    for layout in layouts:
        weights = layout.softmax(scores)[0, 0]
        np.testing.assert_allclose(weights.numpy(), [[0.659, 0.242, 0.099]] * 3, rtol=0, atol=5e-4)
        assert torch.allclose(weights.sum(-1), torch.ones(3))


def test_a_width_of_512_divides_into_8_heads_of_64() -> None:
    attention = MultiHeadAttention(512, 8)
    x = torch.arange(2 * 3 * 512.0).reshape(2, 3, 512)
    layout = Padded(torch.ones(2, 3, dtype=torch.bool))
    by_head = layout.to_heads(x, attention.heads)
    assert by_head.shape == (2, 8, 3, 64)
    assert torch.equal(by_head[1, 2, 0], x[1, 0, 128:192])
    assert torch.equal(layout.from_heads(by_head), x)
    assert attention.scale == 1 / 8


def both_layouts(real: list[bool]) -> list[Layout]:
    """One row of so many tokens, of which some take no part as keys."""
    real_BL, columns = torch.tensor([real]), torch.arange(len(real))
    return [Padded(real_BL), Packed(columns[None], torch.zeros_like(columns), columns, real_BL)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_padded_key_gets_exactly_no_weight(dtype: torch.dtype) -> None:
    scores = 50 * torch.randn(1, 2, 4, 4, dtype=dtype, generator=torch.Generator().manual_seed(0))
    scores[..., 2] = 1e4  # the largest by far
    for layout in both_layouts([True, False, False, True]):
        weights = layout.softmax(scores)
        assert not weights[..., 1:3].any()
        expected = scores[..., [0, 3]].softmax(-1)
        assert torch.allclose(weights[..., [0, 3]], expected)


def test_what_a_padded_token_holds_does_not_matter() -> None:
    attention = make_attention(8, 2)
    x = torch.randn(1, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    other = x.clone()
    other[0, 1] = 1e6
    other[0, 4] = -1e6
    real = [True, False, True, True, False]
    padded, packed = both_layouts(real)
    kept = torch.tensor([0, 2, 3])
    assert torch.equal(attention(x, padded)[0, kept], attention(other, padded)[0, kept])
    assert torch.equal(attention(x[0], packed)[kept], attention(other[0], packed)[kept])
    changed = x.clone()
    changed[0, 2] += 1  # a control: a real token does matter
    assert not torch.allclose(attention(x, padded)[0, kept], attention(changed, padded)[0, kept])


def test_a_row_without_a_real_key_attends_to_nothing() -> None:
    """Not NaN, and not the mean of all values: zeros, which the output layer turns into its bias."""
    attention = make_attention(8, 2)
    x = torch.randn(2, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    layout = Padded(torch.tensor([[False, False, False], [True, True, False]]))
    answer = attention(x, layout)
    assert torch.equal(answer[0], attention.out.bias.expand(3, 8))
    assert not layout.softmax(torch.randn(2, 2, 3, 3))[0].any()
    alone: Tensor = attention(x[1:], Padded(torch.tensor([[True, True, False]])))
    assert torch.allclose(answer[1], alone[0], rtol=0, atol=1e-14)  # its neighbour is none the worse
