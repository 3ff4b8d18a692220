"""Position ids: which row of the position table a token gets.

B batch, L length. Both rules look at the full row, before any padding is left out.
"""

import torch
from torch import Tensor

from model.config import EncoderConfig


def column_positions(input_ids_BL: Tensor) -> Tensor:
    """BERT: the column index, wherever the padding is. Returns `[B, L]`."""
    length = input_ids_BL.shape[1]
    return torch.arange(length, device=input_ids_BL.device).expand_as(input_ids_BL)


def counted_positions(input_ids_BL: Tensor, padding_id: int) -> Tensor:
    """RoBERTa: the n-th token that is not the padding id gets `padding_id + n`, a padding id gets `padding_id`.

    It counts by ids, not by the mask: a masked token with another id is counted, as the published models do.
    Returns `[B, L]`.
    """
    counts_BL = (input_ids_BL != padding_id).long()
    return counts_BL.cumsum(1) * counts_BL + padding_id


def position_ids(config: EncoderConfig, input_ids_BL: Tensor) -> Tensor:
    """The rule that the config names. Returns `[B, L]`."""
    if config.position_rule == "counted":
        return counted_positions(input_ids_BL, config.padding_id)
    return column_positions(input_ids_BL)
