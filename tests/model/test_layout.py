"""The two forms of the same encoder: in padded rows, and end to end without padding.

Letters: B batch, L length, D width.
"""

from functools import partial
from typing import Any, get_args

import numpy as np
import pytest
import torch

from heed.bundle.manifest import PositionRule as ServedRule
from heed.bundle.sequence_packing import (
    Arrays,
    pack,
    split,
    split_attentions,
    token_sequence,
    unpack,
    unpack_attentions,
)
from heed.model import Encoder, EncoderConfig, PoolingConfig
from heed.model.attention_config import AttentionConfig
from heed.model.attention_plan import AttentionPlan
from heed.model.config import LabelsConfig, LayerConfig, LearnedConfig, PoolingMode, SinusoidalConfig
from heed.model.embeddings import TokensConfig, VectorsConfig
from heed.model.feed_forward import FeedForwardConfig
from heed.model.layout import GlobalTokens, Packed, Padded
from heed.model.linear_attention import LinearTransformer, Linformer, Performer
from heed.model.norms import NormConfig
from heed.model.patterns import Adjacency, Causal, Chunk, FirstTokens, Full, GlobalMask, Window, big_bird
from heed.model.positions import LogBuckets, PositionRule, RuleKind
from heed.model.score_functions import Additive
from heed.model.softmax import hardmax
from tests.model.support import with_random_weights

RULES: list[RuleKind] = ["column", "counted", "stripped"]
POOLINGS: list[PoolingMode | tuple[PoolingMode, ...]] = [*get_args(PoolingMode), ("cls", "mean", "lasttoken")]
LONGEST = 40


def make_encoder(rule: RuleKind = "column", seed: int = 0, **changes: Any) -> Encoder:
    attention = changes.pop("attention", AttentionConfig(3))
    options: dict[str, Any] = {
        "inputs": TokensConfig(20, token_types=2),
        "width": 12,
        "layers": (LayerConfig(attention, FeedForwardConfig(16)),) * 2,
        "max_length": LONGEST,
        "positions": LearnedConfig(LONGEST + 2),
        "position_rule": PositionRule(rule, 1),
        "embedding_norm": NormConfig(),
    }
    return with_random_weights(Encoder(EncoderConfig(**(options | changes))), seed)


def random_request(encoder: Encoder, batch: int, length: int, seed: int) -> Arrays:
    """Rows of any kind, each with a real token."""
    generator = np.random.default_rng(seed)
    mask = (generator.random((batch, length)) < generator.uniform(0.1, 1)).astype(np.int64)
    mask[np.arange(batch), generator.integers(0, length, batch)] = 1
    request: Arrays = {"attention_mask": mask}
    if isinstance(encoder.config.inputs, VectorsConfig):
        request["features"] = generator.normal(size=(batch, length, encoder.config.inputs.features))
    else:
        request["input_ids"] = generator.integers(0, 20, mask.shape)
        request["token_type_ids"] = generator.integers(0, 2, mask.shape)
    if "adjacency" in encoder.config.needs:
        request["adjacency"] = generator.random((batch, length, length)) < 0.4
    if "global_attention_mask" in encoder.config.needs:
        request["global_attention_mask"] = (generator.random(mask.shape) < 0.2).astype(np.int64)
    return request


def padded_answer(encoder: Encoder, request: Arrays, attentions: bool = False) -> Arrays:
    outputs = encoder(**{name: torch.from_numpy(array) for name, array in request.items()}, attentions=attentions)
    return {name: tensor.numpy() for name, tensor in outputs.items()}


