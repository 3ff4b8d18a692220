"""A model past 2 GB is exported within a known multiple of its own size."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from heed.bundle.digests import check_digests

REPOSITORY = Path(__file__).parents[2]
MOST = 2.5  # of the size of the float32 weights

# In a process of its own, which ends by saying the most memory that it ever had, in bytes.
PROGRAM = """
import resource, sys
from heed.exporting import export_bundle
export_bundle(sys.argv[1], sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


# What differs in the configs and in the tables of two families.
BERT = {"model_type": "bert", "architectures": ["BertModel"], "max_position_embeddings": 512, "type_vocab_size": 2}
LONG_XLM_ROBERTA = {
    "model_type": "xlm-roberta",
    "architectures": ["XLMRobertaModel"],
    "max_position_embeddings": 8194,  # the first two are for padding
    "type_vocab_size": 1,
    "pad_token_id": 1,
}


def save_large(folder: Path, family: dict[str, Any], vocabulary: int, layers: int) -> Path:
    """A large model of random weights, as `transformers` would save it, without a tokenizer."""
    width, inner = 1024, 4096
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, torch.Tensor] = {}

    def matrix(name: str, rows: int, columns: int) -> None:
        weights[f"{name}.weight"] = 0.02 * torch.randn(rows, columns, generator=generator)

    def linear(name: str, outputs: int, inputs: int) -> None:
        matrix(name, outputs, inputs)
        weights[f"{name}.bias"] = 0.02 * torch.randn(outputs, generator=generator)

    def norm(name: str) -> None:
        weights[f"{name}.weight"], weights[f"{name}.bias"] = torch.ones(width), torch.zeros(width)

    tables = (
        ("word", vocabulary),
        ("position", family["max_position_embeddings"]),
        ("token_type", family["type_vocab_size"]),
    )
    for name, rows in tables:
        matrix(f"embeddings.{name}_embeddings", rows, width)
    norm("embeddings.LayerNorm")
    for number in range(layers):
        layer = f"encoder.layer.{number}"
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            linear(f"{layer}.{name}", width, width)
        norm(f"{layer}.attention.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", inner, width)
        linear(f"{layer}.output.dense", width, inner)
        norm(f"{layer}.output.LayerNorm")
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    config = family | {
        "hidden_act": "gelu",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_attention_heads": 16,
        "num_hidden_layers": layers,
        "vocab_size": vocabulary,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("family", [BERT, LONG_XLM_ROBERTA], ids=["rows of 512", "rows of 8,192"])
def test_a_model_past_2_gb_takes_little_more_than_twice_its_size(family: dict[str, Any], tmp_path: Path) -> None:
    source = save_large(tmp_path / "source", family, vocabulary=250_000, layers=24)
    size = (source / "model.safetensors").stat().st_size
    assert size > 2 * 2**30
    command = [sys.executable, "-c", PROGRAM, str(source), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    check_digests(tmp_path / "out")
    assert int(done.stdout) < MOST * size, f"{int(done.stdout) / size:.2f} times its size"
