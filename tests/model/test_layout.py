"""The two forms of the same encoder: in padded rows, and end to end without padding."""

import numpy as np
import pytest
import torch

from bundle.manifest import PositionRule
from bundle.packing import Arrays, pack, sequence, split, unpack
from model import Encoder, EncoderConfig, PoolingConfig
from model.config import PoolingMode
from model.config import PositionRule as PositionRuleName
from model.layout import Packed, Padded
from tests.support import make_noisy

RULES: list[PositionRuleName] = ["column", "counted"]
POOLINGS: list[PoolingMode] = ["mean", "cls", "max"]


def make_encoder(rule: PositionRuleName, pooling: PoolingMode) -> Encoder:
    torch.manual_seed(0)
    config = EncoderConfig(
        vocabulary=20,
        positions=40,
        token_types=2,
        width=12,
        heads=3,
        layers=2,
        feed_forward=16,
        position_rule=rule,
        padding_id=1,
    )
    encoder = Encoder(config, PoolingConfig(pooling, unit_length=True))
    make_noisy(encoder)
    return encoder.double().eval().requires_grad_(False)


def packed_answer(encoder: Encoder, inputs: Arrays) -> Arrays:
    """The way of a request through a server, in torch: padding out, the packed form, padding in."""
    rule = PositionRule(kind=encoder.config.position_rule, padding_id=encoder.config.padding_id)
    rows = zip(inputs["input_ids"], inputs["attention_mask"].astype(bool), inputs["token_type_ids"], strict=True)
    members = [sequence(rule, {"input_ids": ids, "token_type_ids": types}, real) for ids, real, types in rows]
    feeds = {name: torch.from_numpy(array) for name, array in pack(members).items()}
    layout = Packed(feeds["slots"], feeds["rows"], feeds["columns"], feeds["real"])
    outputs = encoder.encode(feeds["input_ids"], feeds["token_type_ids"], feeds["position_ids"], layout)
    tokens = outputs["last_hidden_state"].numpy()
    assert len(tokens) == sum(map(len, members))
    return {
        "last_hidden_state": unpack(members, split(members, tokens), inputs["input_ids"].shape[1]),
        "sentence_embedding": outputs["sentence_embedding"].numpy(),
    }


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("seed", range(8))
def test_both_forms_give_the_same_answers(rule: PositionRuleName, pooling: PoolingMode, seed: int) -> None:
    encoder = make_encoder(rule, pooling)
    generator = np.random.default_rng(seed)
    batch, length = int(generator.integers(1, 9)), int(generator.integers(1, 39))
    mask = (generator.random((batch, length)) < generator.uniform(0.1, 1)).astype(np.int64)
    mask[np.arange(batch), generator.integers(0, length, batch)] = 1
    inputs = {
        "input_ids": generator.integers(0, 20, mask.shape),
        "attention_mask": mask,
        "token_type_ids": generator.integers(0, 2, mask.shape),
    }
    padded = encoder(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    packed = packed_answer(encoder, inputs)
    for name, tensor in padded.items():
        np.testing.assert_allclose(packed[name], tensor.numpy(), rtol=0, atol=1e-12)


def test_packed_heads_by_hand() -> None:
    """Two rows of two tokens and one, width 4, two heads: token t holds 10 t + 0, 1, 2, 3."""
    real = torch.tensor([[True, True], [True, False]])
    layout = Packed(torch.tensor([[0, 1], [2, 2]]), torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0]), real)
    x = torch.tensor([[0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22, 23]])
    by_head = layout.to_heads(x, heads=2)
    assert by_head.tolist() == [
        [[[0, 1], [10, 11]], [[2, 3], [12, 13]]],
        [[[20, 21], [20, 21]], [[22, 23], [22, 23]]],  # the empty slot repeats its own row
    ]
    assert torch.equal(layout.from_heads(by_head), x)
    assert layout.to_rows(x).tolist() == [[[0, 1, 2, 3], [10, 11, 12, 13]], [[20, 21, 22, 23], [20, 21, 22, 23]]]


def test_padded_heads_by_hand() -> None:
    layout = Padded(torch.ones(1, 2, dtype=torch.bool))
    x = torch.tensor([[[0, 1, 2, 3], [10, 11, 12, 13]]])
    by_head = layout.to_heads(x, heads=2)
    assert by_head.tolist() == [[[[0, 1], [10, 11]], [[2, 3], [12, 13]]]]
    assert torch.equal(layout.from_heads(by_head), x)
    assert torch.equal(layout.to_rows(x), x)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    encoder = make_encoder("column", "mean")
    generator = np.random.default_rng(3)
    mask = np.array([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1], [0, 1, 0, 1, 1, 0]])
    ids, types = generator.integers(0, 20, mask.shape), generator.integers(0, 2, mask.shape)
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    together = packed_answer(encoder, inputs)
    for row in range(3):
        alone = packed_answer(encoder, {name: array[row : row + 1] for name, array in inputs.items()})
        for name, answer in alone.items():
            np.testing.assert_allclose(together[name][row], answer[0], rtol=0, atol=1e-12)
