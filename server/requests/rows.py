"""A request's inputs as rows without padding, once their names and shapes are known to be right.

Letters: B batch, L length, F features, t tokens of one row.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from heed.bundle import Manifest
from heed.bundle.packing import (
    Arrays,
    Bools,
    Ints,
    TokenSequence,
    cut_into_patches,
    first_column,
    numbers,
    token_sequence,
)
from heed.server.errors import DeadlineExceeded, InvalidArgument
from heed.server.requests.tokenizer import Side, TextTokenizer, TokenizedText


@dataclass(frozen=True)
class Rows:
    """What a request asks about."""

    sequences: list[TokenSequence]
    length: int  # L: columns of the answers
    texts: list[TokenizedText] = field(default_factory=list)  # one for each row, if they came as texts


def shape_text(shape: Iterable[int]) -> str:
    return "[" + ", ".join("any" if size == -1 else str(size) for size in shape) + "]"


def _fits(array: Ints, size: int) -> bool:
    """Whether all are 0 to size - 1. Seen without a sign, a negative number is larger than any size."""
    return bool(array.astype(np.int64, copy=False).view(np.uint64).max() < size)


def _check_range(name: str, array: Ints, size: int, what: str) -> None:
    if _fits(array, size):
        return
    row, column = np.argwhere((array < 0) | (array >= size))[0]
    raise InvalidArgument(f"input {name}[{row}, {column}] is {array[row, column]}, outside {what} of 0 to {size - 1}")


def _check_binary(name: str, mask: Ints) -> None:
    if _fits(mask, 2):
        return
    row, column = np.argwhere((mask != 0) & (mask != 1))[0]
    raise InvalidArgument(f"input {name}[{row}, {column}] is {mask[row, column]}, expected 0 or 1")


def _real(inputs: Arrays) -> Bools | None:
    """`[B, L]`, True for real tokens; None if all are."""
    mask = inputs.get("attention_mask")
    if mask is None or (mask == 1).all():  # as most are
        return None
    _check_binary("attention_mask", mask)
    empty = ~mask.any(axis=1)
    if empty.any():
        raise InvalidArgument(f"input attention_mask: row {np.argmax(empty)} has no real token (all 0)")
    return mask.astype(np.bool_)


def _tokens(manifest: Manifest, inputs: Arrays) -> Arrays:
    """What goes into the first layer, `[B, L]` or `[B, L, F]`."""
    if "features" in inputs:
        return {"features": inputs["features"]}
    limits = manifest.limits
    ids = inputs["input_ids"]
    _check_range("input_ids", ids, limits.vocabulary, "the vocabulary")
    if not limits.token_types:
        return {"input_ids": ids}
    if "token_type_ids" not in inputs:
        return {"input_ids": ids, "token_type_ids": np.zeros_like(ids)}
    types = inputs["token_type_ids"]
    _check_range("token_type_ids", types, limits.token_types, "the token types")
    return {"input_ids": ids, "token_type_ids": types}


def row_of(
    manifest: Manifest,
    tokens: Arrays,
    real: Bools | None = None,
    adjacency: Bools | None = None,
    is_global: Bools | None = None,
) -> TokenSequence:
    """One row, with what the model needs beside its tokens: all edges, and the model's own global tokens, unless they
    are given. `real` is None if all are."""
    if manifest.takes("adjacency") and adjacency is None:
        length = _length(tokens)
        adjacency = np.ones((length, length), np.bool_)
    if manifest.takes("global_attention_mask") and is_global is None:
        first = 0 if real is None else first_column(manifest.position_rule, real)
        columns = numbers(_length(tokens)) - first
        is_global = (columns >= 0) & (columns < manifest.first_tokens_global)
    return token_sequence(manifest.position_rule, tokens, real, adjacency, is_global)


def _length(tokens: Arrays) -> int:
    return len(next(iter(tokens.values())))


def from_tensors(manifest: Manifest, inputs: Arrays, main: str) -> Rows:
    """`main` is input_ids or features."""
    real_BL = _real(inputs)
    tokens = _tokens(manifest, inputs)
    beside: Arrays = {} if real_BL is None else {"real": real_BL}
    if "adjacency" in inputs:
        beside["adjacency"] = inputs["adjacency"]
    if "global_attention_mask" in inputs:
        _check_binary("global_attention_mask", inputs["global_attention_mask"])
        beside["is_global"] = inputs["global_attention_mask"].astype(np.bool_)
    batch, length = inputs[main].shape[:2]
    sequences = [
        row_of(
            manifest,
            {name: array[row] for name, array in tokens.items()},
            **{name: array[row] for name, array in beside.items()},
        )
        for row in range(batch)
    ]
    return Rows(sequences, length)


def from_images(manifest: Manifest, inputs: Arrays) -> Rows:
    assert manifest.image
    features_BLF = cut_into_patches(inputs["pixel_values"], manifest.image.patch)
    return Rows([row_of(manifest, {"features": row_LF}) for row_LF in features_BLF], features_BLF.shape[1])


def _decoded(inputs: Arrays, name: str) -> list[str]:
    texts = []
    for index, raw in enumerate(inputs[name]):
        try:
            texts.append(raw if isinstance(raw, str) else raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise InvalidArgument(f"input {name}[{index}] is not UTF-8: {error.reason} at byte {error.start}") from None
    return texts


def always() -> bool:
    return True


def from_texts(
    manifest: Manifest,
    encoder: TextTokenizer,
    inputs: Arrays,
    truncate: Side | None,
    wanted: Callable[[], bool] = always,
) -> Rows:
    """`wanted` is asked before each text: to tokenize many takes long.

    Raises:
        DeadlineExceeded: nobody wants them any more.
        InvalidArgument: one is not right.
    """
    texts = _decoded(inputs, "text")
    pairs: list[str] | list[None] = [None] * len(texts)
    if "text_pair" in inputs:
        pairs = _decoded(inputs, "text_pair")
        if len(pairs) != len(texts):
            raise InvalidArgument(f"input text_pair has {len(pairs)} texts, text has {len(texts)}; they differ")
    encoded: list[TokenizedText] = []
    for index, (text, pair) in enumerate(zip(texts, pairs, strict=True)):
        if not wanted():
            raise DeadlineExceeded("nobody waits for the answer any more")
        where = f"input text[{index}]" + " with its pair" * (pair is not None)
        encoded.append(encoder.encode(text, pair, truncate, where))
    rows = []
    for tokens in encoded:
        arrays: Arrays = {"input_ids": tokens.input_ids}
        if manifest.limits.token_types:
            arrays["token_type_ids"] = tokens.token_type_ids
        rows.append(row_of(manifest, arrays))
    return Rows(rows, max(map(len, encoded)), encoded)
