"""Tokens as people read them: without the tokenizer's marks, and with byte sequences decoded to letters."""

from collections.abc import Iterator, Sequence
from unicodedata import east_asian_width

JOINT = "·"  # before a piece that goes on with the word of the piece before it
UNKNOWN = {"[UNK]", "<unk>"}  # shown with what they stand for
BLANKS = str.maketrans({" ": "␣", "\n": "⏎", "\r": "⏎", "\t": "⇥"})


def _byte_alphabet() -> dict[str, int]:
    """The character that byte-level BPE writes for each byte (GPT-2, `bytes_to_unicode`), inverted."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + number): byte for number, byte in enumerate(others)}


BYTES = _byte_alphabet()


def readable_tokens(tokens: Sequence[str], offsets: Sequence[Sequence[int]], texts: Sequence[str]) -> list[str]:
    """What to write at each token: `##ing`, `Ġword` and `▁word` become `·ing`, `word` and `word`.

    Args:
        tokens: as the tokenizer writes them.
        offsets: where each begins and ends in its text; (0, 0) for what comes from no text, such as `[CLS]`.
        texts: one, or the two of a pair.
    """
    shown: list[str] = []
    text_before, end_before = None, 0
    for token, (start, end), text in zip(tokens, offsets, _text_of_each(offsets, texts), strict=True):
        piece = text[start:end]
        part = _part(token, piece)
        joined = part != piece and token.startswith("##")
        if text is text_before and end > start and shown[-1] not in ("▁", "␣"):
            joined = joined or start < end_before or (start == end_before and _inside_a_word(text, start))
        shown.append(JOINT * joined + part)
        text_before, end_before = text if end > 0 else None, end
    return shown


def _text_of_each(offsets: Sequence[Sequence[int]], texts: Sequence[str]) -> Iterator[str]:
    """A pair's second text begins with the first token after the special ones between them."""
    number, seen = 0, False
    for _, end in offsets:
        if end > 0:
            seen = True
        elif seen and number + 1 < len(texts):
            number, seen = number + 1, False
        yield texts[number]


def _part(token: str, piece: str) -> str:
    """A token without its mark; `piece` is what stands at its offsets."""
    if token == piece:
        return token
    if piece and token in UNKNOWN:
        return f"{token} {piece}"
    if token.startswith("##") and len(token) > 2:
        return token[2:]
    if token.startswith("▁"):
        return token[1:] or token
    if all(character in BYTES for character in token):
        raw = bytes(BYTES[character] for character in token)
        try:
            text = raw.decode()
        except UnicodeDecodeError:  # some bytes of a character: the whole of it
            return piece.strip() or token
        if text.strip() == piece.strip():
            return text.strip() or text.translate(BLANKS)
    return token


def _inside_a_word(text: str, index: int) -> bool:
    """Whether there are letters on both sides; scripts without spaces, such as Chinese, have no such words."""
    neighbours = text[max(index - 1, 0) : index + 1]
    return len(neighbours) == 2 and all(letter.isalnum() and east_asian_width(letter) != "W" for letter in neighbours)
