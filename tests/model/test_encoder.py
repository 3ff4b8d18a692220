"""The encoder as a whole: how its parts are joined, and what it promises about padding, weights and positions.

Letters: B batch, L length, D width, N heads.
"""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from heed.model import Encoder, EncoderConfig, PoolingConfig
from heed.model.attention_config import AttentionConfig
from heed.model.config import LabelsConfig, LayerConfig, LearnedConfig, SinusoidalConfig
from heed.model.embeddings import ImagesConfig, TokensConfig, VectorsConfig, cut_into_patches
from heed.model.feed_forward import FeedForwardConfig
from heed.model.layout import GlobalTokens
from heed.model.linear_attention import LinearTransformer, Linformer, Performer
from heed.model.longformer_attention import LongformerConfig
from heed.model.norms import NormConfig
from heed.model.patterns import Adjacency, Causal, Chunk, FirstTokens, Full, GlobalMask, Strided, Window, big_bird
from heed.model.positions import LogBuckets, PositionRule, RelativeBias
from heed.model.score_functions import Additive, Dot
from heed.model.softmax import hardmax
from tests.model.support import assert_close, masks, noise, padded, plan, random_edges, with_random_weights

LONGEST = 24
ATTENTIONS: dict[str, Any] = {
    "full": AttentionConfig(2),
    "unscaled": AttentionConfig(2, score=Dot),
    "additive": AttentionConfig(2, score=Additive),
    "hard": AttentionConfig(2, normalize=hardmax),
    "rotary": AttentionConfig(2, rotary_base=100.0),
    "window": AttentionConfig(2, Window(2)),
    "strided": AttentionConfig(2, Strided(3) | FirstTokens(1)),
    "chunks": AttentionConfig(2, Chunk(5) & Causal()),
    "graph": AttentionConfig(2, Adjacency()),
    "global tokens": AttentionConfig(2, Window(1) | GlobalMask()),
    "big bird": AttentionConfig(2, big_bird(4, 1, 6)),
    "two patterns": AttentionConfig(2, (Full(), Window(1))),
    "longformer": LongformerConfig(2, 2),
    "linear transformer": AttentionConfig(2, approximation=LinearTransformer),
    "performer": AttentionConfig(2, approximation=partial(Performer, features=16)),
    "linformer": AttentionConfig(2, approximation=partial(Linformer, rank=4, max_length=LONGEST)),
}


def make_encoder(attention: Any = None, *, layers: int = 2, **changes: Any) -> Encoder:
    layer = LayerConfig(attention or AttentionConfig(2), FeedForwardConfig(10), norm_first=True)
    options: dict[str, Any] = {
        "inputs": TokensConfig(20, token_types=2),
        "width": 8,
        "layers": (layer,) * layers,
        "max_length": LONGEST,
    }
    return with_random_weights(Encoder(EncoderConfig(**(options | changes))))


def random_ids(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 20, (batch, length), generator=torch.Generator().manual_seed(seed))


def extras(encoder: Encoder, batch: int, length: int) -> dict[str, Tensor]:
    """What the encoder needs beside tokens and a mask."""
    inputs = {}
    if "adjacency" in encoder.config.needs:
        inputs["adjacency"] = torch.from_numpy(random_edges(batch, length, seed=0) | np.eye(length, dtype=bool))
    if "global_attention_mask" in encoder.config.needs:
        inputs["global_attention_mask"] = (torch.arange(length) % 7 == 3).long().expand(batch, -1)
    return inputs


# How parts are joined


