"""Packing against plain loops over padded rows.

Letters: B sequences, L columns, T tokens of all sequences together, D width.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bundle.manifest import PositionRule
from bundle.packing import GRAPH_INPUTS, Bools, Ints, Sequence, pack, position_ids, sequence, split, unpack
from model.positions import column_positions, counted_positions
from tests.server.support import COLUMN

COUNTED = PositionRule(kind="counted", padding_id=1)
RULES = st.sampled_from([COLUMN, COUNTED, PositionRule(kind="counted", padding_id=0)])


@dataclass(frozen=True)
class Padded:
    """One row as a caller sends it."""

    ids: Ints
    real: Bools
    types: Ints

    def packed(self, rule: PositionRule) -> Sequence:
        return sequence(rule, self.ids, self.real, self.types)


@st.composite
def rows(draw: st.DrawFn) -> Padded:
    length = draw(st.integers(1, 9))
    real = draw(arrays.arrays(np.bool_, length))
    real[draw(st.integers(0, length - 1))] = True
    ids = draw(arrays.arrays(np.int64, length, elements=st.integers(0, 4)))
    return Padded(ids, real, draw(arrays.arrays(np.int64, length, elements=st.integers(0, 1))))


GROUPS = st.lists(rows(), min_size=1, max_size=6)


def positions_by_hand(rule: PositionRule, ids: Ints) -> list[int]:
    positions = []
    count = 0
    for column, token in enumerate(ids.tolist()):
        if rule.kind == "column":
            positions.append(column)
        elif token == rule.padding_id:
            positions.append(rule.padding_id)
        else:
            count += 1
            positions.append(rule.padding_id + count)
    return positions


def test_padding_is_left_out() -> None:
    row = sequence(COLUMN, np.array([7, 8, 9, 5]), np.array([True, False, True, False]), np.array([0, 1, 1, 0]))
    assert row.input_ids.tolist() == [7, 9]
    assert row.token_type_ids.tolist() == [0, 1]
    assert row.position_ids.tolist() == [0, 2]
    assert row.columns.tolist() == [0, 2]
    assert row.real.tolist() == [True, True]
    assert len(row) == 2


def test_a_masked_column_0_takes_part_but_is_not_real() -> None:
    row = sequence(COLUMN, np.array([7, 8, 9]), np.array([False, False, True]), np.array([1, 0, 0]))
    assert row.input_ids.tolist() == [7, 9]
    assert row.token_type_ids.tolist() == [1, 0]
    assert row.position_ids.tolist() == [0, 2]
    assert row.real.tolist() == [False, True]


def test_the_mask_that_came_in_is_left_as_it_was() -> None:
    real = np.array([False, True])
    sequence(COLUMN, np.array([7, 8]), real, np.array([0, 0]))
    assert real.tolist() == [False, True]


def test_a_group_is_packed_as_written_by_hand() -> None:
    first = sequence(COLUMN, np.array([7, 8, 9]), np.array([True, True, True]), np.array([0, 0, 1]))
    second = sequence(COLUMN, np.array([5, 6, 4]), np.array([False, False, True]), np.array([1, 1, 0]))
    packed = {name: array.tolist() for name, array in pack([first, second]).items()}
    assert packed == {
        "input_ids": [7, 8, 9, 5, 4],
        "token_type_ids": [0, 0, 1, 1, 0],
        "position_ids": [0, 1, 2, 0, 2],
        "slots": [[0, 1, 2], [3, 4, 3]],
        "rows": [0, 0, 0, 1, 1],
        "columns": [0, 1, 2, 0, 1],
        "real": [[True, True, True], [False, True, False]],
    }


@given(rule=RULES, group=GROUPS)
def test_packing_is_what_a_plain_loop_does(rule: PositionRule, group: list[Padded]) -> None:
    packed = pack([row.packed(rule) for row in group])
    assert tuple(packed) == GRAPH_INPUTS

    tokens: list[tuple[int, int, int, int, int]] = []  # id, type, position, row, place in its row
    starts: list[int] = []
    reals: list[list[bool]] = []
    for number, row in enumerate(group):
        positions = positions_by_hand(rule, row.ids)
        starts.append(len(tokens))
        reals.append([])
        for column in range(len(row.ids)):
            if column == 0 or row.real[column]:
                place = len(reals[-1])
                tokens.append((int(row.ids[column]), int(row.types[column]), positions[column], number, place))
                reals[-1].append(bool(row.real[column]))

    names = ["input_ids", "token_type_ids", "position_ids", "rows", "columns"]
    for name, expected in zip(names, zip(*tokens, strict=True), strict=True):
        assert packed[name].tolist() == list(expected), name
        assert packed[name].dtype == np.int64
    longest = max(map(len, reals))
    assert packed["real"].tolist() == [real + [False] * (longest - len(real)) for real in reals]
    for start, real, slots in zip(starts, reals, packed["slots"].tolist(), strict=True):
        assert slots == [start + place if place < len(real) else start for place in range(longest)]


@given(rule=RULES, group=GROUPS)
def test_every_answer_comes_back_to_its_column(rule: PositionRule, group: list[Padded]) -> None:
    """What came out for a token is told by its row and its column: row * 100 + column, in each of D = 2 values."""
    members = [row.packed(rule) for row in group]
    marks = [number * 100.0 + column for number, member in enumerate(members) for column in member.columns]
    parts = split(members, np.stack([marks, marks], axis=1))
    assert [part.shape for part in parts] == [(len(member), 2) for member in members]

    length = max(len(row.ids) for row in group)
    answer = unpack(members, parts, length)
    for number, row in enumerate(group):
        for column in range(length):
            real = column < len(row.ids) and row.real[column]
            assert answer[number, column].tolist() == [number * 100.0 + column if real else 0.0] * 2


def test_answers_keep_their_precision() -> None:
    member = sequence(COLUMN, np.array([7]), np.array([True]), np.array([0]))
    assert unpack([member], [np.ones((1, 3), np.float32)], 2).dtype == np.float32


@pytest.mark.parametrize("padding_id", [0, 1, 4])
@given(ids=arrays.arrays(np.int64, st.tuples(st.just(1), st.integers(1, 12)), elements=st.integers(0, 4)))
def test_positions_are_the_reference_models(padding_id: int, ids: Ints) -> None:
    columns = position_ids(PositionRule(kind="column", padding_id=padding_id), ids[0])
    counted = position_ids(PositionRule(kind="counted", padding_id=padding_id), ids[0])
    assert columns.tolist() == column_positions(torch.from_numpy(ids))[0].tolist()
    assert counted.tolist() == counted_positions(torch.from_numpy(ids), padding_id)[0].tolist()


def test_counted_positions_as_written_by_hand() -> None:
    ids = np.array([1, 0, 5, 1, 6, 1])
    assert position_ids(COUNTED, ids).tolist() == [1, 2, 3, 1, 4, 1]
