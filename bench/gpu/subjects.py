"""The models, made anew from a seed wherever they are needed, and what they are asked.

Letters: L length, D width, F feed-forward width.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bench.bare import Request
from bench.gpu.rows import Skipped
from heed.bundle import Manifest
from heed.bundle.sequence_packing import TokenSequence
from heed.load.workloads import SEED, WORKLOADS, id_requests
from heed.model import Checkpoint, Encoder, load_checkpoint
from heed.model.config import (
    AttentionConfig,
    EncoderConfig,
    FeedForwardConfig,
    LayerConfig,
    LearnedConfig,
    NormConfig,
    PoolingConfig,
    TokensConfig,
)
from heed.server.requests.preprocess import Preprocessor


def bert(width: int, layers: int, heads: int, vocabulary: int = 30522, length: int = 512) -> EncoderConfig:
    """BERT of any size, with mean pooling."""
    norm = NormConfig(epsilon=1e-12)
    return EncoderConfig(
        inputs=TokensConfig(vocabulary, token_types=2),
        width=width,
        layers=(LayerConfig(AttentionConfig(heads), FeedForwardConfig(4 * width), norm),) * layers,
        max_length=length,
        positions=LearnedConfig(length),
        embedding_norm=norm,
        head=PoolingConfig("mean", unit_length=True),
    )


CONFIGS = {
    "bert-base": bert(768, 12, 12),
    "bert-large": bert(1024, 24, 16),
    "tiny": bert(64, 2, 2, vocabulary=100, length=64),
}


def checkpoint(name: str) -> Checkpoint:
    """One of `CONFIGS` with seeded random weights, or the checkpoint folder of that name.

    Raises:
        CheckpointError: there is no such folder, or it cannot be loaded.
        Skipped: the model does not turn token ids into embeddings.
    """
    if name in CONFIGS:
        return Checkpoint(randomised(CONFIGS[name]))
    found = load_checkpoint(Path(name))
    if not (found.encoder.config.vocabulary and found.encoder.head_output == "sentence_embedding"):
        raise Skipped(f"{name} does not turn token ids into embeddings")
    return found


def randomised(config: EncoderConfig) -> Encoder:
    """Weights so large that no part of the model can be left out unnoticed. Queries and keys are larger than the rest:
    a row's tokens would all be looked at alike."""
    encoder = Encoder(config).eval().requires_grad_(False)
    source = torch.Generator().manual_seed(SEED)
    for name, weight in encoder.named_parameters():
        noise = torch.randn(weight.shape, generator=source)
        if weight.dim() == 2:
            gain = 1.5 if name.endswith(("query.weight", "key.weight")) else 0.85
            weight.copy_(noise * gain / math.sqrt(weight.shape[1]))
        else:
            weight.copy_(noise * 0.15 + float(name.endswith("norm.weight")))
    return encoder


def requests(config: EncoderConfig, workload: str, count: int) -> list[Request]:
    """`[L]` ids of the whole vocabulary, all of them real, no longer than the model takes."""
    made = id_requests(WORKLOADS[workload], config.vocabulary, config.token_types, count)
    return [{name: row[0, : config.max_length] for name, row in request.items()} for request in made]


def member(manifest: Manifest, request: Request) -> TokenSequence:
    """A request as the server sees it."""
    tokens = {name: row for name, row in request.items() if name != "attention_mask"}
    return Preprocessor(manifest).make_row(tokens, request["attention_mask"].astype(np.bool_))


@dataclass(frozen=True)
class Work:
    """How much a model has to compute, apart from all padding."""

    weights: int  # of the layers' matrices
    widths: int  # of all layers together: layers * D

    def of(self, lengths: list[int]) -> float:
        """Floating-point operations for rows of these lengths: the linear layers', and two products of all pairs."""
        return sum(2.0 * self.weights * length + 4.0 * self.widths * length**2 for length in lengths)


def work(encoder: Encoder) -> Work:
    linear = [part for part in encoder.blocks.modules() if isinstance(part, nn.Linear)]  # type: ignore[attr-defined]
    return Work(sum(part.weight.numel() for part in linear), len(encoder.blocks) * encoder.config.width)
