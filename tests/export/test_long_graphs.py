"""Graphs in blocks of the families of long texts, in onnxruntime, against the reference of all pairs.

Letters: B batch, L length.
"""

from dataclasses import dataclass

import numpy as np
import onnxruntime
import pytest
import torch

from heed.bundle import read_manifest
from heed.bundle.sequence_packing import Arrays, Bools, pack, split, token_sequence, unpack
from heed.export.manifest import position_rule
from heed.model import Encoder, load_checkpoint
from heed.server.engine.session import session_options
from tests.long_families import LONG, VOCABULARY, export_long
from tests.oracle import padded, random_ids

BUDGET = 1e-5  # float32 against float64, where values are around 1
LENGTHS = [1, 2, 3, 9, 16, 17, 28, 29, 32, 33, 36, 41, 50, 112, 113, 128, 177, 200]


@dataclass(frozen=True)
class Exported:
    encoder: Encoder  # in float64
    graph: onnxruntime.InferenceSession
    shortest: int


@pytest.fixture(scope="module", params=LONG)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    source, bundle = export_long(request.param, tmp_path_factory.mktemp(request.param))
    (blocks,) = (graph for graph in read_manifest(bundle).graphs if graph.kind == "answers" and graph.longest is None)
    session = onnxruntime.InferenceSession(bundle / blocks.file, session_options(1))
    return Exported(load_checkpoint(source).encoder.double(), session, LONG[request.param].shortest)


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
    inputs = {"input_ids": random_ids(VOCABULARY, mask), "token_type_ids": random_ids(max(1, config.token_types), mask)}
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
