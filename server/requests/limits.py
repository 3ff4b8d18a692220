"""How large a request may be, whichever API it comes through."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from heed.server.errors import InvalidArgument
from heed.server.settings import Settings


@dataclass(frozen=True)
class RequestLimits:
    max_batch: int = 2**31
    max_text_characters: int = 2**31

    @classmethod
    def of(cls, settings: Settings) -> Self:
        return cls(settings.max_batch, settings.max_text_characters)

    def check_rows(self, rows: int) -> None:
        """Raises InvalidArgument."""
        if rows > self.max_batch:
            raise InvalidArgument(
                f"the request has {rows} rows, at most {self.max_batch} are taken (--max-batch); send several requests",
                "too_large",
            )

    def check_texts(self, name: str, texts: Iterable[str | bytes]) -> None:
        """Looks only at the lengths: to tokenize a long text takes time. Raises InvalidArgument."""
        for index, text in enumerate(texts):
            if len(text) > self.max_text_characters and (length := _characters(text)) > self.max_text_characters:
                raise InvalidArgument(
                    f"{name}[{index}] has {length} characters, at most {self.max_text_characters} are taken "
                    "(--max-text-characters), even if it is to be truncated; send less of it"
                )


def _characters(text: str | bytes) -> int:
    return len(text if isinstance(text, str) else text.decode("utf-8", "replace"))
