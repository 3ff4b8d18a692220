"""Attention of linear cost, by approximation, against loops and against what it approximates.

Letters: B batch, L length, N heads, H head width, R random features.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from heed.model.attention_config import AttentionConfig
from heed.model.linear_attention import LinearTransformer, Linformer, Performer, orthogonal_features
from tests.model import loops
from tests.model.loops import Floats
from tests.model.support import assert_close, make_attention, masks, noise, packed, padded, plan, with_random_weights

SHAPES = [(1, 1, 2), (2, 1, 4), (7, 3, 4), (20, 2, 6)]  # L, N, H
APPROXIMATIONS: dict[str, Callable[[int, int], Any]] = {
    "linear transformer": LinearTransformer,
    "performer": partial(Performer, features=32),
    "linformer": partial(Linformer, rank=5, max_length=64),
}


def elu_plus_1(x: Floats) -> Floats:
    return np.array([value + 1 if value > 0 else np.exp(value) for value in x])


def inputs(length: int, heads: int, width: int, value_width: int) -> tuple[Tensor, Tensor, Tensor]:
    return (
        noise(6, heads, length, width, seed=1),
        noise(6, heads, length, width, seed=2),
        noise(6, heads, length, value_width, seed=3),
    )


@pytest.mark.parametrize(("length", "heads", "width"), SHAPES)
def test_the_linear_transformer_is_what_loops_compute(length: int, heads: int, width: int) -> None:
    query, key, value = inputs(length, heads, width, 3)
    real = masks(length)
    ours = LinearTransformer(heads, width)(query, key, value, plan(padded(real)))
    assert_close(ours, loops.kernel_attention(elu_plus_1, query.numpy(), key.numpy(), value.numpy(), real))


@pytest.mark.parametrize(("length", "heads", "width"), SHAPES)
def test_the_performer_is_what_loops_compute(length: int, heads: int, width: int) -> None:
    """Without the stabiliser, which cancels: features `exp(w·x - |x|²/2)`, of queries and keys over the fourth root."""
    query, key, value = inputs(length, heads, width, 3)
    real = masks(length)
    performer = Performer(heads, width, features=32).double()
    projection = performer.projection.detach().numpy()

    def features(x: Floats) -> Floats:
        scaled = x / width**0.25
        return np.array([np.exp(float(w @ scaled) - float(scaled @ scaled) / 2) for w in projection])

    expected = loops.kernel_attention(features, query.numpy(), key.numpy(), value.numpy(), real)
    assert_close(performer(query, key, value, plan(padded(real))).detach(), expected)


@pytest.mark.parametrize(("length", "heads", "width"), SHAPES)
def test_linformer_is_exact_attention_to_projected_keys_and_values(length: int, heads: int, width: int) -> None:
    query, key, value = inputs(length, heads, width, 3)
    real = masks(length)
    linformer = with_random_weights(Linformer(heads, width, rank=5, max_length=30))
    ours = linformer(query, key, value, plan(padded(real)))
    by_key, by_value = linformer.key_projection.numpy(), linformer.value_projection.numpy()
    for b, n in np.ndindex(6, heads):
        columns = np.flatnonzero(real[b])
        keys = by_key[:, columns] @ key[b, n].numpy()[columns]
        values = by_value[:, columns] @ value[b, n].numpy()[columns]
        scores = np.exp(query[b, n].numpy() @ keys.T / np.sqrt(width))
        assert_close(ours[b, n], scores / scores.sum(1, keepdims=True) @ values)


def test_two_tokens_of_the_linear_transformer_by_hand() -> None:
    """φ(0) = 1, φ(1) = 2, φ(-ln 2) = 1/2: query 0 weighs the keys 2 to 1/2, whatever its own feature is."""
    key = torch.tensor([1.0, -np.log(2.0)], dtype=torch.float64).reshape(1, 1, 2, 1)
    query = torch.tensor([0.0, 5.0], dtype=torch.float64).reshape(1, 1, 2, 1)
    value = torch.tensor([10.0, 20.0], dtype=torch.float64).reshape(1, 1, 2, 1)
    layout = padded(np.ones((1, 2), bool))
    linear = LinearTransformer(1, 1)
    assert_close(linear(query, key, value, plan(layout))[0, 0], np.array([[12.0], [12.0]]))
    assert_close(linear.weights(query, key, plan(layout))[0, 0], np.array([[0.8, 0.2], [0.8, 0.2]]))


def exact_weights(query: Tensor, key: Tensor) -> Tensor:
    scale: float = query.shape[-1] ** -0.5
    return (query @ key.mT * scale).softmax(-1)


def mean_error(features: int, seeds: int = 12, length: int = 20, width: int = 8) -> float:
    """How far a Performer's weights are from exact ones, on average over draws of features and inputs."""
    errors = []
    for seed in range(seeds):
        query, key = 0.5 * noise(1, 1, length, width, seed=2 * seed), noise(1, 1, length, width, seed=2 * seed + 1)
        performer = Performer(1, width, features, seed).double()
        weights = performer.weights(query, key, plan(padded(np.ones((1, length), bool))))
        errors.append(float((weights - exact_weights(query, key)).abs().mean()))
    return sum(errors) / seeds


