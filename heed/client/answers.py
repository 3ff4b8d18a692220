"""Answers as labels, tags and ranks.

Letters: B texts, L tokens, C labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from heed.client.wire import Answer

# The outputs that each method requests.
EMBED = ["sentence_embedding"]
CLASSIFY = ["scores", "labels"]
TAG = ["scores", "labels", "offsets"]
RANK = ["scores", "logits"]

NOTHING = "O"  # the label of a token outside every span


@dataclass(frozen=True)
class Label:
    """The most likely label of a text."""

    name: str
    probability: float  # its score: of a model for regression it is none


@dataclass(frozen=True)
class Tag:
    """A labelled span of a text: `text[start:end]`, in code points."""

    text: str
    label: str
    start: int
    end: int
    probability: float  # the mean of its tokens'


@dataclass(frozen=True)
class Rank:
    """A text and its score, as the model's folder promises it: between 0 and 1, or any number.

    Ranks are listed with the best first.
    """

    index: int  # among the texts that were given
    text: str
    score: float


def read_labels(answer: Answer) -> list[Label]:
    """One for each text, from `labels` `[B]` and `scores` `[B, C]`."""
    best_B = answer["scores"].max(-1)
    return [Label(str(name), float(share)) for name, share in zip(answer["labels"], best_B, strict=True)]


def read_ranks(answer: Answer, texts: Sequence[str]) -> list[Rank]:
    """The best first, from `scores` and `logits`, `[B, 1]`; equal ones keep the order of the texts.

    By logits: scores of 1 are equal, whichever text fits better.
    """
    scores_B, best_first = answer["scores"][:, 0], np.argsort(-answer["logits"][:, 0], kind="stable")
    return [Rank(index, texts[index], float(scores_B[index])) for index in best_first.tolist()]


def read_tags(answer: Answer, texts: Sequence[str]) -> list[list[Tag]]:
    """The tags of each text, from `labels` `[B, L]`, `scores` `[B, L, C]` and `offsets` `[B, L, 2]`.

    Neighbouring tokens with the same label are one tag. In IOB2, labels such as `B-PLACE` and `I-PLACE`, `B-` begins a
    new tag, and the tag's label has no prefix.
    """
    best_BL = answer["scores"].max(-1)
    rows = zip(texts, answer["labels"], best_BL, answer["offsets"].tolist(), strict=True)
    return [_tags(*row) for row in rows]


def _tags(text: str, labels_L: np.ndarray, best_L: np.ndarray, offsets_L2: list[list[int]]) -> list[Tag]:
    """The tags of one text. Tokens that are not part of the text, such as `[CLS]`, end at 0."""
    pieces: list[tuple[int, str, int, int, float]] = []  # the number of its tag, label, start, end, probability
    number, before = 0, NOTHING
    for label, share, (start, end) in zip(labels_L.tolist(), best_L.tolist(), offsets_L2, strict=True):
        name = label[2:] if label[:2] in ("B-", "I-") else label
        number += name != before or label.startswith("B-")
        before = name if end else NOTHING
        if before not in (NOTHING, ""):
            pieces.append((number, name, start, end, share))
    tags = [list(tag) for _, tag in groupby(pieces, key=lambda piece: piece[0])]
    return [_tag(text, tag[0][1], tag[0][2], tag[-1][3], [piece[4] for piece in tag]) for tag in tags]


def _tag(text: str, label: str, start: int, end: int, shares: list[float]) -> Tag:
    return Tag(text[start:end], label, start, end, sum(shares) / len(shares))
