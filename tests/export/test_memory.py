"""A model past 2 GB is exported within a known multiple of its own size."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from heed.bundle.digests import check_digests
from tests.checkpoints import save_large

REPOSITORY = Path(__file__).parents[2]
MOST = 2.5  # of the size of the float32 weights

# In a process of its own, which ends by saying the most memory that it ever had, in bytes.
PROGRAM = """
import resource, sys
from heed.exporting import export_bundle
export_bundle(sys.argv[1], sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


SIZES: dict[str, dict[str, Any]] = {
    "bert": {"vocab_size": 250_000},
    # Two positions are for padding. What a row takes does not add up over layers, and two of them take minutes.
    "xlm-roberta": {
        "vocab_size": 500_000,
        "num_hidden_layers": 2,
        "max_position_embeddings": 8194,
        "type_vocab_size": 1,
        "pad_token_id": 1,
    },
}


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("family", SIZES)
def test_a_model_past_2_gb_takes_little_more_than_twice_its_size(family: str, tmp_path: Path) -> None:
    """With rows of 512 tokens, and of 8,192."""
    source = save_large(tmp_path / "source", family, **SIZES[family])
    size = (source / "model.safetensors").stat().st_size
    assert size > 2 * 2**30
    command = [sys.executable, "-c", PROGRAM, str(source), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    check_digests(tmp_path / "out")
    assert int(done.stdout) < MOST * size, f"{int(done.stdout) / size:.2f} times its size"