def test_more_features_bring_a_performer_closer_to_exact_attention() -> None:
    """Four times the features, half the error, as with any average of independent draws; without end."""
    errors = [mean_error(features) for features in (16, 64, 256, 1024, 4096, 16384)]
    assert all(more < 0.75 * fewer for fewer, more in pairwise(errors))
    assert errors[-1] < errors[0] / 10


def test_a_performer_scales_by_the_root_of_the_head_width() -> None:
    """A control: it approximates `exp(q·k / √H)`, not `exp(q·k)`."""
    query, key = 0.5 * noise(1, 1, 20, 8), 0.5 * noise(1, 1, 20, 8, seed=1)
    weights = Performer(1, 8, 16384).double().weights(query, key, plan(padded(np.ones((1, 20), bool))))
    scaled = float((weights - exact_weights(query, key)).abs().mean())
    unscaled = float((weights - (query @ key.mT).softmax(-1)).abs().mean())
    assert scaled < unscaled / 5


@pytest.mark.parametrize(("count", "width"), [(8, 8), (20, 8), (5, 8), (64, 16)])
def test_features_are_orthogonal_in_blocks_of_the_head_width(count: int, width: int) -> None:
    features = orthogonal_features(count, width, seed=1)
    assert features.shape == (count, width)
    for block in features.double().split(width):  # type: ignore[no-untyped-call]
        products = block @ block.T
        assert float((products - products.diagonal().diag()).abs().max()) < 1e-4
        assert len(set(products.diagonal().tolist())) == len(block)  # each of a length of its own


def test_features_are_as_long_as_normal_vectors_and_point_anywhere() -> None:
    """As normal vectors: each value has mean 0 and spread 1, in each row of a block."""
    drawn = torch.stack([orthogonal_features(8, 8, seed) for seed in range(2000)])
    assert float(drawn.mean(0).abs().max()) < 5 / 2000**0.5
    assert float((drawn.square().mean(0) - 1).abs().max()) < 0.25
    assert float(drawn.square().sum(-1).mean()) == pytest.approx(8, rel=0.03)


def test_features_are_drawn_from_the_seed_and_kept_with_the_weights() -> None:
    assert torch.equal(Performer(2, 8, 32, seed=1).projection, Performer(2, 8, 32, seed=1).projection)
    assert not torch.equal(Performer(2, 8, 32, seed=1).projection, Performer(2, 8, 32, seed=2).projection)
    attention = AttentionConfig(2, approximation=partial(Performer, features=32)).build(16, 64)
    other = AttentionConfig(2, approximation=partial(Performer, features=32, seed=1)).build(16, 64)
    other.load_state_dict(attention.state_dict())
    x, layout = noise(1, 9, 16).float(), padded(np.ones((1, 9), bool))
    assert torch.equal(attention(x, plan(layout)), other(x, plan(layout)))


