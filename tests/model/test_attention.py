"""Multi-head self-attention against plain loops, and against numbers worked out by hand.

Letters: B batch, L length, D width, N heads, H head width.
"""

from typing import Any

import numpy as np
import pytest
import torch

from heed.model.attention import MultiHeadAttention
from heed.model.attention_config import AttentionConfig
from heed.model.attention_plan import AttentionPlan
from heed.model.layout import GlobalTokens, Padded
from heed.model.linear_attention import LinearTransformer
from heed.model.patterns import (
    Adjacency,
    Causal,
    Chunk,
    FirstTokens,
    Full,
    GlobalMask,
    Pattern,
    Random,
    Strided,
    Window,
)
from heed.model.positions import LogBuckets, RelativeBias
from heed.model.score_functions import Additive, Dot, ScaledDot
from heed.model.softmax import hardmax, softmax
from tests.model import loops
from tests.model.support import (
    allowed_by,
    allowed_where,
    assert_close,
    in_blocks,
    make_attention,
    masks,
    noise,
    packed,
    padded,
    plan,
    random_edges,
    random_mask,
    with_random_weights,
)

SHAPES = [(1, 1, 4, 1), (1, 1, 4, 4), (2, 3, 6, 2), (3, 7, 8, 4), (4, 12, 10, 5), (2, 33, 12, 3)]  # B, L, D, N

# Heads of every kind: patterns, scores, selections, widths.
CONFIGS = {
    "one head": AttentionConfig(1),
    "no bias": AttentionConfig(2, bias=False),
    "no bias but the last": AttentionConfig(2, bias=False, out_bias=True),
    "narrow queries, wide values": AttentionConfig(3, head_width=2, value_width=5),
    "wide queries, narrow values": AttentionConfig(2, head_width=7, value_width=1),
    "unscaled": AttentionConfig(2, score=Dot),
    "additive": AttentionConfig(2, score=Additive, head_width=5),
    "hard": AttentionConfig(2, normalize=hardmax),
    "hard additive": AttentionConfig(2, score=Additive, normalize=hardmax),
    "window": AttentionConfig(2, Window(3)),
    "graph": AttentionConfig(2, Adjacency()),
    "global tokens": AttentionConfig(2, Window(1) | GlobalMask()),
    "intersection": AttentionConfig(2, (Window(4) & Causal()) | FirstTokens(1)),
    "a pattern for each head": AttentionConfig(4, (Window(1), Causal(), Window(1) | GlobalMask(), Strided(3))),
    "neighbouring heads alike": AttentionConfig(4, (Chunk(4), Chunk(4), Full(), Adjacency()), value_width=3),
    "a score for each of unlike heads": AttentionConfig(3, (Full(), Random(1, 4, 10), Full()), Additive, head_width=2),
}


def oracle_of(attention: MultiHeadAttention, config: AttentionConfig) -> tuple[loops.Score, loops.Selection]:
    if config.score is Additive:
        weight_NH = torch.cat([score.weight for score in attention.modules() if isinstance(score, Additive)]).numpy()
        score = loops.additive(weight_NH)
    else:
        score = {Dot: loops.dot, ScaledDot: loops.scaled_dot}[config.score]  # type: ignore[index]
    return score, loops.soft if config.normalize is softmax else loops.hard


