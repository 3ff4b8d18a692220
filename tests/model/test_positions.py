"""Position ids by hand, and what is made of them, by formula.

Letters: B batch, L length, D width, N heads, H head width.
"""

import cmath
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers.models.t5.modeling_t5 import T5Attention

from heed.bundle.manifest import PositionRule as ServedRule
from heed.bundle.sequence_packing import position_ids as served_position_ids
from heed.bundle.sequence_packing import token_sequence
from heed.model.attention_config import AttentionConfig
from heed.model.patterns import Pairs, all_pairs
from heed.model.positions import (
    LearnedPositions,
    LogBuckets,
    PositionRule,
    RelativeBias,
    RotaryPositions,
    RuleKind,
    SinusoidalPositions,
    column_positions,
    counted_positions,
)
from tests.model.support import assert_close, make_attention, noise, packed, padded, plan, with_random_weights

# Rule, padding id, ids, mask, positions.
BY_HAND: list[tuple[RuleKind, int, list[int], list[int], list[int]]] = [
    ("column", 0, [7], [1], [0]),
    ("column", 0, [7, 8, 9, 0, 0], [1, 1, 1, 0, 0], [0, 1, 2, 3, 4]),
    ("column", 0, [0, 0, 7, 8, 9], [0, 0, 1, 1, 1], [0, 1, 2, 3, 4]),
    ("counted", 1, [7], [1], [2]),
    ("counted", 1, [1], [1], [1]),
    ("counted", 1, [0, 5, 6, 2, 1, 1], [1, 1, 1, 1, 0, 0], [2, 3, 4, 5, 1, 1]),
    ("counted", 1, [1, 1, 0, 5, 2], [0, 0, 1, 1, 1], [1, 1, 2, 3, 4]),
    ("counted", 1, [5, 1, 7, 1, 9], [1, 1, 1, 1, 1], [2, 1, 3, 1, 4]),
    ("counted", 1, [5, 6, 7], [1, 0, 1], [2, 3, 4]),  # by ids, not by the mask
    ("counted", 0, [5, 0, 5], [1, 1, 1], [1, 0, 2]),
    ("counted", 3, [3, 0, 1], [0, 1, 1], [3, 4, 5]),
    ("stripped", 0, [7, 8, 9], [1, 1, 1], [0, 1, 2]),
    ("stripped", 0, [0, 0, 7, 8, 0, 9], [0, 0, 1, 1, 0, 1], [-2, -1, 0, 1, 2, 3]),
]


@pytest.mark.parametrize(("kind", "padding_id", "ids", "mask", "expected"), BY_HAND)
def test_positions_by_hand(
    kind: RuleKind, padding_id: int, ids: list[int], mask: list[int], expected: list[int]
) -> None:
    real = np.array(mask, bool)
    served = served_position_ids(ServedRule(kind=kind, padding_id=padding_id), {"input_ids": np.array(ids)}, real)
    assert served.tolist() == expected
    assert served.dtype == np.int64
    if kind == "column":
        assert column_positions(torch.from_numpy(np.stack([real, real]))).tolist() == [expected, expected]
    elif kind == "counted":
        assert counted_positions(torch.tensor([ids, ids]), padding_id).tolist() == [expected, expected]
    # The reference strips a row before it counts columns: see test_encoder.py.


def test_rows_are_counted_one_by_one() -> None:
    assert counted_positions(torch.tensor([[5, 6, 7], [1, 5, 1]]), 1).tolist() == [[2, 3, 4], [1, 2, 1]]


@pytest.mark.parametrize(
    ("kind", "expected", "columns"),
    [("column", [0, 2, 4], [0, 2, 4]), ("counted", [2, 3, 5], [0, 2, 4]), ("stripped", [0, 2, 4], [0, 2, 4])],
)
def test_positions_are_those_of_the_full_row(kind: RuleKind, expected: list[int], columns: list[int]) -> None:
    """A masked token leaves a gap; under the counted rule unless its id is the padding id."""
    ids, real = np.array([5, 1, 6, 7, 8]), np.array([True, False, True, False, True])
    member = token_sequence(ServedRule(kind=kind, padding_id=1), {"input_ids": ids}, real)
    assert member.tokens["position_ids"].tolist() == expected
    assert member.columns.tolist() == columns


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^position rule 'rotary' is none of column, counted, stripped$"):
        PositionRule("rotary")  # type: ignore[arg-type]


# None


@pytest.mark.parametrize("config", [AttentionConfig(2), AttentionConfig(2, head_width=3, value_width=5)])
def test_without_positions_permuted_tokens_get_permuted_answers(config: AttentionConfig) -> None:
    attention = make_attention(config, 8)
    order = torch.tensor([4, 0, 6, 2, 5, 3, 1])
    real = np.array([[True, True, False, True, True, True, False]])
    x = noise(1, 7, 8)
    straight = attention(x, plan(padded(real)))
    permuted = attention(x[:, order], plan(padded(real[:, order.numpy()])))
    assert_close(permuted, straight[:, order])


