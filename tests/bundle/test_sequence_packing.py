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

from heed.bundle.manifest import PositionRule
from heed.bundle.sequence_packing import (
    GRAPH_INPUTS,
    Arrays,
    Bools,
    Ints,
    TokenSequence,
    cut_into_patches,
    pack,
    position_ids,
    split,
    split_attentions,
    token_sequence,
    unpack,
    unpack_attentions,
)
from heed.model.positions import column_positions, counted_positions
from tests.server.support import COLUMN

COUNTED = PositionRule(kind="counted", padding_id=1)
STRIPPED = PositionRule(kind="stripped")
RULES = st.sampled_from([COLUMN, COUNTED, PositionRule(kind="counted", padding_id=0), STRIPPED])


@dataclass(frozen=True)
class Padded:
    """One row as a caller sends it."""

    ids: Ints
    real: Bools
    types: Ints

    def packed(self, rule: PositionRule) -> TokenSequence:
        return token_sequence(rule, {"input_ids": self.ids, "token_type_ids": self.types}, self.real)


@st.composite
def rows(draw: st.DrawFn) -> Padded:
    length = draw(st.integers(1, 9))
    real = draw(arrays.arrays(np.bool_, length))
    real[draw(st.integers(0, length - 1))] = True
    ids = draw(arrays.arrays(np.int64, length, elements=st.integers(0, 4)))
    return Padded(ids, real, draw(arrays.arrays(np.int64, length, elements=st.integers(0, 1))))


GROUPS = st.lists(rows(), min_size=1, max_size=6)


def first_by_hand(rule: PositionRule, row: Padded) -> int:
    """The first column that takes part."""
    return row.real.tolist().index(True) if rule.kind == "stripped" else 0


def positions_by_hand(rule: PositionRule, row: Padded) -> list[int]:
    positions = []
    count = 0
    for column, token in enumerate(row.ids.tolist()):
        if rule.kind in ("column", "stripped"):
            positions.append(column - first_by_hand(rule, row))
        elif token == rule.padding_id:
            positions.append(rule.padding_id)
        else:
            count += 1
            positions.append(rule.padding_id + count)
    return positions


def packed_row(rule: PositionRule, ids: list[int], real: list[bool], types: list[int] | None = None) -> TokenSequence:
    return Padded(np.array(ids), np.array(real), np.array(types or [0] * len(ids))).packed(rule)


def plain(packed: Arrays) -> dict[str, object]:
    return {name: array.tolist() for name, array in packed.items()}


def values(row: TokenSequence) -> dict[str, object]:
    return plain(row.tokens)


def test_padding_is_left_out() -> None:
    row = packed_row(COLUMN, [7, 8, 9, 5], [True, False, True, False], [0, 1, 1, 0])
    assert values(row) == {"input_ids": [7, 9], "token_type_ids": [0, 1], "position_ids": [0, 2]}
    assert row.columns.tolist() == [0, 2]
    assert row.real.tolist() == [True, True]
    assert len(row) == 2


def test_a_masked_column_0_takes_part_but_is_not_real() -> None:
    row = packed_row(COLUMN, [7, 8, 9], [False, False, True], [1, 0, 0])
    assert values(row) == {"input_ids": [7, 9], "token_type_ids": [1, 0], "position_ids": [0, 2]}
    assert row.real.tolist() == [False, True]


def test_the_mask_that_came_in_is_left_as_it_was() -> None:
    real = np.array([False, True])
    token_sequence(COLUMN, {"input_ids": np.array([7, 8])}, real)
    assert real.tolist() == [False, True]


def test_a_group_is_packed_as_written_by_hand() -> None:
    first = packed_row(COLUMN, [7, 8, 9], [True, True, True], [0, 0, 1])
    second = packed_row(COLUMN, [5, 6, 4], [False, False, True], [1, 1, 0])
    tokens = {
        "input_ids": [7, 8, 9, 5, 4],
        "token_type_ids": [0, 0, 1, 1, 0],
        "position_ids": [0, 1, 2, 0, 2],
        "rows": [0, 0, 0, 1, 1],
        "kept": [0, 1, 2, 3, 4],
        "first": [0, 3],
    }
    assert plain(pack([first, second])) == tokens | {
        "slots": [[0, 1, 2], [3, 4, 3]],
        "columns": [0, 1, 2, 0, 1],
        "real": [[True, True, True], [False, True, False]],
    }
    assert plain(pack([first, second], aligned=True)) == tokens | {
        "slots": [[0, 1, 2], [3, 3, 4]],
        "columns": [0, 1, 2, 0, 2],
        "real": [[True, True, True], [False, False, True]],
    }


def test_where_only_rows_are_asked_for_their_first_tokens_are_kept() -> None:
    first = packed_row(COLUMN, [7, 8, 9], [True, True, True])
    second = packed_row(COLUMN, [5, 6, 4], [False, False, True])
    both, every = pack([first, second], every_token=False), pack([first, second])
    assert (both.pop("kept").tolist(), both.pop("first").tolist()) == ([0, 3], [0, 1])
    assert plain(both) == plain({name: array for name, array in every.items() if name in both})
    real = pack([first, second], every_token=False, first_real=True)  # the second's masked column 0 is passed over
    assert (real["kept"].tolist(), real["first"].tolist()) == ([0, 4], [0, 1])
    assert pack([first, second], first_real=True)["first"].tolist() == [0, 4]
    lone = pack([second], every_token=False)  # twice: a product of one row may have other bits
    assert (lone["kept"].tolist(), lone["first"].tolist()) == ([0, 0], [0])