@pytest.mark.parametrize("name", APPROXIMATIONS)
@pytest.mark.parametrize("length", [1, 2, 11, 30])
def test_what_a_padded_token_holds_does_not_matter(name: str, length: int) -> None:
    """Not by a bit, though it is larger by far than anything real, and a Performer's stabiliser is a maximum."""
    attention = make_attention(AttentionConfig(2, approximation=APPROXIMATIONS[name], value_width=3), 8)
    real = masks(length)
    x, other = noise(6, length, 8, seed=1), noise(6, length, 8, seed=1)
    other[torch.from_numpy(~real)] = 1e3 * noise(int((~real).sum()), 8, seed=2)
    layout = padded(real)
    answer = attention(x, plan(layout))
    assert torch.isfinite(answer).all()
    assert torch.equal(answer[real], attention(other, plan(layout))[real])
    changed = x.clone()
    changed[0, length // 2] += 1  # a control: a real token does matter
    assert not torch.allclose(answer[0], attention(changed, plan(layout))[0])


@pytest.mark.parametrize("name", APPROXIMATIONS)
def test_more_padding_changes_nothing(name: str) -> None:
    attention = make_attention(AttentionConfig(2, approximation=APPROXIMATIONS[name]), 8)
    x = noise(1, 40, 8)
    short = attention(x[:, :9], plan(padded(np.ones((1, 9), bool))))
    long = attention(x, plan(padded(np.arange(40)[None] < 9)))
    assert_close(long[:, :9], short)


@pytest.mark.parametrize("name", APPROXIMATIONS)
def test_the_form_without_padding_gives_the_same_answer(name: str) -> None:
    attention = make_attention(AttentionConfig(2, approximation=APPROXIMATIONS[name]), 8)
    real = masks(13)
    x = noise(6, 13, 8)
    layout = packed(real)
    kept = layout.rows_T, layout.columns_T
    assert_close(attention(x[kept], plan(layout)), attention(x, plan(padded(real)))[kept])


@pytest.mark.parametrize("name", APPROXIMATIONS)
def test_a_row_without_a_real_key_attends_to_nothing(name: str) -> None:
    attention = make_attention(AttentionConfig(2, approximation=APPROXIMATIONS[name]), 8)
    answer = attention(noise(2, 3, 8), plan(padded(np.array([[False] * 3, [True, True, False]]))))
    assert torch.equal(answer[0], attention.out.bias.expand(3, 8))
    assert torch.isfinite(answer).all()


@pytest.mark.parametrize("name", ["linear transformer", "performer"])
@pytest.mark.parametrize("length", [1, 2, 17])
def test_weights_sum_to_1_over_real_keys_and_make_the_answer(name: str, length: int) -> None:
    mechanism = APPROXIMATIONS[name](2, 4).double().requires_grad_(False)
    query, key, value = inputs(length, 2, 4, 3)
    real = masks(length)
    weights = mechanism.weights(query, key, plan(padded(real)))
    assert_close(weights.sum(-1)[:5], np.ones((5, 2, length)))
    assert not weights[5].any()
    assert not weights.masked_select(torch.from_numpy(~real)[:, None, None, :]).any()
    assert_close(weights @ value, mechanism(query, key, value, plan(padded(real))))


def test_linformer_has_no_weights_between_tokens() -> None:
    config = AttentionConfig(2, approximation=APPROXIMATIONS["linformer"])
    assert not config.has_weights
    assert AttentionConfig(2, approximation=LinearTransformer).has_weights
    assert AttentionConfig(2, approximation=APPROXIMATIONS["performer"]).has_weights
    with pytest.raises(ValueError, match="it has no weights between tokens"):
        make_attention(config, 8).weights(noise(1, 3, 8), plan(padded(np.ones((1, 3), bool))))


def test_linformer_has_a_fixed_maximum_length() -> None:
    config = AttentionConfig(2, approximation=APPROXIMATIONS["linformer"])
    assert config.max_length == 64
    assert AttentionConfig(2, approximation=LinearTransformer).max_length is None
    attention = make_attention(config, 8)
    assert attention(noise(1, 64, 8), plan(padded(np.ones((1, 64), bool)))).shape == (1, 64, 8)


@pytest.mark.parametrize("name", ["linear transformer", "performer"])
def test_large_inputs_stay_finite(name: str) -> None:
    mechanism = APPROXIMATIONS[name](2, 16).requires_grad_(False)
    query, key, value = (30 * each.float() for each in inputs(20, 2, 16, 3))
    answer = mechanism(query, key, value, plan(padded(masks(20))))
    assert torch.isfinite(answer).all()
    assert answer[:5].any(-1).all()  # a mean of values, not nothing


def test_large_equal_keys_are_weighed_equally() -> None:
    """Whatever their size: a query that finds no feature in common with any key must still take their mean."""
    key = torch.full((1, 1, 4, 16), 40.0)
    query = -key
    value = noise(1, 1, 4, 3).float()
    answer = Performer(1, 16)(query, key, value, plan(padded(np.ones((1, 4), bool))))
    np.testing.assert_allclose(answer[0, 0].detach(), value[0, 0].mean(0).expand(4, 3), rtol=0, atol=1e-5)