@pytest.mark.parametrize(("batch", "length", "width", "heads"), SHAPES)
def test_attention_is_what_loops_compute(batch: int, length: int, width: int, heads: int) -> None:
    attention = make_attention(AttentionConfig(heads), width)
    x = noise(batch, length, width, seed=length)
    real = random_mask(batch, length, seed=length)
    expected, _ = loops.multi_head(attention, x.numpy(), allowed_where(lambda i, j: True, heads, real))
    assert_close(attention(x, plan(padded(real))), expected)
    for aligned in (False, True):
        layout = packed(real, aligned=aligned)
        kept = layout.rows_T, layout.positions
        assert_close(attention(x[kept], plan(layout)), torch.from_numpy(expected)[kept])


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("length", [1, 2, 11, 18])
def test_heads_of_every_kind_are_what_loops_compute(name: str, length: int) -> None:
    config = CONFIGS[name]
    attention = make_attention(config, 8)
    real = masks(length)
    marked = np.random.default_rng(length).random(real.shape) < 0.2
    layout = padded(real, marked & real, random_edges(len(real), length, seed=length))
    x = noise(*real.shape, 8, seed=length)
    expected, weights = loops.multi_head(
        attention, x.numpy(), allowed_by(config.patterns, layout), *oracle_of(attention, config)
    )
    assert_close(attention(x, plan(layout)), expected)
    assert_close(attention.weights(x, plan(layout)), weights)
    tokens = packed(real, marked & real, random_edges(len(real), length, seed=length))
    kept = tokens.rows_T, tokens.positions
    assert_close(attention(x[kept], plan(tokens)), torch.from_numpy(expected)[kept])


@pytest.mark.parametrize("length", [1, 2, 17, 40])
@pytest.mark.parametrize("patterns", [(Full(), Full(), Full()), (Window(2), Window(2), Window(20) | FirstTokens(1))])
def test_a_bias_is_added_to_the_scores_of_its_head(patterns: tuple[Pattern, ...], length: int) -> None:
    config = AttentionConfig(3, patterns)
    attention = make_attention(config, 6)
    bias = with_random_weights(RelativeBias(3, LogBuckets(8, 20), 40), seed=1)
    bucket = LogBuckets(8, 20)
    columns = range(length)
    bias_NLL = np.array(
        [[[float(bias.table.weight[int(bucket(torch.tensor(j - i))), n]) for j in columns] for i in columns]
         for n in range(3)]
    )  # fmt: skip
    real = masks(length)
    layout = padded(real)
    x = noise(*real.shape, 6, seed=2)
    expected, weights = loops.multi_head(attention, x.numpy(), allowed_by(config.patterns, layout), bias_NLL=bias_NLL)
    assert_close(attention(x, plan(layout), bias), expected)
    assert_close(attention(x, in_blocks(layout), bias), expected)
    assert_close(attention.weights(x, plan(layout), bias), weights)


def identity_attention(width: int, **options: Any) -> MultiHeadAttention:
    """One head whose queries, keys and values are the input itself."""
    attention = make_attention(AttentionConfig(1, bias=False, **options), width)
    for layer in (attention.query, attention.key, attention.value, attention.out):
        layer.weight.copy_(torch.eye(width))
    return attention


def test_two_tokens_by_hand() -> None:
    """Q = K = x, V = (2x₁, 4x₂), two orthogonal tokens: each gives itself e^(1/√2) to 1, that is 0.6698 to 0.3302."""
    attention = identity_attention(2)
    attention.value.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 4.0]]))
    x = torch.eye(2, dtype=torch.float64)[None]
    answer = attention(x, plan(padded(np.ones((1, 2), bool))))[0]
    by_hand = [[2 * 0.6697615493266569, 4 * 0.3302384506733431], [2 * 0.3302384506733431, 4 * 0.6697615493266569]]
    assert_close(answer, np.array(by_hand), 1e-14)


def test_weights_of_known_scores_by_hand() -> None:
    """Keys are one-hot, so that a query's values are its scores: ln 1, ln 2 and ln 5 share 1 : 2 : 5."""
    attention = identity_attention(3, score=Dot)
    attention.query.weight.copy_(
        torch.tensor([[1.0, 2.0, 5.0], [2.0, 2.0, 2.0], [1.0, 1.0, 8.0]], dtype=torch.float64).log().T
    )
    x = torch.eye(3, dtype=torch.float64)[None]
    layout = padded(np.ones((1, 3), bool))
    by_hand = [[1 / 8, 2 / 8, 5 / 8], [1 / 3, 1 / 3, 1 / 3], [1 / 10, 1 / 10, 8 / 10]]
    assert_close(attention.weights(x, plan(layout))[0, 0], np.array(by_hand), 1e-14)
    assert_close(attention(x, plan(layout))[0], np.array(by_hand), 1e-14)  # values are one-hot, too
    masked = padded(np.array([[True, False, True]]))
    by_hand = [[1 / 6, 0, 5 / 6], [1 / 2, 0, 1 / 2], [1 / 9, 0, 8 / 9]]
    assert_close(attention(x, plan(masked))[0], np.array(by_hand), 1e-14)


