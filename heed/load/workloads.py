"""Workloads: lengths from a fixed seed, and requests of texts or tensors of those lengths.

Letters: L length, F features.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from heed.client import ModelInfo

SEED = 20240229
# Common words, one token each for most tokenizers.
WORDS = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
    "country",
    "problem",
    "hand",
    "part",
    "place",
    "case",
    "week",
    "company",
    "system",
    "program",
    "question",
    "work",
    "government",
    "number",
    "night",
    "point",
    "home",
    "water",
    "room",
    "mother",
    "area",
    "money",
    "story",
    "fact",
    "month",
    "lot",
    "right",
    "study",
    "book",
    "eye",
    "job",
    "word",
    "business",
    "issue",
    "side",
    "kind",
    "head",
    "house",
    "service",
    "friend",
]

Lengths = Callable[[np.random.Generator, int], np.ndarray]
Request = dict[str, np.ndarray]


@dataclass(frozen=True)
class Workload:
    """A distribution of lengths."""

    name: str
    help: str
    lengths: Lengths


def _sentences(random: np.random.Generator, count: int) -> np.ndarray:
    return np.rint(random.lognormal(np.log(24), 0.6, count)).clip(1, 256)


def _queries(random: np.random.Generator, count: int) -> np.ndarray:
    return random.integers(3, 13, count)


def _documents(random: np.random.Generator, count: int) -> np.ndarray:
    return random.integers(200, 513, count)


def _mixed(random: np.random.Generator, count: int) -> np.ndarray:
    return np.where(random.random(count) < 0.03, 512, _sentences(random, count))


WORKLOADS = {
    each.name: each
    for each in (
        Workload("sentences", "lognormal, median 24 tokens, at most 256", _sentences),
        Workload("queries", "3 to 12 tokens", _queries),
        Workload("documents", "200 to 512 tokens", _documents),
        Workload("mixed", "sentences, and 3 % of 512 tokens", _mixed),
    )
}


def requests(workload: Workload, info: ModelInfo, count: int) -> list[Request]:
    """Requests of one row for a model's inputs: texts if it has that input, else ids or vectors, no longer than the
    model's maximum.

    Raises:
        ValueError: the model has none of these inputs.
    """
    random = np.random.default_rng(SEED)
    lengths = workload.lengths(random, count).clip(max=info.max_length or np.inf).astype(int)
    if "text" in info.inputs:
        return [{"text": _text(random, length)} for length in lengths]
    if "input_ids" in info.inputs:  # small ids: every vocabulary has them
        return [{"input_ids": random.integers(0, 64, (1, length))} for length in lengths]
    if "features" in info.inputs:
        width = info.inputs["features"][1][-1]
        return [{"features": random.standard_normal((1, length, width), np.float32)} for length in lengths]
    if "pixel_values" in info.inputs:
        shape = [1, *info.inputs["pixel_values"][1][1:]]
        return [{"pixel_values": random.standard_normal(shape, np.float32)} for _ in lengths]
    raise ValueError(f"{info.name} takes {', '.join(info.inputs)}; no workload is made of them")


def _text(random: np.random.Generator, length: int) -> np.ndarray:
    """About `length` tokens, including the two special ones that tokenizers add."""
    words = random.choice(WORDS, max(1, length - 2))
    return np.array([" ".join(words)], object)


def id_requests(workload: Workload, vocabulary: int, token_types: int, count: int) -> list[Request]:
    """Requests that every server accepts: ids of the whole vocabulary, a mask of ones, and token types if the model has
    them."""
    random = np.random.default_rng(SEED)
    made = []
    for length in workload.lengths(random, count).astype(int):
        request = {
            "input_ids": random.integers(0, vocabulary, (1, length)),
            "attention_mask": np.ones((1, length), np.int64),
        }
        made.append(request | ({"token_type_ids": np.zeros((1, length), np.int64)} if token_types else {}))
    return made
