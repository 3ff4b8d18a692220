"""Text to tokens, by the tokenizer that came with the checkpoint.

Letters: t tokens of one text, or of a pair.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Encoding, Tokenizer

from bundle import BundleError
from bundle.packing import Ints
from server.errors import InvalidArgument

SHORT = 4096  # characters: less is done before another thread could take over


@dataclass(frozen=True)
class Tokens:
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


class TextEncoder:
    """Tokenizes without padding and without silent truncation. Safe to call from several threads."""

    def __init__(self, path: Path, max_length: int) -> None:
        """`max_length` counts tokens, those of both texts of a pair and special ones included."""
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises the bare class
            raise BundleError(f"{path} is not a tokenizer: {error}") from None
        # Settings stored in the file would pad every text and cut long ones without a word.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.max_length = max_length

    @property
    def vocabulary(self) -> int:
        """One more than the largest token id it can give."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def encode(self, text: str, pair: str | None, truncate: bool, where: str) -> Tokens:
        """
        Args:
            pair: the second text, if there is one: the tokenizer's own template joins them.
            truncate: cut what is too long instead of refusing it; of a pair the longer text first.
            where: how to call the text in an error, "text[3]" say.

        Raises:
            InvalidArgument: the text is too long and was not to be cut, or has no token at all.
        """
        encoding = self._encode(text, pair)
        if len(encoding.ids) > self.max_length:
            if not truncate:
                raise InvalidArgument(
                    f"{where} has {len(encoding.ids)} tokens, at most {self.max_length} are allowed; "
                    "set the parameter truncate to true to have it cut"
                )
            encoding = self._cut(text, pair)
        if not encoding.ids:
            raise InvalidArgument(f"{where} has no tokens")
        return Tokens(self._tokenizer, encoding)

    def _encode(self, text: str, pair: str | None = None, special: bool = True) -> Encoding:
        if len(text) + len(pair or "") <= SHORT:
            return self._tokenizer.encode(text, pair, add_special_tokens=special)
        # Only as a batch: `encode` would keep all other threads waiting for as long as it takes.
        both = text if pair is None else (text, pair)
        return self._tokenizer.encode_batch([both], add_special_tokens=special)[0]

    def _cut(self, text: str, pair: str | None) -> Encoding:
        room = max(0, self.max_length - self._tokenizer.num_special_tokens_to_add(is_pair=pair is not None))
        first = self._encode(text, special=False)
        if pair is None:
            first.truncate(room)
            return self._tokenizer.post_process(first)
        second = self._encode(pair, special=False)
        keep_first, keep_second = longest_first(len(first.ids), len(second.ids), room)
        first.truncate(keep_first)
        second.truncate(keep_second)
        return self._tokenizer.post_process(first, second)
