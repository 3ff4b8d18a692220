"""Budgets where float32 has much to add up: the shapes of BERT-large and XLM-R-large, with short rows and few words."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from bench.gate import refused_by
from bench.subjects import Right
from heed.exporting import export_bundle
from heed.model import load_checkpoint
from tests.checkpoints import save_large
from tests.mutations import mistakes
from tests.mutations.mistakes import Mistake

SHAPES: dict[str, dict[str, Any]] = {
    "bert": {"max_position_embeddings": 16},
    "xlm-roberta": {"max_position_embeddings": 18, "type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5},
}
# The smallest of those that apply to any text model: of one layer of 24, or of the last bits of all.
SMALLEST = {
    "bert": (mistakes.value_weight_scaled_by_1001_thousandths, mistakes.two_layers_swapped),
    "xlm-roberta": (mistakes.weights_rounded_to_float16, mistakes.positions_off_by_one),
}


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("family", SHAPES)
def test_a_right_model_passes_and_mistakes_in_it_are_refused(tmp_path: Path, family: str) -> None:
    source = save_large(tmp_path / "source", family, spread=0.05, vocab_size=200, **SHAPES[family])
    export_bundle(source, tmp_path / "right")  # raises if an answer exceeds its budget
    right = Right(load_checkpoint(source), tmp_path / "right")
    for change in SMALLEST[family]:
        wrong = Mistake(family, "weights", change).make(right, tmp_path / "wrong")
        assert refused_by(wrong) == "numbers", change.__name__
        shutil.rmtree(wrong)