def test_the_textbook_row_as_scores() -> None:
    attention = identity_attention(3, score=Dot)
    attention.query.weight.copy_(torch.tensor([[2.0, 1.0, 0.1]] * 3).T)
    weights = attention.weights(torch.eye(3, dtype=torch.float64)[None], plan(padded(np.ones((1, 3), bool))))
    np.testing.assert_allclose(weights[0, 0], [[0.659, 0.242, 0.099]] * 3, rtol=0, atol=5e-4)


def test_a_width_of_512_divides_into_8_heads_of_64() -> None:
    attention = AttentionConfig(8).build(512, 16)
    for layer in (attention.query, attention.key, attention.value):
        assert layer.weight.unflatten(0, (8, 64)).shape == (8, 64, 512)  # type: ignore[no-untyped-call]
    x = torch.arange(2 * 3 * 512.0).reshape(2, 3, 512)
    layout = padded(np.ones((2, 3), bool))
    by_head = layout.to_heads(x, attention.heads)
    assert by_head.shape == (2, 8, 3, 64)
    assert torch.equal(by_head[1, 2, 0], x[1, 0, 128:192])
    assert torch.equal(layout.from_heads(by_head), x)


def test_queries_keys_and_values_have_matrices_of_their_own() -> None:
    """A change of one of them changes the answer, and no two of them are one."""
    attention = make_attention(AttentionConfig(2), 8)
    layout = padded(np.ones((1, 5), bool))
    x = noise(1, 5, 8)
    before = attention(x, plan(layout))
    for layer in (attention.query, attention.key, attention.value, attention.out):
        kept = layer.weight.clone()
        layer.weight.add_(0.1 * noise(*layer.weight.shape, seed=1))
        assert not torch.allclose(attention(x, plan(layout)), before)
        layer.weight.copy_(kept)
        assert torch.equal(attention(x, plan(layout)), before)


def plans(real: list[bool]) -> list[AttentionPlan]:
    """One row in every form, whose slots are its columns."""
    real_BL = np.array([real])
    return [plan(padded(real_BL)), in_blocks(padded(real_BL))]


@pytest.mark.parametrize("name", CONFIGS)
def test_what_a_padded_token_holds_does_not_matter(name: str) -> None:
    attention = make_attention(CONFIGS[name], 8)
    x, other = noise(6, 20, 8, seed=1), noise(6, 20, 8, seed=1)
    real = masks(20)
    other[torch.from_numpy(~real)] = 1e6 * noise(int((~real).sum()), 8, seed=2)
    marked = np.zeros_like(real)
    marked[:, [0, 7]] = real[:, [0, 7]]
    layout = padded(real, marked, random_edges(6, 20, seed=3))
    for each in (plan(layout), in_blocks(layout)):
        assert torch.equal(attention(x, each)[real], attention(other, each)[real])
    changed = x.clone()
    changed[0, 2] += 1  # a control: a real token does matter
    assert not torch.allclose(attention(x, plan(layout))[0], attention(changed, plan(layout))[0])


@pytest.mark.parametrize("name", CONFIGS)
def test_a_row_without_a_real_key_attends_to_nothing(name: str) -> None:
    """Not NaN, and not the mean of all values: zeros, which the output layer turns into its bias."""
    attention = make_attention(CONFIGS[name], 8)
    real = np.array([[False] * 3, [True, True, False]])
    layout = padded(real, np.zeros_like(real), np.ones((2, 3, 3), bool))
    nothing = torch.zeros(8) if attention.out.bias is None else attention.out.bias
    x = noise(2, 3, 8, seed=2)
    for each in (plan(layout), in_blocks(layout)):
        answer = attention(x, each)
        assert torch.equal(answer[0], nothing.double().expand(3, 8))
        assert torch.isfinite(answer).all()
    assert not attention.weights(x, plan(layout))[0].any()
    alone = padded(real[1:], np.zeros((1, 3), bool), np.ones((1, 3, 3), bool))
    assert_close(
        attention(x, plan(layout))[1], attention(x[1:], plan(alone))[0], 1e-14
    )  # its neighbour is none the worse


