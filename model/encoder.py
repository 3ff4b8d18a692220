"""The encoder: embeddings, a stack of blocks, and optionally one vector per sequence.

Letters: B batch, L length, T tokens, D width.
"""

import torch
from torch import Tensor, nn

from model.blocks import Block
from model.config import EncoderConfig, PoolingConfig
from model.layout import Layout, Padded
from model.pooling import Pooling
from model.positions import position_ids


class Embeddings(nn.Module):
    """A token's vector: its word's, its position's and its type's, summed and normed (BERT)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Embedding(config.positions, config.width)
        self.types = nn.Embedding(config.token_types, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_epsilon)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, positions: Tensor) -> Tensor:
        return self.norm(self.tokens(input_ids) + self.types(token_type_ids) + self.positions(positions))


class Encoder(nn.Module):
    """A self-attention encoder over tokens.

    `encode` runs in any layout; calling the encoder itself takes padded rows, as callers send them.
    """

    def __init__(self, config: EncoderConfig, pooling: PoolingConfig | None = None) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.pooling = Pooling(pooling) if pooling else None

    def encode(self, input_ids: Tensor, token_type_ids: Tensor, positions: Tensor, layout: Layout) -> dict[str, Tensor]:
        """The three index tensors, `[B, L]` or `[T]` as the layout says, to `last_hidden_state` in that layout
        and, where the model pools, `sentence_embedding` `[B, D]`."""
        x = self.embeddings(input_ids, token_type_ids, positions)
        for block in self.blocks:
            x = block(x, layout)
        outputs = {"last_hidden_state": x}
        if self.pooling:
            outputs["sentence_embedding"] = self.pooling(x, layout)
        return outputs

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """What the model answers to padded rows.

        Args:
            input_ids: `[B, L]`, at most `config.max_length` columns.
            attention_mask: `[B, L]`, 1 for a real token, 0 for padding; all real when left out.
            token_type_ids: `[B, L]`; zeros when left out.

        Returns:
            `last_hidden_state` `[B, L, D]`, zeros at padding, and `sentence_embedding` `[B, D]` if the model pools.
        """
        real_BL = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        types_BL = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        outputs = self.encode(input_ids, types_BL, position_ids(self.config, input_ids), Padded(real_BL))
        outputs["last_hidden_state"] = outputs["last_hidden_state"].masked_fill(~real_BL[:, :, None], 0.0)
        return outputs
