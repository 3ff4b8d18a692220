"""Text to tokens, by the tokenizer that came with the checkpoint.

Letters: t tokens of one text, or of a pair.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Literal

import numpy as np
from tokenizers import Encoding, Tokenizer

from heed.bundle import BundleError
from heed.bundle.sequence_packing import Ints
from heed.server.errors import InvalidArgument

Side = Literal["left", "right"]  # the end at which a text is cut
SHORT = 4096  # characters: less is done before another thread could take over


@dataclass(frozen=True)
class Piece:
    """A token, and which bytes of the text's UTF-8 it stands for; what the template adds stands for none."""

    id: int
    text: str
    span: tuple[int, int] | None


@dataclass(frozen=True)
class TokenizedText:
    """One text, or a pair of texts as one row."""

    tokenizer: Tokenizer
    encoding: Encoding

    def __len__(self) -> int:
        return len(self.encoding.ids)

    @property
    def input_ids(self) -> Ints:
        """`[t]`."""
        return np.array(self.encoding.ids, np.int64)

    @property
    def token_type_ids(self) -> Ints:
        """`[t]`."""
        return np.array(self.encoding.type_ids, np.int64)

    @property
    def words(self) -> np.ndarray:
        """The tokens as the vocabulary writes them, unicode `[t]`."""
        return np.array([self.tokenizer.id_to_token(token) for token in self.encoding.ids])

    @property
    def offsets(self) -> Ints:
        """Where each token begins and ends in its own text, in Unicode code points, `[t, 2]`; 0, 0 for special ones."""
        return np.array(self.encoding.offsets, np.int64)


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of each text of a pair to keep, so that both fit into `room`: the longer one gives first.

    As in the `tokenizers` library: where both must give, the longer one keeps the odd token.
    """
    if first + second <= room:
        return first, second
    shorter = min(first, second, room // 2)
    longer = room - shorter
    return (shorter, longer) if first <= second else (longer, shorter)


class TextTokenizer:
    """Tokenizes without padding and without silent truncation. Safe to call from several threads."""

    def __init__(self, path: Path, max_length: int, content: bytes | None = None) -> None:
        """
        Args:
            max_length: counts tokens, those of both texts of a pair and special ones included.
            content: of the file, if it has been read.

        Raises:
            BundleError: it is no tokenizer.
        """
        try:
            self._tokenizer = Tokenizer.from_buffer(path.read_bytes() if content is None else content)
        except Exception as error:  # tokenizers raises the bare class
            raise BundleError(f"{path} is not a tokenizer: {error}") from None
        # Settings stored in the file would pad every text and cut long ones without a word.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.max_length = max_length

    @cached_property
    def vocabulary(self) -> int:
        """One more than the largest token id it can give."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @cached_property
    def own_vocabulary(self) -> int:
        """The same without the tokens that somebody added to those of its model."""
        return max(self._tokenizer.get_vocab(with_added_tokens=False).values(), default=-1) + 1

    def encode(self, text: str, pair: str | None, truncate: Side | None, where: str) -> TokenizedText:
        """
        Args:
            pair: the second text, if there is one: the tokenizer's own template joins them.
            truncate: the end at which to cut what is too long, instead of refusing it; of a pair the longer text first.
            where: how to call the text in an error, "text[3]" say.

        Raises:
            InvalidArgument: the text is too long and was not to be cut, or has no token at all.
        """
        encoding = self._encode(text, pair)
        if len(encoding.ids) > self.max_length:
            if truncate is None:
                raise InvalidArgument(
                    f"{where} has {len(encoding.ids)} tokens, at most {self.max_length} are allowed; "
                    "set the parameter truncate to true to have it cut"
                )
            encoding = self._cut(text, pair, truncate)
        if not encoding.ids:
            raise InvalidArgument(f"{where} has no tokens")
        return TokenizedText(self._tokenizer, encoding)

    def _encode(self, text: str, pair: str | None = None, special: bool = True) -> Encoding:
        if len(text) + len(pair or "") <= SHORT:
            return self._tokenizer.encode(text, pair, add_special_tokens=special)
        # Only as a batch: `encode` would keep all other threads waiting for as long as it takes.
        both = text if pair is None else (text, pair)
        return self._tokenizer.encode_batch([both], add_special_tokens=special)[0]

    def _cut(self, text: str, pair: str | None, side: Side) -> Encoding:
        room = max(0, self.max_length - self._tokenizer.num_special_tokens_to_add(is_pair=pair is not None))
        first = self._encode(text, special=False)
        if pair is None:
            first.truncate(room, direction=side)
            return self._tokenizer.post_process(first)
        second = self._encode(pair, special=False)
        keep_first, keep_second = longest_first(len(first.ids), len(second.ids), room)
        first.truncate(keep_first, direction=side)
        second.truncate(keep_second, direction=side)
        return self._tokenizer.post_process(first, second)

    def pieces(self, text: str, special: bool) -> Iterator[Piece]:
        """All tokens of a text of any length; with those of the template if `special`."""
        encoding = self._encode(text, special=special)
        byte = [0, *accumulate(len(letter.encode()) for letter in text)]
        found = zip(encoding.ids, encoding.tokens, encoding.special_tokens_mask, encoding.offsets, strict=True)
        for token, name, added, (start, stop) in found:
            yield Piece(token, name, None) if added else Piece(token, text[start:stop], (byte[start], byte[stop]))

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        """
        Raises:
            InvalidArgument: the vocabulary has no such token.
        """
        for index, token in enumerate(ids):
            if self._tokenizer.id_to_token(token) is None:
                raise InvalidArgument(
                    f"ids[{index}] is {token}, which is no token; they are 0 to {self.vocabulary - 1}"
                )
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special)