def test_a_query_without_an_edge_takes_nothing() -> None:
    attention = make_attention(AttentionConfig(2, Adjacency()), 8)
    edges = np.array([[[True, True, False], [False, False, False], [False, True, True]]])
    real = np.array([[True, True, False]])
    answer = attention(noise(1, 3, 8), plan(padded(real, None, edges)))
    assert torch.equal(answer[0, 1], attention.out.bias)
    assert not torch.allclose(answer[0, 0], attention.out.bias)


@pytest.mark.parametrize("name", [name for name, config in CONFIGS.items() if config.normalize is softmax])
def test_weights_sum_to_1_over_the_real_keys_and_make_the_answer(name: str) -> None:
    config = CONFIGS[name]
    attention = make_attention(config, 8)
    real = masks(15)[:5]
    marked = np.zeros_like(real)
    marked[:, 4] = real[:, 4]
    layout = padded(real, marked, random_edges(5, 15, seed=3))
    x = noise(5, 15, 8)
    weights = attention.weights(x, plan(layout))
    assert weights.shape == (5, config.heads, 15, 15)
    some_key = torch.from_numpy(allowed_by(config.patterns, layout)).any(-1)
    assert_close(weights.sum(-1), some_key.double())
    assert not weights.masked_select(torch.from_numpy(~real)[:, None, None, :]).any()
    values = layout.to_heads(attention.value(x), config.heads)
    assert_close(attention.out(layout.from_heads(weights @ values)), attention(x, plan(layout)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_unscaled_products_stay_finite(dtype: torch.dtype) -> None:
    attention = make_attention(AttentionConfig(2, score=Dot), 64)
    x = (30 * noise(2, 40, 64)).to(dtype)
    attention = attention.to(dtype)
    layout = padded(random_mask(2, 40, seed=0))
    weights = attention.weights(x, plan(layout))
    query = layout.to_heads(attention.query(x), 2)
    assert float((query @ layout.to_heads(attention.key(x), 2).mT).abs().max()) > 1e4  # large indeed
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=0, atol=1e-6)
    assert torch.isfinite(attention(x, plan(layout))).all()


def test_scaling_makes_a_difference_of_the_root_of_the_head_width() -> None:
    """Queries twice as large without 1/√4 are the same as queries with it, four times as large."""
    scaled, unscaled = (make_attention(AttentionConfig(1, score=score), 4) for score in (ScaledDot, Dot))
    x, layout = noise(1, 6, 4), padded(np.ones((1, 6), bool))
    assert not torch.allclose(scaled(x, plan(layout)), unscaled(x, plan(layout)))
    scaled.query.weight.mul_(2)
    scaled.query.bias.mul_(2)
    assert_close(scaled(x, plan(layout)), unscaled(x, plan(layout)), 1e-14)


@pytest.mark.parametrize("pattern", [Full(), Window(1) | FirstTokens(1)])
def test_hard_attention_picks_the_first_of_equal_keys(pattern: Pattern) -> None:
    """Scores are exact integers: tokens 1, 2 and 4 are the same, and best for all; values are the columns."""
    attention = identity_attention(2, pattern=pattern, score=Dot, normalize=hardmax)
    attention.query.weight.copy_(torch.tensor([[0.0, 0.0], [0.0, 1.0]]))  # only the second value scores, 1 for all
    attention.key.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    attention.value.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    for scores, expected in [
        ([3.0, 5.0, 5.0, 0.0, 5.0], {"full": [1, 1, 1, 1, 1], "local": [1, 1, 1, 2, 4]}),
        ([5.0, 3.0, 5.0, 5.0, 4.0], {"full": [0, 0, 0, 0, 0], "local": [0, 0, 0, 0, 0]}),
    ]:
        x = torch.tensor([[[score, 1.0] for score in scores]], dtype=torch.float64)
        for each in plans([True] * 5):
            best = attention.weights(x, each)[0, 0].argmax(-1).tolist()
            assert best == expected["full" if pattern == Full() else "local"]
            taken = attention(x, each)[0, :, 1].tolist()  # the value of the best key, its own score
            assert taken == [scores[key] for key in best]


@pytest.mark.parametrize(
    ("options", "projections", "out"),
    [({}, True, True), ({"bias": False}, False, False), ({"bias": False, "out_bias": True}, False, True)],
)
def test_projections_have_biases_or_not(options: dict[str, Any], projections: bool, out: bool) -> None:
    attention = AttentionConfig(2, **options).build(8, 16)
    assert [layer.bias is not None for layer in (attention.query, attention.key, attention.value)] == [projections] * 3
    assert (attention.out.bias is not None) == out


def test_heads_need_not_divide_the_width_if_theirs_is_given() -> None:
    with pytest.raises(ValueError, match=r"^width 8 does not divide into 3 heads; give head_width$"):
        AttentionConfig(3).build(8, 16)
    attention = AttentionConfig(3, head_width=5).build(8, 16)
    assert attention.out.weight.shape == (8, 15)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": 0}, "heads must be a positive integer, got 0"),
        ({"heads": True}, "heads must be a positive integer, got True"),
        ({"heads": 2.0}, "heads must be a positive integer, got 2.0"),
        ({"heads": None}, "heads must be a positive integer, got None"),
        ({"head_width": 0}, "head_width must be a positive integer, got 0"),
        ({"value_width": -1}, "value_width must be a positive integer, got -1"),
        ({"pattern": (Full(),)}, "1 patterns for 2 heads; give one, or one for each head"),
        ({"pattern": (Full(),) * 3}, "3 patterns for 2 heads; give one, or one for each head"),
        *(
            ({"approximation": LinearTransformer} | extra, "an approximation stands in place of pattern, score and .*")
            for extra in ({"pattern": Window(3)}, {"score": Dot}, {"normalize": hardmax})
        ),
    ],
)
def test_a_bad_field_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        AttentionConfig(**({"heads": 2} | fields))