def packed_answer(
    encoder: Encoder, request: Arrays, attentions: bool = False, dense: bool = True, every_token: bool = True
) -> Arrays:
    """The way of a request through a server, in torch: padding out, the packed form, padding in."""
    config = encoder.config
    rule = ServedRule(kind=config.position_rule.kind, padding_id=config.position_rule.padding_id)
    tokens = {name for name in ("input_ids", "token_type_ids", "features") if name in request}
    members = [
        token_sequence(
            rule,
            {name: request[name][row] for name in tokens},
            request["attention_mask"][row].astype(bool),
            request["adjacency"][row] if "adjacency" in request else None,
            request["global_attention_mask"][row].astype(bool) if "global_attention_mask" in request else None,
        )
        for row in range(len(request["attention_mask"]))
    ]
    feeds = {
        name: torch.from_numpy(array)
        for name, array in pack(members, config.aligned, every_token, config.reads_first_real).items()
    }
    layout = Packed(
        feeds["slots"],
        feeds["rows"],
        feeds["columns"],
        feeds["real"],
        feeds["position_ids"],
        feeds.get("adjacency"),
        GlobalTokens(feeds["globals"], feeds["globals_real"]) if "globals" in feeds else None,
        kept_K=feeds["kept"] if config.reads_first else None,
        first_B=feeds["first"] if config.reads_first else None,
    )
    outputs = (encoder.encode_with_attentions if attentions else encoder.encode)(
        feeds, AttentionPlan(layout, blockwise=not dense)
    )
    answers = {name: tensor.numpy() for name, tensor in outputs.items()}
    length = request["attention_mask"].shape[1]
    if not every_token:
        assert len(answers.pop("last_hidden_state")) == max(2, len(members))
        return answers
    assert len(answers["last_hidden_state"]) == sum(map(len, members))
    for name in encoder.per_token:
        answers[name] = unpack(members, split(members, answers[name]), length)
    if attentions:
        by_member = split_attentions(members, answers["attentions"], config.aligned)
        answers["attentions"] = unpack_attentions(members, by_member, length)
    return answers


def assert_same(one: Arrays, other: Arrays) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_allclose(array, other[name], rtol=0, atol=1e-12)


ENCODERS: dict[str, dict[str, Any]] = {
    "rotary": {"attention": AttentionConfig(3, rotary_base=100.0), "positions": None},
    "relative bias": {"relative_bias": LogBuckets(8, 20), "positions": None},
    "sinusoids": {"positions": SinusoidalConfig()},
    "additive": {"attention": AttentionConfig(3, score=Additive)},
    "hard": {"attention": AttentionConfig(3, normalize=hardmax)},
    "window": {"attention": AttentionConfig(3, Window(2), rotary_base=100.0)},
    "chunks and biases": {"attention": AttentionConfig(3, Chunk(5)), "relative_bias": LogBuckets(8, 20)},
    "causal": {"attention": AttentionConfig(3, Causal())},
    "heads of their own": {"attention": AttentionConfig(3, (Full(), Window(1), Window(3) | FirstTokens(2)))},
    "big bird": {"attention": AttentionConfig(3, big_bird(4, 1, 10))},
    "global tokens": {"attention": AttentionConfig(3, Window(1) | GlobalMask()), "first_tokens_global": 1},
    "graph": {"attention": AttentionConfig(3, Adjacency()), "inputs": VectorsConfig(5), "positions": None},
    "linear transformer": {"attention": AttentionConfig(3, approximation=LinearTransformer)},
    "performer": {"attention": AttentionConfig(3, approximation=partial(Performer, features=16))},
    "linformer": {"attention": AttentionConfig(3, approximation=partial(Linformer, rank=4, max_length=LONGEST))},
    "narrow tables": {"inputs": TokensConfig(20, token_types=2, width=5), "final_norm": NormConfig("rms")},
    "labels": {"head": LabelsConfig(("a", "b", "c"), "token", hidden="gelu")},
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("seed", range(3))
def test_both_forms_give_the_same_answers(
    rule: RuleKind, pooling: PoolingMode | tuple[PoolingMode, ...], seed: int
) -> None:
    encoder = make_encoder(rule, head=PoolingConfig(pooling, unit_length=True))
    generator = np.random.default_rng(seed)
    request = random_request(encoder, int(generator.integers(1, 9)), int(generator.integers(1, 39)), seed)
    assert_same(packed_answer(encoder, request), padded_answer(encoder, request))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize(
    "head", [PoolingConfig("cls", unit_length=True), LabelsConfig(("a", "b"), "sequence", hidden="tanh")]
)
def test_the_last_layer_may_leave_out_what_no_row_reads(
    rule: RuleKind, rows: int, norm_first: bool, head: PoolingConfig | LabelsConfig
) -> None:
    layers = (LayerConfig(AttentionConfig(3), FeedForwardConfig(16), norm_first=norm_first),) * 2
    encoder = make_encoder(rule, head=head, layers=layers)
    assert encoder.config.reads_first
    request = random_request(encoder, rows, 17, seed=rows)
    expected = padded_answer(encoder, request)
    del expected["last_hidden_state"]
    assert_same(packed_answer(encoder, request, every_token=False), expected)


@pytest.mark.parametrize(
    "head", [None, PoolingConfig("mean", unit_length=True), LabelsConfig(("a", "b"), "token")], ids=str
)
def test_other_heads_read_every_token(head: PoolingConfig | LabelsConfig | None) -> None:
    assert not make_encoder(head=head).config.reads_first


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("rule", ["column", "stripped"])
@pytest.mark.parametrize("length", [1, 2, 16, 39])
def test_both_forms_of_every_mechanism_give_the_same_answers(name: str, rule: RuleKind, length: int) -> None:
    encoder = make_encoder(rule, **ENCODERS[name])
    request = random_request(encoder, 5, length, seed=length)
    expected = padded_answer(encoder, request)
    assert all(np.isfinite(array).all() for array in expected.values())
    for dense in (True, False):
        assert_same(packed_answer(encoder, request, dense=dense), expected)


@pytest.mark.parametrize("name", [name for name in ENCODERS if name != "linformer"])
@pytest.mark.parametrize("rule", ["column", "stripped"])
def test_both_forms_give_the_same_weights(name: str, rule: RuleKind) -> None:
    encoder = make_encoder(rule, **ENCODERS[name])
    request = random_request(encoder, 5, 17, seed=1)
    assert_same(packed_answer(encoder, request, attentions=True), padded_answer(encoder, request, attentions=True))


@pytest.mark.parametrize("name", ENCODERS)
def test_a_row_does_not_depend_on_its_neighbours(name: str) -> None:
    encoder = make_encoder(**ENCODERS[name])
    request = random_request(encoder, 4, 30, seed=3)
    request["attention_mask"][0] = 1  # one of full length beside others
    request["attention_mask"][1, 5:] = 0
    request["attention_mask"][1, 0] = 1
    for answer_of in (packed_answer, padded_answer):
        together = answer_of(encoder, request)
        for row in range(4):
            alone = answer_of(encoder, {key: array[row : row + 1] for key, array in request.items()})
            assert_same({key: array[row : row + 1] for key, array in together.items()}, alone)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["window", "global tokens", "linformer"])
