"""*I saw a saw*: a tiny tagger that needs both attention and positions.

A word's class depends on its neighbours: in "I saw a saw" the first *saw* is a verb and the second a noun. A layer that
looks at one word at a time gives both the same label, or at best guesses from the place in the sentence; attention
without positions sees a bag of words. Three models of the same size are trained on a toy grammar to show it, and the
one that can do it is exported, served, and asked over gRPC.
"""

import itertools
import subprocess
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from examples.serving import free_port, heed, served
from heed.exporting import export_bundle
from heed.model import Checkpoint, Encoder
from heed.model.config import (
    AttentionConfig,
    EncoderConfig,
    FeedForwardConfig,
    LabelsConfig,
    LayerConfig,
    SinusoidalConfig,
    TokensConfig,
)
from heed.model.patterns import Full, Pattern, Window

BUILD = Path("build")
LABELS = ("pronoun", "verb", "determiner", "noun", "adjective")
EITHER = ["saw", "watch", "duck", "cut", "hammer"]  # verb or noun
PRONOUNS = ["I", "you", "they"]
DETERMINERS = ["a", "the"]
NOUNS = ["man", "bird", *EITHER]
ADJECTIVES = ["old", "red"]
VERBS = ["like", *EITHER]
WORDS = ["?", *sorted({*PRONOUNS, *DETERMINERS, *NOUNS, *ADJECTIVES, *VERBS})]

Sentence = list[tuple[str, str]]  # words and their labels

console = Console(highlight=False)


def noun_phrases() -> list[Sentence]:
    """*you*, *a saw*, *the old man*."""
    phrases: list[Sentence] = [[(word, "pronoun")] for word in PRONOUNS]
    for determiner, noun in itertools.product(DETERMINERS, NOUNS):
        phrases.append([(determiner, "determiner"), (noun, "noun")])
        phrases += [[(determiner, "determiner"), (word, "adjective"), (noun, "noun")] for word in ADJECTIVES]
    return phrases


def sentences() -> list[Sentence]:
    """Every sentence of the grammar: who, does what, to whom."""
    phrases = noun_phrases()
    return [[*who, (verb, "verb"), *whom] for who, verb, whom in itertools.product(phrases, VERBS, phrases)]


def tagger(pattern: Pattern, positions: SinusoidalConfig | None) -> Encoder:
    """Two layers of width 32: about 17 thousand weights."""
    layer = LayerConfig(AttentionConfig(heads=2, pattern=pattern), FeedForwardConfig(64, "relu"))
    return Encoder(
        EncoderConfig(
            inputs=TokensConfig(vocabulary=len(WORDS)),
            width=32,
            layers=(layer, layer),
            max_length=16,
            positions=positions,
            head=LabelsConfig(LABELS, per="token"),
        )
    )


def batch(some: list[Sentence]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, mask and labels, each `[B, L]`."""
    length = max(map(len, some))
    ids, mask, labels = (torch.zeros(len(some), length, dtype=torch.long) for _ in range(3))
    for row, sentence in enumerate(some):
        for column, (word, label) in enumerate(sentence):
            ids[row, column], labels[row, column] = WORDS.index(word), LABELS.index(label)
            mask[row, column] = 1
    return ids, mask, labels


def train(model: Encoder, some: list[Sentence], steps: int = 250) -> None:
    """Adam on cross-entropy over the real tokens."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    random = np.random.default_rng(0)
    for _ in range(steps):
        ids, mask, labels = batch([some[index] for index in random.integers(0, len(some), 128)])
        logits = model(ids, mask)["logits"]
        loss = torch.nn.functional.cross_entropy(logits[mask == 1], labels[mask == 1])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def accuracy(model: Encoder, some: list[Sentence]) -> float:
    """The share of sentences with every label right."""
    ids, mask, labels = batch(some)
    with torch.no_grad():
        best = model(ids, mask)["logits"].argmax(-1)
    return float(((best == labels) | (mask == 0)).all(1).float().mean())


def word_tokenizer(path: Path) -> Path:
    """One token for each word."""
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="?"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(path))
    return path


def main(build: Path = BUILD) -> dict[str, float]:
    """Returns the accuracy of each model on sentences that it was not trained on."""
    torch.manual_seed(0)
    build.mkdir(parents=True, exist_ok=True)
    everything = sentences()
    order = np.random.default_rng(1).permutation(len(everything))
    held_out, training = ([everything[index] for index in part] for part in np.split(order, [1000]))
    models = {
        "attention and positions": tagger(Full(), SinusoidalConfig()),
        "without positions": tagger(Full(), None),
        "without attention": tagger(Window(0), SinusoidalConfig()),  # each token sees itself alone
    }
    accuracies = {}
    for name, model in models.items():
        train(model, training)
        accuracies[name] = accuracy(model, held_out)
        console.print(f"{name:26} {accuracies[name]:6.1%} of {len(held_out)} new sentences tagged right")

    tokenizer = word_tokenizer(build / "words.json")
    checkpoint = Checkpoint(models["attention and positions"].eval(), tokenizer=tokenizer)
    export_bundle(checkpoint, build / "saw", force=True)
    address = f"127.0.0.1:{free_port()}"
    with served(build / "saw", address) as client:
        for text in ("I saw a saw", "the duck cut the watch", "they watch the old saw"):
            answer = client.infer({"text": [text]}, ["tokens", "labels"])
            words = zip(answer["tokens"][0], answer["labels"][0], strict=True)
            console.print("  ".join(f"{word} [dim]{label}[/]" for word, label in words))
        picture = build / "saw.png"
        subprocess.run(
            heed("attend", address, "saw", "I saw a saw", "--layer", "all", "--out", str(picture)), check=True
        )
    return accuracies


if __name__ == "__main__":
    main()