@pytest.mark.parametrize("narrow", [None, 3])
def test_an_encoder_is_its_parts_one_after_the_other(narrow: int | None) -> None:
    encoder = make_encoder(
        inputs=TokensConfig(20, token_types=2, width=narrow),
        positions=LearnedConfig(LONGEST),
        embedding_norm=NormConfig(epsilon=1e-5),
        relative_bias=LogBuckets(8, 20),
        final_norm=NormConfig("rms", epsilon=1e-5),
        head=PoolingConfig("mean", unit_length=True),
    )
    ids, types = random_ids(2, 6), random_ids(2, 6, seed=1) % 2
    real = np.array([[True] * 6, [True] * 4 + [False] * 2])
    layout = padded(real)

    table = encoder.state_dict()
    x = table["embeddings.inputs.tokens.weight"][ids] + table["embeddings.inputs.types.weight"][types]
    x = x + table["embeddings.positions.table.weight"][:6]
    norm = table["embeddings.norm.weight"], table["embeddings.norm.bias"]
    x = nn.functional.layer_norm(x, x.shape[-1:], *norm, eps=1e-5)
    if narrow:
        x = x @ table["embeddings.project.weight"].T + table["embeddings.project.bias"]
    for block in encoder.blocks:
        x = block(x, plan(layout), encoder.relative_bias)
    x = nn.functional.rms_norm(x, (8,), table["norm.weight"], eps=1e-5)
    mean = torch.stack([x[0].mean(0), x[1, :4].mean(0)])
    outputs = encoder(ids, torch.from_numpy(real).long(), types)
    assert list(outputs) == ["last_hidden_state", "sentence_embedding", "unnormalized_embedding"] == encoder.outputs
    assert_close(outputs["last_hidden_state"], x.masked_fill(~layout.real_BL[..., None], 0))
    assert_close(outputs["sentence_embedding"], mean / mean.norm(dim=1, keepdim=True))
    assert_close(outputs["unnormalized_embedding"], mean)


def test_a_mask_and_types_may_be_left_out() -> None:
    encoder = make_encoder(positions=SinusoidalConfig())
    ids = random_ids(2, 6)
    given = encoder(ids, torch.ones_like(ids), torch.zeros_like(ids))["last_hidden_state"]
    assert torch.equal(encoder(ids)["last_hidden_state"], given)
    other_types = encoder(ids, token_type_ids=torch.ones_like(ids))["last_hidden_state"]
    assert not torch.allclose(other_types, given)


def test_every_layer_gets_the_relative_bias() -> None:
    encoder = make_encoder(relative_bias=LogBuckets(8, 20))
    ids = random_ids(1, 9)
    before = encoder(ids, attentions=True)["attentions"]
    assert isinstance(encoder.relative_bias, RelativeBias)
    encoder.relative_bias.table.weight[:, 1] += noise(8, seed=5)
    after = encoder(ids, attentions=True)["attentions"]
    assert torch.equal(after[:, 0, 0], before[:, 0, 0])  # the first head's bias is the same
    assert not torch.allclose(after[:, 0, 1], before[:, 0, 1])
    for block in encoder.blocks:  # and with both layers reading the same input:
        x, layout = noise(1, 9, 8), padded(np.ones((1, 9), bool))
        assert not torch.allclose(block(x, plan(layout), encoder.relative_bias), block(x, plan(layout)))


@pytest.mark.parametrize(
    ("head", "outputs", "per_token", "shape"),
    [
        (None, ["last_hidden_state"], {"last_hidden_state"}, None),
        (PoolingConfig("cls", False), ["last_hidden_state", "sentence_embedding"], {"last_hidden_state"}, (3, 8)),
        (LabelsConfig(("a", "b"), "sequence"), ["last_hidden_state", "logits"], {"last_hidden_state"}, (3, 2)),
        (
            LabelsConfig(("a", "b"), "token"),
            ["last_hidden_state", "logits"],
            {"last_hidden_state", "logits"},
            (3, 5, 2),
        ),
    ],
)
def test_heads_name_their_answers(
    head: Any, outputs: list[str], per_token: set[str], shape: tuple[int, ...] | None
) -> None:
    encoder = make_encoder(head=head)
    mask = torch.tensor([[1] * 5, [1, 1, 0, 0, 0], [0, 0, 1, 1, 0]])
    answers = encoder(random_ids(3, 5), mask)
    assert list(answers) == encoder.outputs == outputs
    assert encoder.per_token == per_token
    assert answers["last_hidden_state"].shape == (3, 5, 8)
    for name in per_token:
        assert not answers[name][mask == 0].any()
        assert answers[name][mask == 1].any(-1).all()
    if shape is not None:
        assert answers[outputs[1]].shape == shape


