"""Position ids by hand, in the reference and in the server's own code for them."""

import numpy as np
import pytest
import torch

from bundle.manifest import PositionRule
from bundle.packing import position_ids as served_position_ids
from bundle.packing import sequence
from model import EncoderConfig
from model.config import PositionRule as PositionRuleName
from model.positions import position_ids

# Rule, padding id, ids, positions.
BY_HAND: list[tuple[PositionRuleName, int, list[int], list[int]]] = [
    ("column", 0, [7], [0]),
    ("column", 0, [7, 8, 9, 0, 0], [0, 1, 2, 3, 4]),
    ("column", 0, [0, 0, 7, 8, 9], [0, 1, 2, 3, 4]),
    ("counted", 1, [7], [2]),
    ("counted", 1, [1], [1]),
    ("counted", 1, [0, 5, 6, 2, 1, 1], [2, 3, 4, 5, 1, 1]),
    ("counted", 1, [1, 1, 0, 5, 2], [1, 1, 2, 3, 4]),
    ("counted", 1, [5, 1, 7, 1, 9], [2, 1, 3, 1, 4]),
    ("counted", 0, [5, 0, 5], [1, 0, 2]),
    ("counted", 3, [3, 0, 1], [3, 4, 5]),
]


@pytest.mark.parametrize(("rule", "padding_id", "ids", "expected"), BY_HAND)
def test_positions_by_hand(rule: PositionRuleName, padding_id: int, ids: list[int], expected: list[int]) -> None:
    config = EncoderConfig(10, 30, 1, 4, 1, 1, 4, position_rule=rule, padding_id=padding_id)
    assert position_ids(config, torch.tensor([ids, ids])).tolist() == [expected, expected]
    served = served_position_ids(
        PositionRule(kind=rule, padding_id=padding_id), {"input_ids": np.array(ids)}, np.ones(len(ids), bool)
    )
    assert served.tolist() == expected
    assert served.dtype == np.int64


def test_rows_are_counted_one_by_one() -> None:
    config = EncoderConfig(10, 30, 1, 4, 1, 1, 4, position_rule="counted", padding_id=1)
    assert position_ids(config, torch.tensor([[5, 6, 7], [1, 5, 1]])).tolist() == [[2, 3, 4], [1, 2, 1]]


@pytest.mark.parametrize(("rule", "expected"), [("column", [0, 2, 4]), ("counted", [2, 3, 5])])
def test_positions_are_those_of_the_full_row(rule: PositionRuleName, expected: list[int]) -> None:
    """A masked token leaves a gap; under the counted rule unless its id is the padding id."""
    ids, real = np.array([5, 1, 6, 7, 8]), np.array([True, False, True, False, True])
    member = sequence(PositionRule(kind=rule, padding_id=1), {"input_ids": ids}, real)
    assert member.tokens["position_ids"].tolist() == expected
    assert member.columns.tolist() == [0, 2, 4]


@pytest.mark.parametrize(("rule", "padding_id", "longest"), [("column", 1, 40), ("counted", 1, 38), ("counted", 0, 39)])
def test_the_longest_row_uses_the_last_position(rule: PositionRuleName, padding_id: int, longest: int) -> None:
    config = EncoderConfig(10, 40, 1, 4, 1, 1, 4, position_rule=rule, padding_id=padding_id)
    assert config.max_length == longest
    assert position_ids(config, torch.full((1, longest), 5)).max() == 39
