"""Small models of every kind, the same in every run, whose every part matters to the answer: what `bench.gate` breaks.

Random weights at their initial scale prove little (tanh GELU moves such a model by less than float32 does), so all
weights carry noise.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn

from heed.bundle.manifest import Precision
from heed.exporting import export_bundle
from heed.model import Checkpoint, Encoder
from heed.model.attention_plan import DENSE_COLUMNS
from heed.model.config import (
    Alibi,
    AttentionConfig,
    DisentangledConfig,
    DistancesConfig,
    EncoderConfig,
    FeedForwardConfig,
    LabelsConfig,
    LayerConfig,
    LearnedConfig,
    LogBuckets,
    LongformerConfig,
    NormConfig,
    PoolingConfig,
    PositionRule,
    SinusoidalConfig,
    TokensConfig,
    VectorsConfig,
)
from heed.model.patterns import Adjacency, Causal, Full, Window
from heed.model.score_functions import ScaledDotFor

NOISE = 0.15
TABLES = 0.05  # the scale of published tables of tokens and positions: small beside it, an epsilon would not be seen
VOCABULARY = 100
LENGTH = 40
NORM = NormConfig()


def _layers(attention: AttentionConfig, count: int = 3) -> tuple[LayerConfig, ...]:
    return (LayerConfig(attention, FeedForwardConfig(256), NORM),) * count


def sentences() -> EncoderConfig:
    """BERT with mean pooling: vectors of length 1 for texts."""
    return EncoderConfig(
        inputs=TokensConfig(VOCABULARY, token_types=2),
        width=32,
        layers=_layers(AttentionConfig(4)),
        max_length=2 * LENGTH,  # all of the contract's texts fit
        positions=LearnedConfig(2 * LENGTH),
        embedding_norm=NORM,
        head=PoolingConfig("mean", unit_length=True),
    )


def tagger() -> EncoderConfig:
    """MPNet as a tagger: positions counted from ids, a bias for each distance, labels for each token."""
    return EncoderConfig(
        inputs=TokensConfig(VOCABULARY),
        width=32,
        layers=_layers(AttentionConfig(4), 2),
        max_length=LENGTH,
        positions=LearnedConfig(LENGTH + 2),
        position_rule=PositionRule("counted", padding_id=1),
        relative_bias=LogBuckets(16, 32),
        embedding_norm=NORM,
        head=LabelsConfig(("noun", "verb", "name", "number", "other"), per="token"),
    )


def classifier() -> EncoderConfig:
    """ModernBERT as a classifier: windows, rotary positions, pre-norm, gates."""

    def layer(first: bool, window: bool) -> LayerConfig:
        attention = AttentionConfig(
            4, Window(6) if window else Full(), bias=False, rotary_base=1e4 if window else 1.6e5
        )
        feed_forward = FeedForwardConfig(64, gated=True, bias=False)
        return LayerConfig(attention, feed_forward, NORM, norm_first=True, attention_norm=not first)

    return EncoderConfig(
        inputs=TokensConfig(VOCABULARY),
        width=32,
        layers=(layer(True, False), layer(False, True), layer(False, True)),
        max_length=LENGTH,
        embedding_norm=NORM,
        final_norm=NORM,
        head=LabelsConfig(("good", "bad", "neither"), per="sequence", pooling="mean", hidden="gelu"),
    )


def longformer() -> EncoderConfig:
    """Longformer, long enough for two graphs: all pairs for short rows, blocks for long ones."""
    length = DENSE_COLUMNS + 60
    return EncoderConfig(
        inputs=TokensConfig(VOCABULARY),
        width=32,
        layers=(LayerConfig(LongformerConfig(heads=4, radius=8), FeedForwardConfig(48), NORM),) * 2,
        max_length=length,
        positions=LearnedConfig(length),
        embedding_norm=NORM,
        head=PoolingConfig("cls", unit_length=False),
        first_tokens_global=1,
    )


def nodes() -> EncoderConfig:
    """Vectors along the edges of a graph, and their place in the row as sines."""
    return EncoderConfig(
        inputs=VectorsConfig(12),
        width=32,
        layers=_layers(AttentionConfig(4, Adjacency()), 2),
        max_length=LENGTH,
        positions=SinusoidalConfig(),
        embedding_norm=NORM,
        head=PoolingConfig("max", unit_length=False),
    )


def reranker() -> EncoderConfig:
    """Gemma as a reranker, with ALiBi as well: grouped queries, norms in heads and around all parts, the last token."""
    norm = NormConfig("rms", 1e-6, unit_offset=True)
    attention = AttentionConfig(
        4, Causal(), score=ScaledDotFor(12), key_heads=2, head_norm=norm, bias=False, rotary_base=1e3, rotary_factor=4.0
    )
    layer = LayerConfig(attention, FeedForwardConfig(64, "silu", gated=True, bias=False), norm, sandwich=True)
    return EncoderConfig(
        inputs=TokensConfig(VOCABULARY, scale=6.0),
        width=32,
        layers=(layer, layer),
        max_length=LENGTH,
        relative_bias=Alibi(),
        final_norm=norm,
        head=LabelsConfig(("good", "bad", "neither"), per="sequence", pooling="lasttoken", bias=False),
    )


def entailment() -> EncoderConfig:
    """DeBERTa as a classifier of pairs: content and distance scored apart."""
    layer = LayerConfig(DisentangledConfig(4), FeedForwardConfig(64), NORM)
    return EncoderConfig(
        inputs=TokensConfig(VOCABULARY),
        width=32,
        layers=(layer, layer),
        max_length=LENGTH,
        relative_bias=DistancesConfig(8, 30, NORM),
        embedding_norm=NORM,
        head=LabelsConfig(("entailed", "neutral", "contradicted"), per="sequence", pooling="first_real", hidden="gelu"),
    )


CONFIGS: dict[str, Callable[[], EncoderConfig]] = {
    config.__name__: config for config in (sentences, tagger, classifier, longformer, nodes, reranker, entailment)
}
TAKE_TEXT = ("sentences",)


def noisy(config: EncoderConfig, seed: int = 9) -> Encoder:
    """The same weights for the same seed, whatever was drawn before."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        encoder = Encoder(config).eval().requires_grad_(False)
        for parameter in encoder.parameters():
            parameter.add_(NOISE * torch.randn(parameter.shape))
        for module in encoder.modules():
            if isinstance(module, nn.Embedding):
                module.weight.mul_(TABLES)
    return encoder