def test_nothing_to_encode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^one of input_ids, features and pixel_values must be given$"):
        make_encoder()(attention_mask=torch.ones(1, 3))


@pytest.mark.parametrize("positions", [None, LearnedConfig(LONGEST), SinusoidalConfig()])
def test_a_row_longer_than_the_model_takes_is_refused(positions: Any) -> None:
    encoder = make_encoder(positions=positions)
    assert encoder(random_ids(1, LONGEST))["last_hidden_state"].shape == (1, LONGEST, 8)
    with pytest.raises(ValueError, match=r"^rows of 25 columns are more than the model takes, 24$"):
        encoder(random_ids(1, LONGEST + 1))


# Other inputs


def test_vectors_go_in_as_features() -> None:
    encoder = make_encoder(inputs=VectorsConfig(5), positions=SinusoidalConfig())
    features = noise(2, 7, 5)
    x = encoder.embeddings.inputs.project(features) + encoder.embeddings.positions.table[:7]  # type: ignore[union-attr,operator,index]
    layout = padded(np.ones((2, 7), bool))
    for block in encoder.blocks:
        x = block(x, plan(layout), None)
    assert_close(encoder(features=features)["last_hidden_state"], x)
    assert_close(encoder(features=features.float())["last_hidden_state"], x, 1e-5)  # as requests bring them


def test_ids_are_the_features_of_one_hot_vectors() -> None:
    """Row 5.1: an embedding is a linear layer without bias over one-hot vectors."""
    by_ids = make_encoder(inputs=TokensConfig(20))
    by_vectors = make_encoder(inputs=VectorsConfig(20))
    weights = by_ids.state_dict()
    table = weights.pop("embeddings.inputs.tokens.weight")
    weights |= {"embeddings.inputs.project.weight": table.T, "embeddings.inputs.project.bias": torch.zeros(8)}
    by_vectors.load_state_dict(weights)
    ids = random_ids(2, 7)
    one_hot = torch.eye(20, dtype=torch.float64)[ids]
    assert_close(by_vectors(features=one_hot)["last_hidden_state"], by_ids(ids)["last_hidden_state"])


def test_images_are_patches_behind_a_class_token() -> None:
    encoder = make_encoder(inputs=ImagesConfig(3, 8, 6, 2), max_length=13, positions=LearnedConfig(13))
    pixels = noise(2, 3, 8, 6)
    table = encoder.state_dict()
    kernel = table["embeddings.inputs.project.weight"].reshape(8, 3, 2, 2)
    patches = nn.functional.conv2d(pixels, kernel, table["embeddings.inputs.project.bias"], stride=2)
    x = torch.cat([table["embeddings.inputs.class_token"].expand(2, 1, 8), patches.flatten(2).mT], 1)
    x = x + table["embeddings.positions.table.weight"]
    for block in encoder.blocks:
        x = block(x, plan(padded(np.ones((2, 13), bool))), None)
    assert_close(encoder(pixel_values=pixels)["last_hidden_state"], x)
    assert_close(encoder(features=cut_into_patches(pixels, 2))["last_hidden_state"], x)


def test_a_graph_s_nodes_hear_of_each_other_along_edges_only() -> None:
    """Edges 0 ← 1 ← 2, and 3 apart: after one layer 0 knows of 1, after two of 2, and never of 3."""
    features = noise(1, 4, 5)
    adjacency = torch.eye(4, dtype=torch.int64)[None].clone()
    adjacency[0, 0, 1] = adjacency[0, 1, 2] = 1
    for layers, heard in ((1, {0, 1}), (2, {0, 1, 2}), (3, {0, 1, 2})):
        encoder = make_encoder(AttentionConfig(2, Adjacency()), layers=layers, inputs=VectorsConfig(5))
        before = encoder(features=features, adjacency=adjacency)["last_hidden_state"]
        for node in range(4):
            changed = features.clone()
            changed[0, node] += 1
            after = encoder(features=changed, adjacency=adjacency)["last_hidden_state"]
            assert (not torch.equal(after[0, 0], before[0, 0])) == (node in heard)