@pytest.mark.parametrize(
    ("config", "aligned", "block_sparse"),
    [
        (AttentionConfig(2), False, False),
        (AttentionConfig(2, score=Additive, normalize=hardmax), False, False),
        (AttentionConfig(2, Window(3)), True, True),
        (AttentionConfig(2, Causal()), True, False),
        (AttentionConfig(2, (Full(), Window(3))), True, True),
        (AttentionConfig(2, approximation=LinearTransformer), True, False),
    ],
)
def test_what_attention_says_of_itself(config: AttentionConfig, aligned: bool, block_sparse: bool) -> None:
    assert (config.aligned, config.block_sparse) == (aligned, block_sparse)
    assert config.has_weights


@pytest.mark.parametrize(
    "pattern", [Full(), Window(3), Window(3) | FirstTokens(1), Adjacency(), GlobalMask() | Causal()]
)
def test_a_few_queries_at_a_time_answer_as_all_together(pattern: Pattern) -> None:
    torch.manual_seed(0)
    attention = AttentionConfig(2, pattern).build(8, 40).double()
    real = torch.rand(2, 40) < 0.8
    layout = Padded(
        real,
        torch.arange(40).expand(2, -1),
        torch.rand(2, 40, 40) < 0.2,
        GlobalTokens(torch.tensor([[3, 9], [0, 0]]), torch.tensor([[True, True], [True, False]])),
    )
    x = torch.randn(2, 40, 8, dtype=torch.float64)
    together = attention(x, plan(layout))
    assert (attention(x, AttentionPlan(layout, query_chunk=7)) - together).abs().max() < 1e-12
