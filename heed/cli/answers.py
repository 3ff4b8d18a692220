"""A model's answers about texts as tables, for the terminal.

Letters: B texts, L tokens, D width, C labels.
"""

from dataclasses import dataclass

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from heed.cli.token_text import readable_tokens
from heed.client import Answer, ModelInfo
from heed.client.answers import NOTHING, read_labels, read_ranks

SHOWN_VALUES = 2  # of each vector
WIDEST = 36  # characters of a text
BAR = 20  # characters for a probability of 1
COLOURS = ["cyan", "magenta", "green", "yellow", "blue", "red"]


@dataclass(frozen=True)
class TextQuery:
    """A model, and the texts or pairs that it is asked about."""

    info: ModelInfo
    texts: list[str]
    pairs: list[str]  # none, or one for each text

    @property
    def rows(self) -> list[list[str]]:
        """Each text, with its pair."""
        return [[text, *self.pairs[row : row + 1]] for row, text in enumerate(self.texts)]


def render_answer(query: TextQuery, answer: Answer) -> RenderableType:
    """An answer as the model's task suggests: vectors, labelled tokens, labels or ranks."""
    if "sentence_embedding" in answer.outputs:
        return vector_table(query, answer["sentence_embedding"])
    if "tokens" in answer.outputs:
        return Group(*(_labelled_tokens(query, answer, row) for row in range(len(query.texts))))
    if "labels" in answer.outputs:
        return label_table(query, answer)
    if query.info.task == "reranking":
        return rank_table(query, answer)
    return str(answer["last_hidden_state"])


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, overflow="ellipsis", no_wrap=True, max_width=WIDEST)
    return table


def _text_columns(query: TextQuery) -> list[str]:
    return ["text", "pair"] if query.pairs else ["text"]


def vector_table(query: TextQuery, vectors_BD: np.ndarray) -> Table:
    """Each text with the beginning of its vector and, for several texts, its cosine to each of them."""
    unit = vectors_BD / np.linalg.norm(vectors_BD, axis=1, keepdims=True)
    cosines = unit @ unit.T
    several = len(query.texts) > 1
    table = _table("", *_text_columns(query), "vector")
    for number in range(len(query.texts) if several else 0):
        table.add_column(f"cos {number + 1}", justify="right", no_wrap=True)
    for number, (texts, vector) in enumerate(zip(query.rows, vectors_BD, strict=True)):
        start = " ".join(f"{value:+.2f}" for value in vector[:SHOWN_VALUES]) + " …"
        row = [f"{cosine:.2f}" for cosine in cosines[number]] if several else []
        table.add_row(str(number + 1), *map(Text, texts), start, *row)
    return table


def label_table(query: TextQuery, answer: Answer) -> Table:
    """Each text with its most likely label."""
    table = _table("", *_text_columns(query), "label", "score", "")
    for number, (texts, label) in enumerate(zip(query.rows, read_labels(answer), strict=True)):
        name = Text(label.name, _colour(query, label.name))
        share = label.probability
        shown = (f"{share:.1%}", "█" * round(BAR * share)) if 0 <= share <= 1 else (f"{share:+.3f}", "")
        table.add_row(str(number + 1), *map(Text, texts), name, *shown)
    return table


def rank_table(query: TextQuery, answer: Answer) -> Table:
    """The best pair first; a text that all pairs share is left out."""
    same_text = len(set(query.texts)) == 1 and query.pairs
    table = _table("rank", "score", *(["pair"] if same_text else _text_columns(query)))
    for position, rank in enumerate(read_ranks(answer, query.texts)):
        texts = query.rows[rank.index][1:] if same_text else query.rows[rank.index]
        table.add_row(str(position + 1), f"{rank.score:+.3f}", *map(Text, texts))
    return table


def _colour(query: TextQuery, label: str) -> str:
    names = [name for name in query.info.labels if name != NOTHING]
    return f"bold {COLOURS[names.index(label) % len(COLOURS)]}" if label in names else ""


def _labelled_tokens(query: TextQuery, answer: Answer, row: int) -> Text:
    """The tokens of one text, each with its label behind it where it has one; special tokens are left out."""
    labels, offsets = answer["labels"][row], answer["offsets"][row].tolist()
    count = int((labels != "").sum())
    tokens = readable_tokens(answer["tokens"][row][:count].tolist(), offsets[:count], query.rows[row])
    line = Text(f"{row + 1}  ")
    for token, label, (_, end) in zip(tokens, labels, offsets[:count], strict=False):
        if end:
            colour = _colour(query, label)
            line.append(token, colour)
            line.append(f" {label}" if colour else "", "dim")
            line.append("  ")
    return line