def test_a_graph_s_nodes_may_come_in_any_order() -> None:
    encoder = make_encoder(AttentionConfig(2, Adjacency()), inputs=VectorsConfig(5))
    features, edges = noise(1, 6, 5), torch.from_numpy(random_edges(1, 6, seed=2))
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    straight = encoder(features=features, adjacency=edges)["last_hidden_state"]
    moved = encoder(features=features[:, order], adjacency=edges[:, order][:, :, order])["last_hidden_state"]
    assert_close(moved, straight[:, order])


def test_missing_edges_are_named() -> None:
    with pytest.raises(ValueError, match="the input adjacency is missing"):
        make_encoder(AttentionConfig(2, Adjacency()))(random_ids(1, 3))


def test_global_tokens_are_those_of_the_request_or_the_first() -> None:
    encoder = make_encoder(AttentionConfig(2, Window(1) | GlobalMask()), first_tokens_global=2)
    without = make_encoder(AttentionConfig(2, Window(1) | GlobalMask()))
    ids = random_ids(2, 12)
    first_two = (torch.arange(12) < 2).long().expand(2, -1)
    answer = encoder(ids)["last_hidden_state"]
    assert torch.equal(encoder(ids, global_attention_mask=first_two)["last_hidden_state"], answer)
    none = torch.zeros_like(ids)
    assert torch.equal(encoder(ids, global_attention_mask=none)["last_hidden_state"], without(ids)["last_hidden_state"])
    assert not torch.allclose(without(ids)["last_hidden_state"], answer)


def test_a_padded_token_is_not_global() -> None:
    """Whoever reads the first column under a mask finds what a token with a window takes."""
    encoder = make_encoder(AttentionConfig(2, Window(1) | GlobalMask()), head=PoolingConfig("cls", False))
    ids, mask = random_ids(1, 9), torch.tensor([[0, 1, 1, 1, 0, 1, 1, 1, 1]])
    marked = torch.tensor([[1, 0, 1, 0, 1, 0, 0, 0, 0]])
    answers = [encoder(ids, mask, global_attention_mask=each) for each in (marked, marked * mask)]
    for name, answer in answers[0].items():
        assert torch.equal(answer, answers[1][name])


def test_the_encoder_hands_global_tokens_on_by_row() -> None:
    encoder = make_encoder(AttentionConfig(2, Window(1) | GlobalMask()))
    marked = torch.tensor([[0, 1, 0, 1, 1], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]])
    tokens = encoder._global_tokens(marked, torch.ones(3, 5, dtype=torch.bool))
    assert isinstance(tokens, GlobalTokens)
    among = tokens.among(torch.arange(5)).sum(-1)
    assert among.tolist() == marked.tolist()
    assert tokens.slots_BG.shape == (3, 3)
    alone = encoder._global_tokens(torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool))
    assert isinstance(alone, GlobalTokens)
    assert alone.present_BG.tolist() == [[True, False]]


# Padding


@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.parametrize("rule", ["column", "stripped"])
def test_what_stands_under_the_mask_does_not_matter(name: str, rule: Any) -> None:
    """Not by a bit, in float64, at any real token."""
    encoder = make_encoder(ATTENTIONS[name], position_rule=PositionRule(rule), positions=LearnedConfig(LONGEST))
    mask = torch.from_numpy(masks(15)[:5]).long()
    ids, other = random_ids(5, 15), random_ids(5, 15)
    other[mask == 0] = random_ids(1, int((mask == 0).sum()), seed=9)[0]
    assert not torch.equal(ids, other)
    inputs = extras(encoder, 5, 15)
    one, two = (encoder(each, mask, **inputs)["last_hidden_state"] for each in (ids, other))
    assert torch.isfinite(one).all()
    assert torch.equal(one, two)
    changed = ids.clone()
    changed[0, 7] = (changed[0, 7] + 1) % 20  # a control
    assert not torch.allclose(encoder(changed, mask, **inputs)["last_hidden_state"][0], one[0])


