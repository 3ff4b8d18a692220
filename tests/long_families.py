"""Small random checkpoints of the families for long texts, and bundles of them in which rows soon are long."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.bundles import export_bundle
from tests.oracle import save

DENSE_COLUMNS = 32  # in place of many more: longer rows are computed in blocks
VOCABULARY, WIDTH = 60, 24


@dataclass(frozen=True)
class Long:
    """A checkpoint, by the names of the classes of `transformers`."""

    network: str
    config: str
    settings: dict[str, Any]
    shortest: int = 1  # columns of the shortest row of the graph in blocks

    def save(self, folder: Path) -> Path:
        sizes = {
            "vocab_size": VOCABULARY,
            "hidden_size": WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "intermediate_size": 20,
        }
        return save(folder, self.network, self.config, **(sizes | self.settings))


LONG = {
    "modernbert": Long(
        "ModernBertForTokenClassification", "ModernBertConfig",
        {"local_attention": 10, "max_position_embeddings": 200, "layer_types": ["full_attention", "sliding_attention"],
         "pad_token_id": 0, "bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2, "sep_token_id": 2},
    ),
    "longformer": Long(
        "LongformerForSequenceClassification", "LongformerConfig",
        {"attention_window": [8, 16], "max_position_embeddings": 202, "pad_token_id": 1, "type_vocab_size": 2},
    ),
    "big-bird": Long(
        "BigBirdModel", "BigBirdConfig",
        {"block_size": 5, "num_random_blocks": 1, "max_position_embeddings": 200, "num_hidden_layers": 1,
         "bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 3},
        shortest=36,
    ),
}  # fmt: skip


def export_long(name: str, folder: Path) -> tuple[Path, Path]:
    """The checkpoint's folder and the bundle's, below a new folder."""
    source = LONG[name].save(folder / "source")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("heed.export.graph_writer.DENSE_COLUMNS", DENSE_COLUMNS)
        return source, export_bundle(source, folder / "bundle")
