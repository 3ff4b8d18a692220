"""Padding-free batches: a caller's padded rows become sequences, a batch of sequences becomes a graph's inputs.

Letters: B sequences, L slots of the longest one, T tokens of all sequences together, K of them kept, D width,
F features, N heads, G global tokens; t tokens of one sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heed.bundle.manifest import PositionRule

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.floating]
Arrays = dict[str, np.ndarray]
# One row's answers by output: [t, D] for what every token has, [D] for what the row has, attentions [layers, N, t, t].
# An output that is not finite for this row is not among them.
Answer = dict[str, np.ndarray]

# Inputs of a graph with a value or a vector for each token, and the layout of the tokens. No graph has all of them.
TOKEN_INPUTS = ("input_ids", "token_type_ids", "position_ids", "features")
LAYOUT_INPUTS = (
    *("slots", "rows", "columns", "real", "kept", "first"),
    *("adjacency", "globals", "globals_real", "places", "ends"),
)
GRAPH_INPUTS = TOKEN_INPUTS + LAYOUT_INPUTS
# Most rows share these two: numpy releases the interpreter's lock whenever it creates such an array.
NUMBERS, TRUES = np.arange(2**13), np.ones(2**13, np.bool_)
for shared in (NUMBERS, TRUES):
    shared.flags.writeable = False
# Slots for global tokens, and for kept ones: a matrix product with one row may have other bits than one with several.
LEAST_GLOBALS = LEAST_KEPT = 2


@dataclass(frozen=True)
class TokenSequence:
    """One row without its padding: the `t` tokens that are computed.

    Column 0 is always computed, even under a mask of 0: what reads the first column (a classifier) gets what the
    published model computes there. `real` says whether others may attend to it.
    """

    tokens: Arrays  # the graph's inputs by name, `[t]` or `[t, F]`; position_ids are from the full row
    real: Bools  # [t]
    columns: Ints  # [t], where attention sees each token
    start: int = 0  # the caller's column that attention sees as column 0
    whole: bool = False  # all of `real` is known to be true
    adjacency: Bools | None = None  # [t, t]
    is_global: Bools | None = None  # [t]

    def __len__(self) -> int:
        return len(self.real)

    def slots(self, aligned: bool) -> Ints:
        """The slot of each token inside attention, `[t]`: its column, or its number."""
        return self.columns if aligned else numbers(len(self))

    def span(self, aligned: bool) -> int:
        """The number of slots that it takes inside attention."""
        return int(self.columns[-1]) + 1 if aligned else len(self)


def numbers(count: int) -> Ints:
    """0, 1, ... `[count]`, read-only."""
    return NUMBERS[:count] if count <= len(NUMBERS) else np.arange(count)


def trues(count: int) -> Bools:
    """`[count]` times True, read-only."""
    return TRUES[:count] if count <= len(TRUES) else np.ones(count, np.bool_)


def first_column(rule: PositionRule, real: Bools) -> int:
    """The column of a full row `[L]` from which columns and positions are counted."""
    return int(real.argmax()) if rule.kind == "stripped" else 0


def position_ids(rule: PositionRule, tokens: Arrays, real: Bools) -> Ints:
    """The position of every token of one full row `[L]`, by the rule that the manifest names."""
    if rule.kind == "counted":
        counts = (tokens["input_ids"] != rule.padding_id).astype(np.int64)
        return np.asarray(counts.cumsum() * counts + rule.padding_id, np.int64)
    first = first_column(rule, real)
    return numbers(len(real)) - first if first else numbers(len(real))


def token_sequence(
    rule: PositionRule,
    tokens: Arrays,
    real: Bools | None = None,
    adjacency: Bools | None = None,
    is_global: Bools | None = None,
) -> TokenSequence:
    """One full row without its padding.

    Args:
        tokens: the row's inputs by name, `[L]` or `[L, F]`, but for position_ids.
        real: `[L]`, True for at least one token. None: all are known to be real.
        adjacency: `[L, L]`, for models over graphs.
        is_global: `[L]`, for models with global tokens.
    """
    known = real is None
    if real is None:
        real = trues(len(next(iter(tokens.values()))))
    row = tokens | {"position_ids": position_ids(rule, tokens, real)}
    if known or real.all():
        return TokenSequence(row, real, numbers(len(real)), 0, True, adjacency, is_global)
    start = first_column(rule, real)
    takes_part = real.copy()
    takes_part[start] = True
    kept = np.flatnonzero(takes_part)
    return TokenSequence(
        tokens={name: array[kept] for name, array in row.items()},
        real=real[kept],
        columns=kept - start,
        start=start,
        whole=bool(real[start]),
        adjacency=None if adjacency is None else adjacency[np.ix_(kept, kept)],
        is_global=None if is_global is None else is_global[kept],
    )


def cut_into_patches(pixels_BCHW: Floats, patch: int) -> Floats:
    """Images as features: patches row by row, each flattened as a convolution's kernel is (channel, row, column).

    Returns `[B, 1 + patches, channels * patch * patch]`; the first vector, in the class token's place, is zeros.
    """
    batch, channels, height, width = pixels_BCHW.shape
    tiles = pixels_BCHW.reshape(batch, channels, height // patch, patch, width // patch, patch)
    features = tiles.transpose(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * patch * patch)
    return np.concatenate([np.zeros_like(features[:, :1]), features], axis=1)


def pack(
    batch: Sequence[TokenSequence], aligned: bool = False, every_token: bool = True, first_real: bool = False
) -> Arrays:
    """The graph's inputs for a padding-free batch: `[T]` and `[T, F]` arrays, and the layout of the tokens (see
    `model/layout.py`).

    `slots` and `real` are `[B, L]`, `rows` and `columns` `[T]`, `kept` `[K]` and `first` `[B]`; and where sequences
    have them `adjacency` `[B, L, L]`, `globals` and `globals_real` `[B, G]`.

    Args:
        every_token: whether the answers of each token are requested, or only those of whole sequences.
        first_real: whether `first` is each row's first real token, and not that of its first column.
    """
    lengths = np.array([len(sequence) for sequence in batch])
    starts = lengths.cumsum() - lengths
    rows_T = np.repeat(np.arange(len(batch)), lengths)
    numbers_T = np.arange(len(rows_T))
    columns_T = np.concatenate([sequence.columns for sequence in batch]) if aligned else numbers_T - starts[rows_T]
    shape = len(batch), int(columns_T.max()) + 1
    # An empty slot repeats its own row's first token, never a neighbour's.
    slots_BL = np.broadcast_to(starts[:, None], shape).copy()
    slots_BL[rows_T, columns_T] = numbers_T
    real_BL = np.zeros(shape, np.bool_)
    real_BL[rows_T, columns_T] = np.concatenate([sequence.real for sequence in batch])
    tokens = {name: np.concatenate([sequence.tokens[name] for sequence in batch]) for name in batch[0].tokens}
    layout = {"slots": slots_BL, "rows": rows_T, "columns": columns_T, "real": real_BL}
    firsts = starts + np.array([sequence.real.argmax() for sequence in batch]) if first_real else starts
    if every_token:
        layout |= {"kept": numbers_T, "first": firsts}
    else:
        layout |= {"kept": np.resize(firsts, max(LEAST_KEPT, len(firsts))), "first": np.arange(len(firsts))}
    if batch[0].adjacency is None and batch[0].is_global is None:
        return tokens | layout
    slots_of = [sequence.slots(aligned) for sequence in batch]
    return tokens | layout | _adjacency(batch, slots_of, shape) | _globals(batch, slots_of)


def by_length(packed: Arrays) -> Arrays:
    """The layout of rows for operators that take their lengths, and for which every token is real.

    `ends` `[B + 1]`: the end of each row's tokens, after a 0; `places` `[B, L]`: the slots that hold tokens in order,
    then the others. Both int32.
    """
    real_BL, rows_T = packed["real"], packed["rows"]
    places = np.empty(real_BL.size, np.int32)
    places[: len(rows_T)] = rows_T * real_BL.shape[1] + packed["columns"]
    places[len(rows_T) :] = np.flatnonzero(~real_BL.reshape(-1))
    ends = np.concatenate([[0], np.bincount(rows_T).cumsum()])
    return {"places": places.reshape(real_BL.shape), "ends": ends.astype(np.int32)}


def _adjacency(batch: Sequence[TokenSequence], slots_of: list[Ints], shape: tuple[int, int]) -> Arrays:
    if batch[0].adjacency is None:
        return {}
    adjacency_BLL = np.zeros((*shape, shape[1]), np.bool_)
    for matrix_LL, slots_t, sequence in zip(adjacency_BLL, slots_of, batch, strict=True):
        matrix_LL[np.ix_(slots_t, slots_t)] = sequence.adjacency
    return {"adjacency": adjacency_BLL}


def _globals(batch: Sequence[TokenSequence], slots_of: list[Ints]) -> Arrays:
    """The slots of each row's global tokens, padded with slot 0 and False."""
    found = [
        slots_t[sequence.is_global & sequence.real]
        for slots_t, sequence in zip(slots_of, batch, strict=True)
        if sequence.is_global is not None
    ]
    if not found:
        return {}
    shape = len(batch), max(LEAST_GLOBALS, *map(len, found))
    globals_BG, holds_BG = np.zeros(shape, np.int64), np.zeros(shape, np.bool_)
    for slots_G, holds_G, slots in zip(globals_BG, holds_BG, found, strict=True):
        slots_G[: len(slots)] = slots
        holds_G[: len(slots)] = True
    return {"globals": globals_BG, "globals_real": holds_BG}


