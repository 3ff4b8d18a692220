"""The reference: a multi-head self-attention encoder in PyTorch.

Reading order: `attention.py` (the mechanism), `transformer_block.py` (a layer), `encoder.py` (the model),
`pooling.py` (one vector per sequence), then `layout.py` (how padding is left out of the work) and
`checkpoint.py` (published weights).
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