@pytest.mark.parametrize("name", ["full", "window", "linear transformer", "performer", "linformer"])
def test_vectors_under_the_mask_do_not_matter_either(name: str) -> None:
    encoder = make_encoder(ATTENTIONS[name], inputs=VectorsConfig(5))
    mask = torch.from_numpy(masks(15)[:5]).long()
    features, other = noise(5, 15, 5), noise(5, 15, 5)
    other[mask == 0] = 1e6
    one, two = (encoder(features=each, attention_mask=mask)["last_hidden_state"] for each in (features, other))
    assert torch.equal(one, two)


# Attention weights


@pytest.mark.parametrize("name", [name for name in ATTENTIONS if name != "linformer"])
@pytest.mark.parametrize("rule", ["column", "stripped"])
def test_attention_weights_come_on_request_and_change_nothing(name: str, rule: Any) -> None:
    encoder = make_encoder(ATTENTIONS[name], position_rule=PositionRule(rule), head=PoolingConfig("mean", True))
    real = masks(15)[:5]
    inputs = {"input_ids": random_ids(5, 15), "attention_mask": torch.from_numpy(real).long()} | extras(encoder, 5, 15)
    plain, outputs = encoder(**inputs), encoder(**inputs, attentions=True)
    assert "attentions" not in plain
    weights = outputs.pop("attentions")
    for each, answer in plain.items():
        assert torch.equal(outputs[each], answer)
    assert weights.shape == (5, 2, 2, 15, 15)
    real_queries = torch.from_numpy(real)[:, None, None, :].expand(5, 2, 2, 15)
    assert not weights[~real_queries].any()
    assert not weights.masked_select(torch.from_numpy(~real)[:, None, None, None, :]).any()
    sums = weights.sum(-1)[real_queries]
    if name == "graph":  # a node whose only edges lead to padding takes nothing
        sums = sums[sums != 0]
    assert_close(sums, torch.ones_like(sums))


def test_the_weights_of_a_layer_are_those_that_it_attends_by() -> None:
    encoder = make_encoder(AttentionConfig(2, Window(3)))
    ids = random_ids(2, 9)
    layout = padded(np.ones((2, 9), bool))
    x = encoder.embeddings({"input_ids": ids, "token_type_ids": torch.zeros_like(ids)}, layout)
    weights = encoder(ids, attentions=True)["attentions"]
    for number, block in enumerate(encoder.blocks):
        attention: Any = block.attention
        seen = block.attention_norm(x)
        values = layout.to_heads(attention.value(seen), 2)
        attended = attention.out(layout.from_heads(weights[:, number] @ values))
        assert_close(attended, attention(seen, plan(layout)))
        x = block(x, plan(layout), None)


def test_linformer_has_no_weights_to_show() -> None:
    encoder = make_encoder(ATTENTIONS["linformer"])
    with pytest.raises(ValueError, match="it has no weights between tokens"):
        encoder(random_ids(1, 4), attentions=True)


# Positions


@pytest.mark.parametrize("name", ["full", "additive", "linear transformer", "performer"])
def test_without_positions_permuted_tokens_get_permuted_answers(name: str) -> None:
    encoder = make_encoder(ATTENTIONS[name])
    order = torch.tensor([4, 0, 6, 2, 5, 3, 1])
    ids, mask = random_ids(1, 7), torch.tensor([[1, 1, 0, 1, 1, 1, 1]])
    straight = encoder(ids, mask)["last_hidden_state"]
    assert_close(encoder(ids[:, order], mask[:, order])["last_hidden_state"], straight[:, order])


WITH_POSITIONS: dict[str, dict[str, Any]] = {
    "learned": {"positions": LearnedConfig(LONGEST)},
    "sinusoids": {"positions": SinusoidalConfig()},
    "rotary": {"attention": ATTENTIONS["rotary"]},
    "relative bias": {"relative_bias": LogBuckets(8, 20)},
}


