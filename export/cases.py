"""The inputs of the contract's cases, chosen to reveal mistakes.

Letters: B batch, L length, F features.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from tokenizers import Encoding, Tokenizer

from heed.bundle.manifest import Limits
from heed.bundle.sequence_packing import Arrays, Ints
from heed.model import EncoderConfig
from heed.model.attention_plan import DENSE_COLUMNS, WHOLE_COLUMNS
from heed.model.config import ImagesConfig, TokensConfig

SEED = 20240229

# Case, accents, other scripts, emoji, spaces, numbers and rare words: what a stale tokenizer gets wrong.
TEXTS = [
    "a",
    "The quick brown fox jumps over the lazy dog.",
    "A QUICK Brown-Fox's e-mail: naïve café, Ångström & Œuvre!",
    "早上好，世界。 おはようございます",
    "Добрый день, как дела?",
    "שלום عالم नमस्ते",
    "👩‍🔬 measured 3.14159 µm (±0.5 %) at 10⁻⁹ — twice…",
    "  spaces\tand\nlines   are   not   words  ",
    "Antidisestablishmentarianism floccinaucinihilipilification xqzjvw",
    "[CLS] special [SEP] tokens [MASK] in the text <s> </s> <pad>",
    "How do I return an item that I bought online, and how long does it take until I get my money back?",
]
# Short, so that every model and every start of a server has room for it: case, an accent and how a pair is joined.
SHORT_PAIR = ("A", "é")

# Cases that also request the attention weights. Short, as there are L² of them in each head.
WITH_ATTENTIONS = ("one_token", "attentions")
# Cases that a server does not check before it is ready: they take long and reveal little more.
NOT_AT_START = ("large_batch", "two_longest")

# What each case tries, for the report, which shows the texts themselves.
TRIES = {
    "one_token": "the shortest row there is",
    "longest": "the longest row that the model takes",
    "last_id": "the last id of the vocabulary, repeated",
    "odd_length": "rows of an odd length",
    "pads_right": "rows of mixed lengths, padding on the right",
    "pads_left": "the same with padding on the left",
    "pads_in_holes": "padding in holes between tokens",
    "attentions": "holes again, with the attention weights where the model has any",
    "in_blocks": "just long enough for the form that is cheaper for long rows",
    "in_blocks_with_pads": "several blocks, with long runs of padding",
    "no_mask": "no attention_mask: all tokens are real",
    "no_types": "no token_type_ids: zeros",
    "one_real_token": "a single real token behind padding",
    "pads_are_padding_ids": "the padding id under the mask, as tokenizers write it",
    "padding_id_is_real": "the padding id as a real token",
    "ids_alone": "input_ids and nothing else",
    "no_global_tokens_named": "no global_attention_mask: the model's own global tokens",
    "large_batch": "many rows, each of another length",
    "two_longest": "two of the longest rows at once",
    "three_images": "several images",
    "black": "an image of zeros",
    "bright": "values ten times as large as usual",
    "texts": "all texts in one request",
    "text_pair": "a pair of texts",
    "text_pairs": "pairs of texts in one request",
}


def right_padded(lengths: list[int]) -> Ints:
    """The mask `[B, max(lengths)]` of rows that start at column 0."""
    return (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)


class _Rows:
    """Random rows that a model takes, with all other inputs that it needs."""

    def __init__(self, config: EncoderConfig) -> None:
        self._config = config
        self._random = np.random.default_rng(SEED)

    def ids(self, batch: int, length: int) -> Ints:
        return self._random.integers(0, self._config.vocabulary, (batch, length))

    def rows(self, mask: Ints, types: bool = True) -> Arrays:
        """Random tokens everywhere, under the mask too: they must not matter, or count as the family counts."""
        inputs = self._config.inputs
        if not isinstance(inputs, TokensConfig):
            features = self._random.standard_normal((*mask.shape, inputs.features)).astype(np.float32)
            return {"features": features} | self.other_inputs(mask)
        tokens = {"input_ids": self.ids(*mask.shape)}
        if types and inputs.token_types:
            tokens["token_type_ids"] = self._random.integers(0, inputs.token_types, mask.shape)
        return tokens | self.other_inputs(mask)

    def masked(self, mask: Ints) -> Arrays:
        return self.rows(mask) | {"attention_mask": mask}

    def other_inputs(self, mask: Ints) -> Arrays:
        """A random graph in which the last node of each row is alone; a global token here and there."""
        batch, length = mask.shape
        inputs: Arrays = {}
        if "adjacency" in self._config.needs:
            edges = self._random.random((batch, length, length)) < 4 / length
            edges[:, -1] = False
            edges[:, :, -1] = False
            inputs["adjacency"] = edges
        if "global_attention_mask" in self._config.needs:
            inputs["global_attention_mask"] = (self._random.random(mask.shape) < 0.1).astype(np.int64)
        return inputs

    def holes(self, batch: int, length: int, share: float) -> Ints:
        """A random mask in which every row has a real token."""
        mask = (self._random.random((batch, length)) >= share).astype(np.int64)
        mask[np.arange(batch), self._random.integers(0, length, batch)] = 1
        return mask


def tensor_cases(config: EncoderConfig) -> Iterator[tuple[str, Arrays]]:
    """Name and inputs of each case over tensors, those that reveal most first."""
    if isinstance(config.inputs, ImagesConfig):
        yield from _image_cases(config.inputs)
        return
    rows = _Rows(config)
    longest = config.max_length

    def cut(length: int) -> int:  # small models have small tables
        return min(length, longest)

    yield "one_token", rows.masked(np.ones((1, 1), np.int64))
    yield "longest", rows.masked(np.ones((1, longest), np.int64))
    if isinstance(config.inputs, TokensConfig):
        yield (
            "last_id",
            rows.other_inputs(np.ones((1, cut(40)), np.int64))
            | {"input_ids": np.full((1, cut(40)), config.vocabulary - 1)},
        )
    yield "odd_length", rows.masked(np.ones((3, cut(33)), np.int64))
    mixed = right_padded([cut(length) for length in (1, 2, 3, 7, 16, 31, 47, 24)])
    yield "pads_right", rows.masked(mixed)
    yield "pads_left", rows.masked(mixed[:, ::-1].copy())
    yield "pads_in_holes", rows.masked(rows.holes(6, cut(29), share=0.4))
    yield "attentions", rows.masked(rows.holes(2, cut(17), share=0.2))
    if config.block_sparse and longest > DENSE_COLUMNS:  # where blocks begin, and some blocks further
        yield "in_blocks", rows.masked(np.ones((1, cut(DENSE_COLUMNS + 1)), np.int64))
        long = rows.holes(3, cut(2 * DENSE_COLUMNS + 77), share=0.1)
        long[0, :90] = 0
        long[1, -201:] = 0
        yield "in_blocks_with_pads", rows.masked(long)
    yield "no_mask", rows.rows(np.ones((2, cut(9)), np.int64))
    yield "no_types", rows.rows(rows.holes(4, cut(21), share=0.2), types=False)
    yield "one_real_token", rows.masked(np.eye(cut(12), dtype=np.int64)[-3:])
    if isinstance(config.inputs, TokensConfig):
        yield from _id_cases(config, rows, mixed)
    if "global_attention_mask" in config.needs:
        yield "no_global_tokens_named", _without(rows.masked(mixed), "global_attention_mask")
    yield "large_batch", rows.masked(right_padded([cut(int(n)) for n in np.linspace(1, 64, 32)]))
    if longest <= WHOLE_COLUMNS:  # where one row fills the memory, two reveal nothing more
        yield "two_longest", rows.masked(np.ones((2, longest), np.int64))


def _id_cases(config: EncoderConfig, rows: _Rows, mask: Ints) -> Iterator[tuple[str, Arrays]]:
    """The id that a family pads with, under the mask and as a real token."""
    padding_id = config.position_rule.padding_id
    padded = rows.masked(mask)
    yield "pads_are_padding_ids", padded | {"input_ids": np.where(mask == 1, padded["input_ids"], padding_id)}
    some = np.ones((2, min(11, config.max_length)), np.int64)
    yield "padding_id_is_real", rows.other_inputs(some) | {"input_ids": np.full(some.shape, padding_id)}
    yield "ids_alone", _without(rows.rows(some, types=False), "global_attention_mask")


def _without(inputs: Arrays, name: str) -> Arrays:
    return {key: array for key, array in inputs.items() if key != name}


def _image_cases(size: ImagesConfig) -> Iterator[tuple[str, Arrays]]:
    random = np.random.default_rng(SEED)

    def images(batch: int) -> Arrays:
        shape = batch, size.channels, size.height, size.image_width
        return {"pixel_values": random.standard_normal(shape).astype(np.float32)}

    yield "attentions", images(1)
    yield "three_images", images(3)
    yield "black", {"pixel_values": np.zeros_like(images(1)["pixel_values"])}
    yield "bright", {"pixel_values": images(1)["pixel_values"] * 10}
    yield "large_batch", images(9)


def text_cases(tokenizer: Tokenizer, limits: Limits) -> Iterator[tuple[str, Arrays, Arrays]]:
    """Name, text inputs, and the same as tensors for the reference: pairs, each text alone, all in one batch.

    Those that a server takes: their tokens are not too many, and the model has rows for each and for its type.
    """
    tokenizer.no_padding()
    tokenizer.no_truncation()
    yield from _pairs("text_pair", [SHORT_PAIR], tokenizer, limits)
    texts = [text for text in TEXTS if _fits(tokenizer.encode(text), limits)]
    for name, rows in [(f"text_{number}", [text]) for number, text in enumerate(texts)] + [("texts", texts)]:
        if rows:
            yield name, {"text": np.array(rows)}, _tokenized(tokenizer, rows)
    yield from _pairs("text_pairs", list(pairwise(TEXTS)), tokenizer, limits)


def _fits(encoding: Encoding, limits: Limits) -> bool:
    # A model without a table of token types ignores them, as the published ones do.
    return (
        0 < len(encoding.ids) <= limits.text_length
        and max(encoding.ids) < limits.vocabulary
        and (not limits.token_types or max(encoding.type_ids) < limits.token_types)
    )


def _pairs(
    name: str, pairs: list[tuple[str, str]], tokenizer: Tokenizer, limits: Limits
) -> Iterator[tuple[str, Arrays, Arrays]]:
    """One case with the pairs that the model takes, if it takes any."""
    taken = [pair for pair in pairs if _fits(tokenizer.encode(*pair), limits)]
    if taken:
        first, second = zip(*taken, strict=True)
        yield name, {"text": np.array(first), "text_pair": np.array(second)}, _tokenized(tokenizer, taken)


def _tokenized(tokenizer: Tokenizer, texts: list[str] | list[tuple[str, str]]) -> Arrays:
    encodings = [tokenizer.encode(text) if isinstance(text, str) else tokenizer.encode(*text) for text in texts]
    mask = right_padded([len(encoding.ids) for encoding in encodings])
    ids, types = np.zeros_like(mask), np.zeros_like(mask)
    for row, encoding in enumerate(encodings):
        ids[row, : len(encoding.ids)] = encoding.ids
        types[row, : len(encoding.ids)] = encoding.type_ids
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