def split(batch: Sequence[TokenSequence], tokens_TD: np.ndarray) -> list[np.ndarray]:
    """The rows of a per-token output, one array `[t, D]` for each sequence."""
    ends = np.cumsum([len(sequence) for sequence in batch])
    return np.split(tokens_TD, ends[:-1])


def split_attentions(batch: Sequence[TokenSequence], attentions: Floats, aligned: bool) -> list[Floats]:
    """The attention weights `[B, layers, N, L, L]` of a batch, one array `[layers, N, t, t]` for each sequence."""
    slots_of = [sequence.slots(aligned) for sequence in batch]
    return [weights[:, :, slots[:, None], slots] for weights, slots in zip(attentions, slots_of, strict=True)]


def unpack(sequences: Sequence[TokenSequence], tokens: Sequence[np.ndarray], length: int) -> np.ndarray:
    """Per-token answers `[t, ...]` back in the caller's columns: `[B, length, ...]`, zeros (or "") at padding."""
    rows = np.zeros((len(sequences), length, *tokens[0].shape[1:]), np.result_type(*tokens))
    for row, sequence, answers in zip(rows, sequences, tokens, strict=True):
        row[(sequence.start + sequence.columns)[sequence.real]] = answers[sequence.real]
    return rows


def unpack_attentions(sequences: Sequence[TokenSequence], weights: Sequence[Floats], length: int) -> Floats:
    """Attention weights `[layers, N, t, t]` in the caller's columns: `[B, layers, N, length, length]`, zeros at
    padding."""
    rows = np.zeros((len(sequences), *weights[0].shape[:2], length, length), weights[0].dtype)
    for row, sequence, answers in zip(rows, sequences, weights, strict=True):
        columns = (sequence.start + sequence.columns)[sequence.real]
        row[:, :, columns[:, None], columns] = answers[:, :, sequence.real][:, :, :, sequence.real]
    return rows