@pytest.mark.parametrize("name", WITH_POSITIONS)
def test_equal_words_are_told_apart_by_their_positions_alone(name: str) -> None:
    """ "I saw a saw": the two words *saw* can only get different labels where something says where they stand."""
    i, saw, a = 5, 6, 7
    ids = torch.tensor([[i, saw, a, saw]])
    labels = LabelsConfig(("noun", "verb"), "token")
    without = make_encoder(head=labels)(ids)["logits"]
    assert_close(without[0, 1], without[0, 3])
    logits = make_encoder(head=labels, **WITH_POSITIONS[name])(ids)["logits"]
    assert not torch.allclose(logits[0, 1], logits[0, 3], atol=1e-3)


@pytest.mark.parametrize("name", WITH_POSITIONS)
def test_counted_positions_start_behind_the_padding_id(name: str) -> None:
    """The longest row uses the last position, of every kind."""
    changes = WITH_POSITIONS[name] | {"position_rule": PositionRule("counted", 3)}
    if name == "learned":
        changes |= {"positions": LearnedConfig(LONGEST + 4)}
    encoder = make_encoder(**changes)
    ids = random_ids(1, LONGEST).clamp(min=4)
    assert encoder.config.position_rows == LONGEST + 4
    assert torch.isfinite(encoder(ids)["last_hidden_state"]).all()
    if name == "learned":  # the first token stands at position 4
        table = encoder.embeddings.positions.table.weight  # type: ignore[union-attr]
        before = encoder(ids)["last_hidden_state"]
        table[:4] += 1
        assert torch.equal(encoder(ids)["last_hidden_state"], before)
        table[4] += noise(8, seed=7)
        assert not torch.allclose(encoder(ids)["last_hidden_state"], before)


@pytest.mark.parametrize("name", ["window", "global tokens", "graph", "big bird", "longformer"])
def test_stripped_rows_are_as_if_their_left_padding_were_cut_off(name: str) -> None:
    """With all that belongs to columns: positions, edges, global tokens, and the weights that come out."""
    encoder = make_encoder(ATTENTIONS[name], position_rule=PositionRule("stripped"), positions=LearnedConfig(LONGEST))
    ids, inputs = random_ids(1, 20), extras(encoder, 1, 20)
    mask = torch.tensor([[0] * 6 + [1, 1, 0, 1, 1, 1, 1, 1, 0, 1] + [0] * 4])
    long = encoder(ids, mask, attentions=True, **inputs)
    inputs = {key: value[:, 6:, 6:] if key == "adjacency" else value[:, 6:] for key, value in inputs.items()}
    short = encoder(ids[:, 6:], mask[:, 6:], attentions=True, **inputs)
    assert_close(long["last_hidden_state"][:, 6:], short["last_hidden_state"])
    assert not long["last_hidden_state"][:, :6].any()
    assert_close(long["attentions"][..., 6:, 6:], short["attentions"])
    assert not long["attentions"][..., :6, :].any()
    assert not long["attentions"][..., :6].any()


def test_rows_are_stripped_one_by_one() -> None:
    encoder = make_encoder(position_rule=PositionRule("stripped"), positions=LearnedConfig(LONGEST))
    ids = random_ids(3, 8)
    mask = torch.tensor([[0, 0, 1, 1, 1, 0, 0, 0], [1] * 8, [0, 0, 0, 0, 0, 0, 1, 1]])
    together = encoder(ids, mask)["last_hidden_state"]
    for row, start in enumerate((2, 0, 6)):
        alone = encoder(ids[row : row + 1, start:], mask[row : row + 1, start:])["last_hidden_state"]
        assert_close(together[row : row + 1, start:], alone)


# Long rows


def test_long_rows_of_the_encoder_are_those_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past 1,024 columns the reference goes by blocks on its own, and says the same."""
    encoder = make_encoder(AttentionConfig(2, Window(8) | GlobalMask()), layers=1, max_length=1100)
    ids = random_ids(1, 1100)
    mask = (torch.arange(1100) % 5 != 2).long()[None]
    marked = (torch.arange(1100) % 400 == 3).long()[None]
    in_blocks = encoder(ids, mask, global_attention_mask=marked)["last_hidden_state"]
    monkeypatch.setattr("heed.model.attention_plan.DENSE_COLUMNS", 1100)
    assert_close(encoder(ids, mask, global_attention_mask=marked)["last_hidden_state"], in_blocks)