def test_a_stripped_row_is_counted_from_its_first_real_token() -> None:
    row = packed_row(STRIPPED, [7, 8, 9, 5, 6], [False, True, False, True, False])
    assert values(row) == {"input_ids": [8, 5], "token_type_ids": [0, 0], "position_ids": [0, 2]}
    assert (row.columns.tolist(), row.start, row.real.tolist()) == ([0, 2], 1, [True, True])
    assert (row.span(aligned=False), row.span(aligned=True)) == (2, 3)
    answer = unpack([row], [np.array([[1.0], [2.0]])], 5)
    assert answer[0, :, 0].tolist() == [0.0, 1.0, 0.0, 2.0, 0.0]


def test_what_lies_under_the_mask_before_a_stripped_row_does_not_matter() -> None:
    packed = plain(pack([packed_row(STRIPPED, [7, 8, 9], [False, True, True])], aligned=True))
    assert packed == plain(pack([packed_row(STRIPPED, [8, 9], [True, True])], aligned=True))


def test_vectors_are_packed_as_ids_are() -> None:
    first = token_sequence(
        COLUMN, {"features": np.array([[1, 2], [3, 4], [5, 6]], np.float32)}, np.array([True, False, True])
    )
    second = token_sequence(COLUMN, {"features": np.array([[7, 8]], np.float32)}, np.array([True]))
    packed = pack([first, second])
    assert packed["features"].tolist() == [[1, 2], [5, 6], [7, 8]]
    assert packed["features"].dtype == np.float32
    assert packed["position_ids"].tolist() == [0, 2, 0]


ADJACENCY = np.array([[1, 0, 1], [1, 1, 1], [0, 1, 1]], bool)


def test_edges_go_with_their_tokens() -> None:
    """A token that is masked takes its edges with it, and an empty slot has none."""
    ids = {"input_ids": np.array([7, 8, 9])}
    holed = token_sequence(COLUMN, ids, np.array([True, False, True]), adjacency=ADJACENCY)
    whole = token_sequence(COLUMN, ids, np.array([True, True, True]), adjacency=ADJACENCY)
    off = [0, 0, 0]
    assert pack([holed, whole])["adjacency"].astype(int).tolist() == [[[1, 1, 0], [0, 1, 0], off], ADJACENCY.tolist()]
    assert pack([holed], aligned=True)["adjacency"].astype(int).tolist() == [[[1, 0, 1], off, [0, 0, 1]]]


def test_global_tokens_are_named_by_their_slots() -> None:
    ids = {"input_ids": np.array([7, 8, 9, 5])}
    marks = np.array([True, False, True, True])
    many = token_sequence(COLUMN, ids, np.array([True, True, True, True]), is_global=marks)
    holed = token_sequence(COLUMN, ids, np.array([True, False, False, True]), is_global=marks)
    none = token_sequence(COLUMN, ids, np.array([True, True, True, True]), is_global=np.zeros(4, bool))
    packed = pack([many, holed, none])
    assert packed["globals"].tolist() == [[0, 2, 3], [0, 1, 0], [0, 0, 0]]
    assert packed["globals_real"].tolist() == [[True, True, True], [True, True, False], [False, False, False]]
    assert pack([holed], aligned=True)["globals"].tolist() == [[0, 3]]
    assert pack([none])["globals"].shape == (1, 2)


def test_a_masked_token_is_not_global() -> None:
    member = token_sequence(
        COLUMN, {"input_ids": np.array([7, 8])}, np.array([False, True]), is_global=np.array([True, True])
    )
    packed = pack([member])
    assert packed["globals"].tolist() == [[1, 0]]
    assert packed["globals_real"].tolist() == [[True, False]]


