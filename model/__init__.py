"""The reference: a self-attention encoder in PyTorch, written to be read.

Read these first, in this order. They are a whole model:

    attention.py            scores, mask, softmax, values; the projections around them
    transformer_block.py    a layer: attention and a feed-forward network, each with a residual and a norm
    feed_forward.py         the feed-forward network, and activations
    norms.py                LayerNorm, RMSNorm
    encoder.py              embeddings, the layers, a head
    layout.py               where tokens lie: in padded rows, or end to end without padding

What goes in and what comes out:

    embeddings.py           tokens, vectors or images to one vector per token
    positions.py            learned, sinusoidal and rotary positions, a relative bias, ALiBi
    pooling.py              one vector per sequence
    classification_head.py  scores of labels

Other ways to attend:

    patterns.py             who may attend to whom: windows, graphs, global tokens, ...
    score_functions.py      scaled and unscaled dot product, additive
    softmax.py              softmax, hardmax
    head_groups.py          heads of one layer that attend in different ways
    longformer_attention.py Longformer: global tokens with projections of their own
    big_bird_attention.py   Big Bird as its published checkpoints compute it
    disentangled_attention.py   DeBERTa: content and distance scored apart
    linear_attention.py     approximations: Linear Transformer, Performer, Linformer

How attention is computed, which changes its cost and not its answer:

    attention_plan.py       all pairs, chunks of queries, or blockwise; masks that layers share
    exact_attention.py      follows the plan
    blockwise.py            blockwise attention for block-sparse patterns, with global tokens
    block_index.py          which slots stand in which block

Configs and checkpoints:

    config.py               what an encoder is made of
    attention_config.py     what its attention is made of
    config_checks.py        what a config's fields must be
    checkpoint.py           loads a published checkpoint
    checkpoint_files.py     its JSON and safetensors files
    sentence_transformers_folder.py    the modules and prompts of a sentence-transformers folder
    families/               BERT, RoBERTa, ModernBERT, ViT, ...: one small file each
"""

from heed.model.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from heed.model.config import EncoderConfig, PoolingConfig
from heed.model.encoder import Encoder

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Encoder",
    "EncoderConfig",
    "PoolingConfig",
    "load_checkpoint",
]
