"""Inputs chosen to hurt: what the contract asks of every bundle.

Letters: B batch, L length.
"""

from collections.abc import Iterator

import numpy as np
from tokenizers import Tokenizer

from bundle.packing import Arrays, Ints
from model import EncoderConfig

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
    "How do I return an item that I bought online, and how long does it take until I get my money back?",
    "[CLS] special [SEP] tokens [MASK] in the text <s> </s> <pad>",
]


class _Rows:
    """Random rows that a model takes."""

    def __init__(self, config: EncoderConfig) -> None:
        self._config = config
        self._random = np.random.default_rng(SEED)

    def ids(self, batch: int, length: int) -> Ints:
        return self._random.integers(0, self._config.vocabulary, (batch, length))

    def types(self, batch: int, length: int) -> Ints:
        return self._random.integers(0, self._config.token_types, (batch, length))

    def tensors(self, mask: Ints) -> Arrays:
        """Random ids everywhere, under the mask too: they must not matter, or count as the family counts."""
        return {"input_ids": self.ids(*mask.shape), "attention_mask": mask, "token_type_ids": self.types(*mask.shape)}

    def holes(self, batch: int, length: int, share: float) -> Ints:
        """A random mask in which every row has a real token."""
        mask = (self._random.random((batch, length)) >= share).astype(np.int64)
        mask[np.arange(batch), self._random.integers(0, length, batch)] = 1
        return mask


def right_padded(lengths: list[int]) -> Ints:
    """The mask `[B, max(lengths)]` of rows that start at column 0."""
    return (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)


def tensor_cases(config: EncoderConfig) -> Iterator[tuple[str, Arrays]]:
    """Name and inputs of each case over ids, the ones that tell most first."""
    rows = _Rows(config)
    longest = config.max_length

    def cut(length: int) -> int:  # small models have small tables
        return min(length, longest)

    last_id = config.vocabulary - 1
    yield "one_token", rows.tensors(np.ones((1, 1), np.int64))
    yield "longest", rows.tensors(np.ones((1, longest), np.int64))
    yield "odd_length", rows.tensors(np.ones((3, cut(33)), np.int64))
    mixed = right_padded([cut(length) for length in (1, 2, 3, 7, 16, 31, 47, 24)])
    yield "pads_right", rows.tensors(mixed)
    yield "pads_left", rows.tensors(mixed[:, ::-1].copy())
    yield "pads_in_holes", rows.tensors(rows.holes(6, cut(29), share=0.4))
    yield "pads_are_padding_ids", _with_padding_ids(rows.tensors(mixed), config.padding_id)
    yield "ids_alone", {"input_ids": rows.ids(2, cut(19))}
    yield "no_mask", {"input_ids": rows.ids(2, cut(9)), "token_type_ids": rows.types(2, cut(9))}
    yield "no_types", {"input_ids": rows.ids(4, cut(21)), "attention_mask": rows.holes(4, cut(21), share=0.2)}
    yield "one_id_repeated", {"input_ids": np.full((1, cut(40)), last_id)}
    yield "padding_id_is_real", {"input_ids": np.full((2, cut(11)), config.padding_id)}
    yield "one_real_token", rows.tensors(np.eye(cut(12), dtype=np.int64)[-3:])
    yield "large_batch", rows.tensors(right_padded([cut(int(n)) for n in np.linspace(1, 64, 32)]))
    yield "two_longest", rows.tensors(np.ones((2, longest), np.int64))


def _with_padding_ids(inputs: Arrays, padding_id: int) -> Arrays:
    return inputs | {"input_ids": np.where(inputs["attention_mask"] == 1, inputs["input_ids"], padding_id)}


def text_cases(tokenizer: Tokenizer, max_tokens: int) -> Iterator[tuple[str, Arrays, Arrays]]:
    """Name, text inputs, and the same as tensors for the reference: each text alone, and all in one batch."""
    tokenizer.no_padding()
    tokenizer.no_truncation()
    texts = [text for text in TEXTS if 0 < len(tokenizer.encode(text).ids) <= max_tokens]
    for name, group in [(f"text_{number}", [text]) for number, text in enumerate(texts)] + [("texts", texts)]:
        if not group:
            continue
        encodings = [tokenizer.encode(text) for text in group]
        mask = right_padded([len(encoding.ids) for encoding in encodings])
        ids, types = np.zeros_like(mask), np.zeros_like(mask)
        for row, encoding in enumerate(encodings):
            ids[row, : len(encoding.ids)] = encoding.ids
            types[row, : len(encoding.ids)] = encoding.type_ids
        tensors = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        yield name, {"text": np.array(group)}, tensors
