"""Leaves the padding out: a caller's padded rows become sequences, a group of sequences becomes a graph's inputs.

Letters: B sequences, L the longest one's length, T tokens of all sequences together, D width.
"""

from collections.abc import Sequence as Many
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bundle.manifest import PositionRule

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.floating]
Arrays = dict[str, np.ndarray]

GRAPH_INPUTS = ("input_ids", "token_type_ids", "position_ids", "slots", "rows", "columns", "real")


@dataclass(frozen=True)
class Sequence:
    """One row without its padding: the `t` tokens that take part in the work.

    Column 0 always takes part, even under a mask of 0: what reads the first column (`cls` pooling) gets what the
    published model computes there. `real` tells it from a token that others may attend to.
    """

    input_ids: Ints  # [t]
    token_type_ids: Ints  # [t]
    position_ids: Ints  # [t], from the full row
    real: Bools  # [t]
    columns: Ints  # [t], where each token stood in the full row

    def __len__(self) -> int:
        return len(self.input_ids)


def position_ids(rule: PositionRule, input_ids: Ints) -> Ints:
    """The position of every token of one full row `[L]`, by the rule that the manifest names."""
    if rule.kind == "counted":
        counts = (input_ids != rule.padding_id).astype(np.int64)
        return np.asarray(counts.cumsum() * counts + rule.padding_id, np.int64)
    return np.arange(len(input_ids), dtype=np.int64)


def sequence(rule: PositionRule, input_ids: Ints, real: Bools, token_type_ids: Ints) -> Sequence:
    """One full row, three arrays `[L]`, without its padding."""
    takes_part = real.copy()
    takes_part[0] = True
    columns = np.flatnonzero(takes_part)
    return Sequence(
        input_ids=input_ids[columns],
        token_type_ids=token_type_ids[columns],
        position_ids=position_ids(rule, input_ids)[columns],
        real=real[columns],
        columns=columns,
    )


def pack(group: Many[Sequence]) -> Arrays:
    """The graph's inputs for a group: `[T]` arrays, and `slots` and `real` as `[B, L]` (see `model/layout.py`)."""
    lengths = np.array([len(member) for member in group])
    starts = lengths.cumsum() - lengths
    column_L = np.arange(lengths.max())
    inside_BL = column_L < lengths[:, None]
    real_BL = inside_BL.copy()
    real_BL[inside_BL] = np.concatenate([member.real for member in group])
    rows_T, columns_T = np.nonzero(inside_BL)
    return {
        "input_ids": np.concatenate([member.input_ids for member in group]),
        "token_type_ids": np.concatenate([member.token_type_ids for member in group]),
        "position_ids": np.concatenate([member.position_ids for member in group]),
        # An empty slot repeats its own row's first token, never a neighbour's.
        "slots": starts[:, None] + np.where(inside_BL, column_L, 0),
        "rows": rows_T,
        "columns": columns_T,
        "real": real_BL,
    }


def split(group: Many[Sequence], tokens_TD: Floats) -> list[Floats]:
    """The rows of a per-token output, one array `[t, D]` for each member of the group."""
    ends = np.cumsum([len(member) for member in group])
    return np.split(tokens_TD, ends[:-1])


def unpack(members: Many[Sequence], tokens: Many[Floats], length: int) -> Floats:
    """Per-token answers `[t, D]` back in the caller's columns: `[B, length, D]`, zeros at padding."""
    rows = np.zeros((len(members), length, tokens[0].shape[-1]), tokens[0].dtype)
    for row, member, answers in zip(rows, members, tokens, strict=True):
        row[member.columns[member.real]] = answers[member.real]
    return rows
