"""Blockwise attention is the dense form's answer at a linear cost.

Letters: B batch, L length, D width, N heads.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from heed.model.attention import Bias, MultiHeadAttention
from heed.model.attention_config import AttentionConfig
from heed.model.attention_plan import AttentionPlan
from heed.model.block_index import is_block_sparse
from heed.model.blockwise import put_rows, rows_at, union_of
from heed.model.layout import GlobalTokens
from heed.model.patterns import (
    Adjacency,
    BlockWindow,
    Causal,
    Chunk,
    FirstTokens,
    Full,
    GlobalMask,
    Pairs,
    Pattern,
    Random,
    Strided,
    Window,
    big_bird,
)
from heed.model.positions import LogBuckets, RelativeBias
from heed.model.score_functions import Additive, Dot, ScaledDot
from heed.model.softmax import hardmax, softmax
from tests.model.loops import Bools
from tests.model.support import (
    assert_close,
    global_tokens,
    in_blocks,
    make_attention,
    masks,
    noise,
    packed,
    padded,
    plan,
    random_edges,
    random_mask,
    with_random_weights,
)


@dataclass(frozen=True)
class Dilated(Pattern):
    """A pattern that the model has not: every `step_width`-th token up to `radius` steps away."""

    radius: int
    step_width: int

    def allows(self, pairs: Pairs) -> Tensor:
        distance = (pairs.i - pairs.j).abs()
        return (distance % self.step_width == 0) & (distance <= self.radius * self.step_width)

    @property
    def reach(self) -> int:
        return self.radius * self.step_width


BLOCK_SPARSE: list[Pattern] = [
    Window(0),
    Window(3),
    Window(20),
    Strided(3, within=20),
    Chunk(5),
    Chunk(16),
    BlockWindow(4),
    BlockWindow(16, 2),
    Dilated(3, 4),
    Window(9) & Causal(),
    Causal() & Chunk(10),
    Window(2) | Chunk(7),
    Chunk(25) | Chunk(9),
    Window(2) | FirstTokens(1),
    Window(2) | FirstTokens(5),
    FirstTokens(40) | Window(3),  # more global tokens than columns, in short rows
    Chunk(4) | GlobalMask(),
    Window(3) | GlobalMask() | FirstTokens(2),
    (Window(9) & Causal()) | GlobalMask(),
    Window(12) & (FirstTokens(3) | Chunk(6)),
    Random(2, 4, blocks=25),
    Random(1, 16, blocks=7) | Window(3),
    Random(2, 4, blocks=25) | Window(30) | GlobalMask(),
    Random(3, 8, blocks=13) | Random(1, 5, blocks=20, seed=3) | FirstTokens(1),
    big_bird(4, 2, blocks=25),
]
NOT_BLOCK_SPARSE: list[Pattern] = [
    Full(),
    Causal(),
    Strided(3),
    FirstTokens(2),
    GlobalMask(),
    Adjacency(),
    Window(3) | Causal(),
    Window(3) | Adjacency(),
    Causal() & Random(1, 4, blocks=25),
    # What a request gives is known by row and column, not by blocks.
    Window(6) & Adjacency(),
    Window(6) & (Window(2) | GlobalMask()),
    (Window(6) & Adjacency()) | FirstTokens(1),
]


def attend_in_all_forms(
    attention: MultiHeadAttention, real: Bools, marked: Bools, edges: Bools, seed: int = 0, bias: Bias | None = None
) -> None:
    """Asserts that blocks, in padded rows and without padding, give the answers of all pairs."""
    x = noise(*real.shape, attention.query.in_features, seed=seed)
    layout = padded(real, marked, edges)
    expected = attention(x, plan(layout), bias)
    assert torch.isfinite(expected).all()
    assert_close(attention(x, in_blocks(layout), bias), expected)
    tokens = packed(real, marked, edges)
    kept = tokens.rows_T, tokens.columns_T
    assert_close(attention(x[kept], in_blocks(tokens), bias), expected[kept])


def marks(real: Bools, seed: int) -> Bools:
    """Some global tokens, among masked ones too; the last row has none."""
    marked: Bools = np.random.default_rng(seed).random(real.shape) < 0.15
    marked[-1] = False
    return marked & real


@pytest.mark.parametrize("pattern", BLOCK_SPARSE, ids=str)
@pytest.mark.parametrize("length", [1, 2, 3, 15, 16, 17, 31, 32, 33, 61, 100])
def test_blocks_give_the_answer_of_all_pairs(pattern: Pattern, length: int) -> None:
    assert is_block_sparse(pattern)
    attention = make_attention(AttentionConfig(2, pattern), 8)
    real = masks(length)
    attend_in_all_forms(attention, real, marks(real, length), random_edges(len(real), length, seed=1))


@pytest.mark.parametrize("pattern", NOT_BLOCK_SPARSE, ids=str)
def test_a_pattern_that_is_not_block_sparse_is_computed_from_all_pairs(pattern: Pattern) -> None:
    assert not is_block_sparse(pattern)
    assert not AttentionConfig(2, pattern).block_sparse
    attention = make_attention(AttentionConfig(2, pattern), 8)
    real = masks(40)
    attend_in_all_forms(attention, real, marks(real, 1), random_edges(len(real), 40, seed=1))


def patterns() -> st.SearchStrategy[Pattern]:
    """Anything that can be written with `|` and `&`."""
    small = st.integers(1, 9)
    simple: st.SearchStrategy[Pattern] = st.one_of(
        st.builds(Window, st.integers(0, 25)),
        st.builds(Strided, small, st.integers(0, 30)),
        st.builds(Strided, small),
        st.builds(Chunk, st.integers(1, 25)),
        st.builds(BlockWindow, small, st.integers(0, 3)),
        st.builds(Random, st.integers(1, 3), small, st.just(80), st.integers(0, 5)),
        st.builds(FirstTokens, st.integers(1, 4)),
        st.builds(Dilated, st.integers(0, 3), small),
        st.just(Causal()),
        st.just(GlobalMask()),
        st.just(Adjacency()),
    )
    return st.recursive(
        simple,
        lambda inner: st.one_of(
            st.builds(lambda a, b: a | b, inner, inner), st.builds(lambda a, b: a & b, inner, inner)
        ),
        max_leaves=4,
    )


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    pattern=patterns(),
    other=patterns(),
    length=st.integers(1, 75),
    seed=st.integers(0, 1000),
    score=st.sampled_from([ScaledDot, Dot, Additive]),
    select=st.sampled_from([softmax, hardmax]),
    with_bias=st.booleans(),
)
@example(Window(6) & GlobalMask(), Window(2), 40, 0, ScaledDot, softmax, False)
@example(Random(1, 5, 80) | Window(25), Window(2) | GlobalMask(), 7, 0, ScaledDot, softmax, True)
def test_any_patterns_scores_and_selections_give_the_same_in_blocks(
    pattern: Pattern, other: Pattern, length: int, seed: int, score: Any, select: Any, with_bias: bool
) -> None:
    config = AttentionConfig(3, (pattern, other, other), score, select, head_width=4, value_width=3)
    attention = make_attention(config, 6, seed=seed)
    bias = with_random_weights(RelativeBias(3, LogBuckets(8, 20), 75), seed) if with_bias else None
    real = random_mask(3, length, seed)
    attend_in_all_forms(attention, real, marks(real, seed), random_edges(3, length, seed), seed, bias)


@pytest.mark.parametrize("pattern", [Window(2) | FirstTokens(1), Window(20) | GlobalMask(), Chunk(5) | GlobalMask()])
def test_equal_scores_go_to_the_lowest_column_in_blocks_too(pattern: Pattern) -> None:
    """Exact integers, and global tokens behind a query's own window: all keys score 0, so column 0 wins, or the first
    of the window where there is no global token."""
    attention = make_attention(AttentionConfig(1, pattern, Dot, hardmax), 4)
    for layer in (attention.query, attention.key):
        layer.weight.zero_()
        layer.bias.zero_()
    real = masks(45)
    marked = np.zeros(real.shape, bool)
    marked[:, [3, 44]] = real[:, [3, 44]]
    marked[2] = False
    attend_in_all_forms(attention, real, marked, random_edges(len(real), 45, seed=0))


def test_the_first_of_equal_keys_by_hand_in_blocks() -> None:
    """Window 1, global token 30 of 40, all scores 0, and the value of a token is its column."""
    attention = make_attention(AttentionConfig(1, Window(1) | GlobalMask(), Dot, hardmax, bias=False), 1)
    for layer, weight in ((attention.query, 0.0), (attention.key, 0.0), (attention.value, 1.0), (attention.out, 1.0)):
        layer.weight.fill_(weight)
    x = torch.arange(40, dtype=torch.float64)[None, :, None]
    real = np.ones((1, 40), bool)
    real[0, [0, 12]] = False
    marked = np.arange(40)[None] == 30
    expected = [max(0, column - 1) for column in range(40)]
    expected[0] = expected[1] = 1  # column 0 is masked
    expected[13] = 13  # and so is 12
    expected[30] = 1  # sees all
    expected[32:] = [30] * 8  # the global column comes before their window
    answer = attention(x, in_blocks(padded(real, marked)))
    assert answer[0, :, 0].tolist() == expected


def test_a_pattern_of_one_s_own_is_block_sparse_by_its_reach() -> None:
    """Drawn by hand: every second token up to two steps away."""
    pattern = Dilated(2, 2)
    assert is_block_sparse(pattern)
    one_hot = make_attention(AttentionConfig(1, pattern, Dot, bias=False), 40)
    for layer, factor in ((one_hot.query, 0.0), (one_hot.key, 0.0), (one_hot.value, 1.0), (one_hot.out, 1.0)):
        layer.weight.copy_(factor * torch.eye(40))
    layout = padded(np.ones((1, 40), bool))
    weights = one_hot(torch.eye(40, dtype=torch.float64)[None], in_blocks(layout))[0]  # values are one-hot
    expected = np.zeros((40, 40))
    for i in range(40):
        seen = [j for j in (i - 4, i - 2, i, i + 2, i + 4) if 0 <= j < 40]
        expected[i, seen] = 1 / len(seen)
    assert_close(weights, expected)


class LargestTensor(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the number of elements of the largest tensor that any operation makes."""

    size: int

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else (result,):
            if isinstance(each, Tensor) and each._is_view() is False:
                self.size = max(self.size, each.numel())
        return result


