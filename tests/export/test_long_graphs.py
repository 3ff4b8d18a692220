"""Graphs in blocks of the families of long texts, in onnxruntime, against the reference of all pairs.

Letters: B batch, L length.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from heed.bundle.sequence_packing import Arrays, Bools, pack, split, token_sequence, unpack
from heed.export.manifest import position_rule
from heed.export.torch_to_onnx import export_graph
from heed.model import Encoder, load_checkpoint
from heed.server.engine.session import session_options
from tests.oracle import LABELS, padded, random_ids, save

BUDGET = 1e-5  # float32 against float64, where values are around 1
SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
}


@dataclass(frozen=True)
class Long:
    """A checkpoint, by the names of the classes of `transformers`."""

    network: str
    config: str
    settings: dict[str, Any]
    shortest: int = 1  # columns of the shortest row of the graph in blocks


LONG = {
    "modernbert": Long(
        "ModernBertForTokenClassification", "ModernBertConfig",
        {"local_attention": 10, "max_position_embeddings": 200, "pad_token_id": 0, "bos_token_id": 1,
         "cls_token_id": 1, "eos_token_id": 2, "sep_token_id": 2},
    ),
    "longformer": Long(
        "LongformerForSequenceClassification", "LongformerConfig",
        {"attention_window": [8, 16], "max_position_embeddings": 202, "pad_token_id": 1},
    ),
    "big-bird": Long(
        "BigBirdForSequenceClassification", "BigBirdConfig",
        {"block_size": 4, "num_random_blocks": 1, "max_position_embeddings": 200}, shortest=29,
    ),
}  # fmt: skip
LENGTHS = [1, 2, 3, 9, 16, 17, 28, 29, 32, 33, 50, 112, 113, 128, 177, 200]


@dataclass(frozen=True)
class Exported:
    encoder: Encoder  # in float64
    graph: onnxruntime.InferenceSession
    shortest: int


@pytest.fixture(scope="module", params=LONG)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    long: Long = LONG[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    encoder = load_checkpoint(save(folder, long.network, long.config, **(SIZES | LABELS | long.settings))).encoder
    path = folder / "model.onnx"
    export_graph(encoder, path, dense=False)
    return Exported(encoder.double(), onnxruntime.InferenceSession(path, session_options(1)), long.shortest)


def run(exported: Exported, mask: Bools, inputs: Arrays) -> Arrays:
    """What a graph answers to padded rows: `[B, L, ...]`, zeros at padding; or `[B, ...]`."""
    names = {each.name for each in exported.graph.get_inputs()}
    rule = position_rule(exported.encoder.config)
    is_global = inputs.get("global_attention_mask")
    rows = [
        token_sequence(
            rule,
            {name: inputs[name][row] for name in ("input_ids", "token_type_ids")},
            real,
            is_global=None if is_global is None else is_global[row].astype(bool),
        )
        for row, real in enumerate(mask)
    ]
    feeds = {
        name: array for name, array in pack(rows, aligned=exported.encoder.config.aligned).items() if name in names
    }
    outputs = [each.name for each in exported.graph.get_outputs()]
    answers = dict(zip(outputs, exported.graph.run(None, feeds), strict=True))
    for name in exported.encoder.per_token:
        answers[name] = unpack(rows, split(rows, answers[name]), mask.shape[1])
    return answers


def inputs_of(exported: Exported, mask: torch.Tensor) -> Arrays:
    config = exported.encoder.config
    inputs = {"input_ids": random_ids(60, mask), "token_type_ids": random_ids(max(1, config.token_types), mask)}
    if "global_attention_mask" in config.needs:
        inputs["global_attention_mask"] = (random_ids(9, mask) == 0).long()
    return {name: tensor.numpy() for name, tensor in inputs.items()}


def assert_equal(exported: Exported, mask: torch.Tensor) -> None:
    inputs = inputs_of(exported, mask)
    with torch.no_grad():
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        right = exported.encoder(**tensors, attention_mask=mask)
    answers = run(exported, mask.bool().numpy(), inputs)
    assert answers.keys() == right.keys()
    for name, tensor in right.items():
        scale = max(1.0, float(tensor.abs().max()))
        np.testing.assert_allclose(answers[name], tensor.numpy(), rtol=0, atol=BUDGET * scale)


def test_a_graph_is_equal_to_the_reference(exported: Exported) -> None:
    """Alone and in a group of rows with padding of every kind, as far as the graph takes them."""
    for length in LENGTHS:
        spans = [int(row.nonzero()[:, 0].max() - row.nonzero()[:, 0].min()) + 1 for row in padded(length)]
        taken = [row for row, span in enumerate(spans) if span >= exported.shortest]
        for rows in (taken[:1], taken):
            if rows:
                assert_equal(exported, padded(length)[rows])


@pytest.mark.parametrize("length", [37, 128, 200])
def test_a_row_has_the_same_bits_in_any_group(exported: Exported, length: int) -> None:
    mask = torch.ones(3, 200, dtype=torch.long)
    mask[0, length:] = 0
    inputs = inputs_of(exported, mask)
    alone = run(exported, mask[:1].bool().numpy(), {name: array[:1] for name, array in inputs.items()})
    group = run(exported, mask.bool().numpy(), inputs)
    for name, array in alone.items():
        np.testing.assert_array_equal(array[0], group[name][0])