def test_padding_on_the_right_may_be_left_out(name: str, rule: RuleKind) -> None:
    encoder = make_encoder(rule, **ENCODERS[name])
    request = random_request(encoder, 3, 20, seed=3)
    request["attention_mask"][:] = np.arange(20) < 13
    short = {key: array[:, :13] for key, array in request.items()}
    long = padded_answer(encoder, request)["last_hidden_state"]
    np.testing.assert_allclose(long[:, :13], padded_answer(encoder, short)["last_hidden_state"], rtol=0, atol=1e-12)
    assert not long[:, 13:].any()


def test_packed_heads_by_hand() -> None:
    """Two rows of two tokens and one, width 4, two heads: token t holds 10 t + 0, 1, 2, 3."""
    real = torch.tensor([[True, True], [True, False]])
    columns = torch.tensor([0, 1, 0])
    layout = Packed(torch.tensor([[0, 1], [2, 2]]), torch.tensor([0, 0, 1]), columns, real, columns)
    x = torch.tensor([[0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22, 23]])
    by_head = layout.to_heads(x, heads=2)
    assert by_head.tolist() == [
        [[[0, 1], [10, 11]], [[2, 3], [12, 13]]],
        [[[20, 21], [20, 21]], [[22, 23], [22, 23]]],  # the empty slot repeats its own row
    ]
    assert torch.equal(layout.from_heads(by_head), x)
    assert torch.equal(layout.from_heads(with_slots_beyond(by_head)), x)
    assert layout.to_rows(x).tolist() == [[[0, 1, 2, 3], [10, 11, 12, 13]], [[20, 21, 22, 23], [20, 21, 22, 23]]]


def test_padded_heads_by_hand() -> None:
    layout = Padded(torch.ones(1, 2, dtype=torch.bool), torch.arange(2)[None])
    x = torch.tensor([[[0, 1, 2, 3], [10, 11, 12, 13]]])
    by_head = layout.to_heads(x, heads=2)
    assert by_head.tolist() == [[[[0, 1], [10, 11]], [[2, 3], [12, 13]]]]
    assert torch.equal(layout.from_heads(by_head), x)
    assert torch.equal(layout.from_heads(with_slots_beyond(by_head)), x)
    assert torch.equal(layout.to_rows(x), x)


def with_slots_beyond(x_BNLH: torch.Tensor) -> torch.Tensor:
    """As attention in whole blocks leaves them."""
    return torch.nn.functional.pad(x_BNLH, (0, 0, 0, 3), value=-1)