def test_images_are_cut_as_a_convolution_reads_them() -> None:
    """Against torch: a convolution with a flattened kernel, over each patch."""
    pixels = np.random.default_rng(0).normal(size=(2, 3, 4, 6)).astype(np.float32)
    kernel = np.random.default_rng(1).normal(size=(5, 3, 2, 2)).astype(np.float32)
    features = cut_into_patches(pixels, 2)
    assert features.shape == (2, 1 + 6, 12)
    assert not features[:, 0].any()
    expected = torch.nn.functional.conv2d(torch.from_numpy(pixels), torch.from_numpy(kernel), stride=2)
    np.testing.assert_allclose(
        features[:, 1:] @ kernel.reshape(5, -1).T, expected.flatten(2).transpose(1, 2).numpy(), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("rule", [COLUMN, STRIPPED])
def test_attention_weights_come_back_to_their_columns(rule: PositionRule, aligned: bool) -> None:
    """The weight between two columns is told by their numbers: query * 10 + key."""
    members = [
        packed_row(rule, [7, 8, 9, 5], [False, True, False, True]),
        packed_row(rule, [7, 8, 9], [True, True, True]),
    ]
    length = max(member.span(aligned) for member in members)
    attentions = np.full((2, 1, 1, length, length), np.nan)
    for row, member in zip(attentions, members, strict=True):
        slots, columns = member.slots(aligned), member.start + member.columns
        row[0, 0, slots[:, None], slots] = columns[:, None] * 10 + columns
    weights = split_attentions(members, attentions, aligned)
    answer = unpack_attentions(members, weights, 4)
    assert answer.shape == (2, 1, 1, 4, 4)
    assert answer[0, 0, 0].tolist() == [[0, 0, 0, 0], [0, 11, 0, 13], [0, 0, 0, 0], [0, 31, 0, 33]]
    assert answer[1, 0, 0].tolist() == [[0, 1, 2, 0], [10, 11, 12, 0], [20, 21, 22, 0], [0, 0, 0, 0]]


def test_texts_come_back_with_nothing_at_padding() -> None:
    member = packed_row(COLUMN, [7, 8, 9], [False, True, True])
    other = packed_row(COLUMN, [7, 8], [True, True])
    answer = unpack([member, other], [np.array(["?", "a", "bc"]), np.array(["long", "b"])], 3)
    assert answer.tolist() == [["", "a", "bc"], ["long", "b", ""]]


@given(rule=RULES, aligned=st.booleans(), group=GROUPS)
def test_packing_is_what_a_plain_loop_does(rule: PositionRule, aligned: bool, group: list[Padded]) -> None:
    packed = pack([row.packed(rule) for row in group], aligned)
    assert set(packed) < set(GRAPH_INPUTS)

    tokens: list[tuple[int, int, int, int, int]] = []  # id, type, position, row, place in its row
    starts: list[int] = []
    reals: list[list[bool]] = []
    slots: list[list[int]] = []
    for number, row in enumerate(group):
        positions = positions_by_hand(rule, row)
        first = first_by_hand(rule, row)
        starts.append(len(tokens))
        reals.append([])
        slots.append([])
        for column in range(first, len(row.ids)):
            if column == first or row.real[column]:
                while aligned and len(reals[-1]) < column - first:
                    reals[-1].append(False)
                    slots[-1].append(starts[-1])
                place = len(reals[-1])
                slots[-1].append(len(tokens))
                tokens.append((int(row.ids[column]), int(row.types[column]), positions[column], number, place))
                reals[-1].append(bool(row.real[column]))

    names = ["input_ids", "token_type_ids", "position_ids", "rows", "columns"]
    for name, expected in zip(names, zip(*tokens, strict=True), strict=True):
        assert packed[name].tolist() == list(expected), name
        assert packed[name].dtype == np.int64
    longest = max(map(len, reals))
    assert packed["real"].tolist() == [real + [False] * (longest - len(real)) for real in reals]
    filled = [row + [start] * (longest - len(row)) for row, start in zip(slots, starts, strict=True)]
    assert packed["slots"].tolist() == filled


@given(rule=RULES, group=GROUPS)
def test_every_answer_comes_back_to_its_column(rule: PositionRule, group: list[Padded]) -> None:
    """What came out for a token is told by its row and its column: row * 100 + column, in each of D = 2 values."""
    members = [row.packed(rule) for row in group]
    marks = [
        number * 100.0 + member.start + column for number, member in enumerate(members) for column in member.columns
    ]
    parts = split(members, np.stack([marks, marks], axis=1))
    assert [part.shape for part in parts] == [(len(member), 2) for member in members]

    length = max(len(row.ids) for row in group)
    answer = unpack(members, parts, length)
    for number, row in enumerate(group):
        for column in range(length):
            real = column < len(row.ids) and row.real[column]
            assert answer[number, column].tolist() == [number * 100.0 + column if real else 0.0] * 2


def test_answers_keep_their_precision() -> None:
    member = packed_row(COLUMN, [7], [True])
    assert unpack([member], [np.ones((1, 3), np.float32)], 2).dtype == np.float32


@pytest.mark.parametrize("padding_id", [0, 1, 4])
@given(ids=arrays.arrays(np.int64, st.tuples(st.just(1), st.integers(1, 12)), elements=st.integers(0, 4)))
def test_positions_are_the_reference_models(padding_id: int, ids: Ints) -> None:
    row, real = {"input_ids": ids[0]}, np.ones(ids.shape[1], bool)
    columns = position_ids(PositionRule(kind="column", padding_id=padding_id), row, real)
    counted = position_ids(PositionRule(kind="counted", padding_id=padding_id), row, real)
    assert columns.tolist() == column_positions(torch.from_numpy(ids))[0].tolist()
    assert counted.tolist() == counted_positions(torch.from_numpy(ids), padding_id)[0].tolist()


def test_counted_positions_as_written_by_hand() -> None:
    ids = np.array([1, 0, 5, 1, 6, 1])
    assert position_ids(COUNTED, {"input_ids": ids}, np.ones(6, bool)).tolist() == [1, 2, 3, 1, 4, 1]