def largest_tensor(attention: MultiHeadAttention, plan: AttentionPlan, width: int) -> int:
    batch, length = plan.layout.real_BL.shape
    x = noise(batch, length, width)
    with LargestTensor() as largest, torch.no_grad():
        attention(x, plan)
    size: int = largest.size
    return size


@pytest.mark.parametrize(
    "pattern",
    [
        Window(8),
        Chunk(16),
        Strided(4, within=16),
        Dilated(4, 4),
        BlockWindow(16),
        Window(8) & Causal(),
        Window(8) | GlobalMask(),
        Window(8) | FirstTokens(2) | Chunk(5),
        Random(2, 16, blocks=128) | FirstTokens(1) | BlockWindow(16),
    ],
    ids=str,
)
def test_blocks_need_memory_that_is_linear_in_the_length(pattern: Pattern) -> None:
    attention = make_attention(AttentionConfig(1, pattern), 8, 2048)
    sizes = {}
    for length in (512, 1024, 2048):
        layout = padded(np.ones((1, length), bool), np.arange(length)[None] % (length // 3) == 5)
        sizes[length] = largest_tensor(attention, in_blocks(layout), 8)
        assert length <= sizes[length] <= 220 * length
    assert sizes[2048] <= 2.1 * sizes[1024] <= 4.5 * sizes[512]


def test_all_pairs_need_memory_that_is_not() -> None:
    """A control of the test above."""
    attention = make_attention(AttentionConfig(1, Window(8)), 8)
    sizes = [largest_tensor(attention, plan(padded(np.ones((1, length), bool))), 8) for length in (256, 512)]
    assert sizes == [256 * 256, 512 * 512]


def test_rows_of_many_columns_are_attended_to_in_blocks_of_their_own_accord() -> None:
    attention = make_attention(AttentionConfig(1, Window(8)), 8)
    assert largest_tensor(attention, plan(padded(np.ones((1, 1500), bool))), 8) < 1500 * 1500 / 8
    assert not plan(padded(np.ones((1, 1024), bool))).blockwise
    assert plan(padded(np.ones((1, 1025), bool))).blockwise


def test_tokens_named_twice_count_once() -> None:
    one = GlobalTokens(torch.tensor([[3, 0], [1, 4]]), torch.tensor([[True, False], [True, True]]))
    other = GlobalTokens(torch.tensor([[0, 3], [5, 1]]), torch.tensor([[True, True], [True, True]]))
    both = union_of([one, other])
    assert both.slots_BG.tolist() == [[3, 0, 0, 3], [1, 4, 5, 1]]
    assert both.present_BG.tolist() == [[True, False, True, False], [True, True, True, False]]


def test_rows_are_taken_from_slots_and_put_back() -> None:
    x = torch.arange(10.0).reshape(1, 2, 5, 1)
    tokens = GlobalTokens(torch.tensor([[4, 1, 0]]), torch.tensor([[True, True, False]]))
    assert rows_at(x, tokens.slots_BG)[..., 0].tolist() == [[[4, 1, 0], [9, 6, 5]]]
    rows = torch.tensor([[[[-1.0], [-2.0], [-3.0]], [[-4.0], [-5.0], [-6.0]]]])
    assert put_rows(x, rows, tokens)[..., 0].tolist() == [[[0, -2, 2, 3, -1], [5, -5, 7, 8, -4]]]


def test_places_without_a_token_are_nobody() -> None:
    tokens = global_tokens(np.array([[False, True, True], [False, False, False]]))
    among = tokens.among(torch.arange(3))
    assert among.any(-1).tolist() == [[False, True, True], [False, False, False]]