def save_tokenizer(path: Path) -> Path:
    """WordPiece as BERT has it, over a few words and the letters: lower case, without accents."""
    letters = [chr(letter) for letter in range(ord("a"), ord("z") + 1)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "saw", "fox", "dog", "quick", "##s", "##ed", "."]
    pieces = words + letters + [f"##{letter}" for letter in letters if letter != "s"]
    tokenizer = Tokenizer(models.WordPiece({word: place for place, word in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.save(str(path))
    return path


@dataclass(frozen=True)
class Right:
    """A model and the bundle that was made of it."""

    checkpoint: Checkpoint
    bundle: Path


def make_checkpoint(name: str, folder: Path) -> Checkpoint:
    """One of `CONFIGS`. Its tokenizer, where it takes texts, is written to `folder`."""
    tokenizer = save_tokenizer(folder / f"{name}.tokenizer.json") if name in TAKE_TEXT else None
    return Checkpoint(noisy(CONFIGS[name]()), tokenizer=tokenizer)


def make_right(name: str, folder: Path, precisions: Collection[Precision] = ()) -> Right:
    """Exports one of `CONFIGS` into a folder of its own below `folder`, in float32 and other precisions."""
    checkpoint = make_checkpoint(name, folder)
    export_bundle(checkpoint, folder / name, precisions=precisions)
    return Right(checkpoint, folder / name)
