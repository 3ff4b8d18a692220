"""Text to token ids, by the tokenizer that came with the checkpoint."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from bundle import BundleError
from bundle.packing import Ints
from server.errors import InvalidArgument


@dataclass(frozen=True)
class Tokens:
    """One text: two arrays `[t]`."""

    input_ids: Ints
    token_type_ids: Ints


class TextEncoder:
    """Tokenizes without padding and without silent truncation. Safe to call from several threads."""

    def __init__(self, path: Path, max_length: int) -> None:
        """`max_length` counts tokens, special ones included."""
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises the bare class
            raise BundleError(f"{path} is not a tokenizer: {error}") from None
        # Settings stored in the file would pad every text and cut long ones without a word.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.max_length = max_length
        self._special = self._tokenizer.num_special_tokens_to_add(is_pair=False)

    @property
    def vocabulary(self) -> int:
        """One more than the largest token id it can give."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def encode(self, text: str, truncate: bool, where: str) -> Tokens:
        """
        Args:
            truncate: cut a text that is too long instead of refusing it.
            where: how to call the text in an error, "text[3]" say.

        Raises:
            InvalidArgument: the text is too long and was not to be cut, or has no token at all.
        """
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        length = len(encoding.ids) + self._special
        if length > self.max_length:
            if not truncate:
                raise InvalidArgument(
                    f"{where} has {length} tokens, at most {self.max_length} are allowed; "
                    "set the parameter truncate to true to have it cut"
                )
            encoding.truncate(max(0, self.max_length - self._special))
        encoding = self._tokenizer.post_process(encoding)
        if not encoding.ids:
            raise InvalidArgument(f"{where} has no tokens")
        return Tokens(np.array(encoding.ids, np.int64), np.array(encoding.type_ids, np.int64))