def test_with_rotary_positions_they_do_not() -> None:
    """A control."""
    attention = make_attention(AttentionConfig(2, rotary_base=100.0), 8)
    order = torch.tensor([1, 0, 2])
    x, layout = noise(1, 3, 8), padded(np.ones((1, 3), bool))
    assert not torch.allclose(attention(x[:, order], plan(layout)), attention(x, plan(layout))[:, order])


# Learned


def test_a_learned_position_is_a_row_of_the_table() -> None:
    learned = LearnedPositions(5, 3)
    positions = torch.tensor([[4, 0], [2, 2]])
    assert torch.equal(learned(positions), learned.table.weight[positions])


# Sinusoidal


@pytest.mark.parametrize("width", [2, 6, 7, 64])
def test_sinusoids_are_the_paper_s_formula(width: int) -> None:
    rows = 6000  # far past any length that models are trained at
    expected = np.empty((rows, width))
    positions = np.arange(rows)
    for value in range(width):
        angles = positions / 10000 ** (2 * (value // 2) / width)
        expected[:, value] = np.cos(angles) if value % 2 else np.sin(angles)
    assert_close(SinusoidalPositions(rows, width)(torch.arange(rows)), expected, 1e-6)


def test_sinusoids_by_hand() -> None:
    """Width 4: rates 1 and 1/100."""
    expected = [math.sin(3), math.cos(3), math.sin(0.03), math.cos(0.03)]
    assert SinusoidalPositions(4, 4)(torch.tensor(3)).tolist() == pytest.approx(expected)
    assert SinusoidalPositions(4, 4)(torch.tensor(0)).tolist() == [0.0, 1.0, 0.0, 1.0]


def test_a_longer_table_of_sinusoids_begins_as_a_shorter_one() -> None:
    assert torch.equal(SinusoidalPositions(900, 8).table[:100], SinusoidalPositions(100, 8).table)


# Rotary


@pytest.mark.parametrize(("heads", "head_width", "base"), [(1, 2, 10000.0), (3, 8, 10000.0), (2, 6, 160.0)])
def test_rotary_turns_pairs_of_values_as_complex_numbers(heads: int, head_width: int, base: float) -> None:
    rotary = RotaryPositions(head_width, base, 50).double()
    x = noise(2, 20, heads * head_width)
    positions = torch.stack([torch.arange(20), torch.arange(30, 50)])
    half = head_width // 2
    expected = np.empty(x.shape)
    for b, i, n, pair in np.ndindex(2, 20, heads, half):
        first, second = n * head_width + pair, n * head_width + pair + half
        angle = float(positions[b, i]) / base ** (2 * pair / head_width)
        turned = complex(float(x[b, i, first]), float(x[b, i, second])) * cmath.exp(1j * angle)
        expected[b, i, first], expected[b, i, second] = turned.real, turned.imag
    assert_close(rotary(x, positions), expected, 1e-5)  # the tables are in float32


def test_rotary_by_hand() -> None:
    """Head width 4, base 100: rates 1 and 1/10. Position 0 turns nothing."""
    rotary = RotaryPositions(4, 100.0, 8)
    x = torch.tensor([1.0, 0.0, 0.0, 1.0])  # pairs (1, 0) and (0, 1)
    expected = [math.cos(3), -math.sin(0.3), math.sin(3), math.cos(0.3)]
    assert rotary(x, torch.tensor(3)).tolist() == pytest.approx(expected, abs=1e-6)
    assert rotary(x, torch.tensor(0)).tolist() == x.tolist()


def test_rotary_scores_depend_on_the_distance_alone() -> None:
    rotary = RotaryPositions(8, 10000.0, 200).double()
    query, key = noise(1, 8, seed=1), noise(1, 8, seed=2)

    def score(i: int, j: int) -> float:
        return float((rotary(query, torch.tensor([i])) * rotary(key, torch.tensor([j]))).sum())

    for distance in (-40, -1, 0, 1, 7, 100):
        scores = [score(i, i + distance) for i in (40, 41, 63, 90)]
        assert scores == pytest.approx([scores[0]] * 4, abs=1e-5)
    assert abs(score(10, 10) - score(10, 17)) > 0.01


def test_rotary_keeps_lengths() -> None:
    turned = RotaryPositions(8, 10000.0, 200).double()(noise(5, 24), torch.arange(100, 105))
    assert_close(turned.norm(dim=-1), noise(5, 24).norm(dim=-1), 1e-5)


def rotary_answers(base: float, positions: Tensor) -> Tensor:
    """Of the form without padding, two rows of four tokens."""
    attention = make_attention(AttentionConfig(2, rotary_base=base), 8)
    layout = packed(np.ones((2, 4), bool))
    answer: Tensor = attention(noise(8, 8), plan(replace(layout, positions=positions)))
    return answer


def test_rotary_attention_goes_by_positions_not_by_slots() -> None:
    straight = rotary_answers(100.0, torch.tensor([0, 1, 2, 3, 0, 1, 2, 3]))
    moved = rotary_answers(100.0, torch.tensor([20, 21, 22, 23, 0, 1, 2, 3]))
    spread = rotary_answers(100.0, torch.tensor([0, 2, 4, 6, 0, 1, 2, 3]))
    assert_close(moved, straight, 1e-5)
    assert not torch.allclose(spread[:4], straight[:4], atol=1e-3)
    assert_close(spread[4:], straight[4:])


def test_the_base_of_rotary_positions_matters() -> None:
    positions = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    assert not torch.allclose(rotary_answers(100.0, positions), rotary_answers(10000.0, positions), atol=1e-3)


def test_rotary_turns_queries_and_keys_and_leaves_values() -> None:
    """One token attends to itself with weight 1, wherever it stands: its value comes as it is."""
    attention = make_attention(AttentionConfig(2, rotary_base=100.0, value_width=3), 8)
    x = noise(1, 1, 8)
    answer = attention(x, plan(padded(np.ones((1, 1), bool))))
    assert_close(answer, attention.out(attention.value(x)))


def test_a_head_of_odd_width_has_no_pairs_to_turn() -> None:
    with pytest.raises(ValueError, match="a head of 3 values has an odd one"):
        AttentionConfig(4, rotary_base=100.0).build(12, 10)


def test_a_factor_slows_the_slowest_pair_by_itself_and_the_fastest_a_little() -> None:
    """NTK-aware scaling: a pair's rate is divided by `factor^((i + 2) / H)`, i from 0 to H - 2."""
    plain, scaled = RotaryPositions(8, 100.0, 400), RotaryPositions(8, 100.0, 400, factor=4.0)
    for pair, slower in enumerate([2**0.5, 2, 2**1.5, 4]):
        angle = math.acos(float(plain.cos[1, pair])) / slower
        assert float(scaled.cos[1, pair]) == pytest.approx(math.cos(angle), abs=1e-6)
        assert float(scaled.sin[1, pair]) == pytest.approx(math.sin(angle), abs=1e-6)


# Relative bias


@pytest.mark.parametrize(("buckets", "farthest"), [(32, 128), (16, 40), (8, 20), (64, 500)])
def test_buckets_are_t5_s(buckets: int, farthest: int) -> None:
    distances = torch.arange(-600, 601)
    theirs = T5Attention._relative_position_bucket(distances, True, buckets, farthest)  # type: ignore[no-untyped-call]
    ours = LogBuckets(buckets, farthest)(distances)
    assert torch.equal(ours, theirs)
    assert set(ours.tolist()) == set(range(buckets)) - {buckets // 2}  # no distance is both 0 and above 0


def test_near_distances_have_buckets_of_their_own() -> None:
    """8 buckets, 4 for each direction: 0, 1, then 2 to 19 by their logarithm, then all the rest."""
    bucket = LogBuckets(8, 20)
    assert bucket(torch.arange(4)).tolist() == [0, 5, 6, 6]
    assert bucket(-torch.arange(4)).tolist() == [0, 1, 2, 2]
    assert bucket(torch.tensor([6, 7, 20, 10**6, -(10**6)])).tolist() == [6, 7, 7, 7, 3]


@pytest.mark.parametrize(
    ("buckets", "farthest", "message"),
    [
        (2, 128, "buckets must be an integer of at least 4, got 2"),
        (True, 128, "buckets must be an integer of at least 4, got True"),
        (9, 128, "buckets must be an even number, half for each direction, got 9"),
        (32, 8, "farthest must be an integer of at least 9, got 8"),
        (32, 128.0, "farthest must be an integer of at least 9, got 128.0"),
    ],
)
def test_buckets_that_cannot_be_are_refused_by_name(buckets: int, farthest: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        LogBuckets(buckets, farthest)


@pytest.mark.parametrize("length", [1, 2, 30])
def test_a_relative_bias_is_looked_up_by_head_and_distance(length: int) -> None:
    bias = with_random_weights(RelativeBias(3, LogBuckets(8, 20), 30))
    table, bucket = bias.table.weight.numpy(), LogBuckets(8, 20)
    added = bias(all_pairs(padded(np.ones((2, length), bool))))
    assert added.shape == (1, 3, length, length)
    for n, i, j in np.ndindex(3, length, length):
        assert float(added[0, n, i, j]) == table[int(bucket(torch.tensor(j - i))), n]


def test_a_relative_bias_takes_columns_of_any_shape() -> None:
    """In blocks: `[1, 1, C, S, 1]` and `[B, 1, 1, 1, G]`."""
    bias = with_random_weights(RelativeBias(3, LogBuckets(8, 20), 30))
    straight = bias(all_pairs(padded(np.ones((1, 30), bool))))
    i = torch.tensor([[0, 1], [28, 29]])[None, None, :, :, None]
    j = torch.tensor([[3, 7, 0], [29, 5, 4]])[:, None, None, None, :]
    added = bias(Pairs(i=i, j=j))
    assert added.shape == (2, 3, 2, 2, 3)
    for b, n, c, s, g in np.ndindex(*added.shape):
        assert added[b, n, c, s, g] == straight[0, n, i[0, 0, c, s, 0], j[b, 0, 0, 0, g]]
