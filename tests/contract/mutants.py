"""An exporter's mistakes: bundles that are whole, with right digests and the true contract, and answer wrongly."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bundle.digests import write_digests
from bundle.manifest import TOKENIZER, read_manifest
from export.graph import export_graph
from model import Encoder, load_checkpoint
from model.attention import MultiHeadAttention
from model.blocks import Block
from model.pooling import Pooling, PoolingConfig
from model.positions import Learned
from model.scores import ScaledDot


def _blocks(encoder: Encoder) -> list[Block]:
    return [block for block in encoder.blocks if isinstance(block, Block)]


def _attention(block: Block) -> MultiHeadAttention:
    assert isinstance(block.attention, MultiHeadAttention)
    return block.attention


def tanh_gelu(encoder: Encoder) -> None:
    for block in _blocks(encoder):
        block.feed_forward.activation = nn.GELU(approximate="tanh")


def scaled_weight(encoder: Encoder) -> None:
    _attention(_blocks(encoder)[0]).value.weight.mul_(1.001)


def shifted_positions(encoder: Encoder) -> None:
    assert isinstance(encoder.embeddings.positions, Learned)
    table = encoder.embeddings.positions.table.weight
    table.copy_(table.roll(1, 0))


def swapped_layers(encoder: Encoder) -> None:
    first, second, *_ = _blocks(encoder)
    encoder.blocks[0], encoder.blocks[1] = second, first


def norm_epsilon_of_keras(encoder: Encoder) -> None:
    for module in encoder.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-3


def pooling_of_another_model(encoder: Encoder) -> None:
    assert isinstance(encoder.head, Pooling)
    assert encoder.head.config.mode == "mean"
    encoder.head.config = PoolingConfig("cls", encoder.head.config.unit_length)


def query_and_key_of_a_head_swapped(encoder: Encoder) -> None:
    attention = _attention(_blocks(encoder)[-1])
    rows = slice(0, attention.query.out_features // attention.heads)
    pairs = [(attention.query.weight, attention.key.weight), (attention.query.bias, attention.key.bias)]
    for query, key in pairs:
        kept = query[rows].clone()
        query[rows] = key[rows]
        key[rows] = kept


def attention_scale_left_out(encoder: Encoder) -> None:
    for module in encoder.modules():
        if isinstance(module, ScaledDot):
            module.scale = 1.0


ENCODER_MISTAKES: list[Callable[[Encoder], None]] = [
    tanh_gelu,
    scaled_weight,
    shifted_positions,
    swapped_layers,
    norm_epsilon_of_keras,
    pooling_of_another_model,
    query_and_key_of_a_head_swapped,
    attention_scale_left_out,
]


def vocabulary_in_another_order(tokenizer: dict[str, Any]) -> None:
    """All words but the special ones, back to front."""
    vocabulary = tokenizer["model"]["vocab"]
    words = [word for word in vocabulary if not word.startswith("[")]
    ids = [vocabulary[word] for word in words]
    vocabulary.update(zip(words, reversed(ids), strict=True))


def case_kept(tokenizer: dict[str, Any]) -> None:
    assert tokenizer["normalizer"]["lowercase"] is True
    tokenizer["normalizer"]["lowercase"] = False


TOKENIZER_MISTAKES: list[Callable[[dict[str, Any]], None]] = [vocabulary_in_another_order, case_kept]


def _copy_without(bundle: Path, out: Path, *names: str) -> None:
    """The files are links, so what is to be written anew must not be there."""
    shutil.copytree(bundle, out, copy_function=os.link, ignore=lambda *_: {"SHA256SUMS", *names})


def export_mistaken(source: Path, bundle: Path, out: Path, mistake: Callable[[Encoder], None]) -> Path:
    """The bundle with the graph of a mistaken encoder."""
    encoder = load_checkpoint(source).encoder
    with torch.no_grad():
        mistake(encoder)
    graph = read_manifest(bundle).graphs[0].file
    _copy_without(bundle, out, graph)
    export_graph(encoder, out / graph)
    write_digests(out)
    return out


def retokenized(bundle: Path, out: Path, mistake: Callable[[dict[str, Any]], None]) -> Path:
    """The bundle with another tokenizer."""
    tokenizer = json.loads((bundle / TOKENIZER).read_text())
    mistake(tokenizer)
    _copy_without(bundle, out, TOKENIZER)
    (out / TOKENIZER).write_text(json.dumps(tokenizer, ensure_ascii=False))
    write_digests(out)
    return out
