import dataclasses
from functools import partial
from typing import Any

import pytest

from heed.model import EncoderConfig
from heed.model.attention_config import AttentionConfig
from heed.model.config import LayerConfig, LearnedConfig, SinusoidalConfig
from heed.model.embeddings import ImagesConfig, TokensConfig, VectorsConfig
from heed.model.feed_forward import FeedForwardConfig
from heed.model.linear_attention import LinearTransformer, Linformer
from heed.model.norms import NormConfig
from heed.model.patterns import Adjacency, Full, GlobalMask, Random, Window
from heed.model.positions import LogBuckets, PositionRule
from heed.model.score_functions import Additive


def layer(heads: int = 3, **options: Any) -> LayerConfig:
    return LayerConfig(AttentionConfig(heads, **options), FeedForwardConfig(16))


GOOD = EncoderConfig(TokensConfig(10, token_types=2), 12, (layer(),), 8, positions=LearnedConfig(8))
BAD_PADDING_IDS: list[Any] = [10, -1, None, 1.0]


@pytest.mark.parametrize("field", ["width", "max_length"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "4", True, None])
def test_a_size_that_is_no_positive_integer_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{field} must be a positive integer, got {value!r}$"):
        dataclasses.replace(GOOD, **{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": ()}, "layers must hold at least one layer"),
        ({"first_tokens_global": -1}, "first_tokens_global must be an integer of at least 0, got -1"),
        *(
            ({"position_rule": PositionRule("column", value)}, f"padding_id {value!r} is outside the vocabulary of 10")
            for value in BAD_PADDING_IDS
        ),
        ({"positions": LearnedConfig(7)}, "7 positions are too few for 8 columns that are counted from 0"),
        (
            {"position_rule": PositionRule("counted", 1)},
            "8 positions are too few for 8 columns that are counted from 2",
        ),
        (
            {"inputs": VectorsConfig(4), "position_rule": PositionRule("counted")},
            "position_rule counted goes by token ids, and the inputs are none",
        ),
        (
            {"inputs": ImagesConfig(1, 4, 4, 2)},
            "max_length must be 5: the patches and the class token",
        ),
        (
            {"layers": (layer(), layer(2)), "relative_bias": LogBuckets()},
            "relative_bias is shared by all layers, so they must have the same number of heads",
        ),
        (
            {"layers": (layer(), layer(approximation=LinearTransformer)), "relative_bias": LogBuckets()},
            "relative_bias is added to scores, and an approximation has none",
        ),
    ],
)
def test_fields_that_cannot_be_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        dataclasses.replace(GOOD, **changes)


@pytest.mark.parametrize("rows", [0, -1, "8", True])
def test_a_table_of_positions_has_rows(rows: Any) -> None:
    with pytest.raises(ValueError, match=f"^rows must be a positive integer, got {rows!r}$"):
        LearnedConfig(rows)


@pytest.mark.parametrize(
    ("attention", "limit"),
    [
        ({"score": Additive}, 1024),
        ({"approximation": partial(Linformer, rank=4, max_length=64)}, 64),
        ({"pattern": (Full(), Full(), Window(2) | Random(1, 4, blocks=12))}, 48),
    ],
)
def test_a_row_longer_than_attention_takes_is_refused(attention: dict[str, Any], limit: int) -> None:
    config = EncoderConfig(TokensConfig(10), 12, (layer(), layer(**attention)), limit)
    assert config.max_length == limit
    with pytest.raises(ValueError, match=f"^max_length {limit + 1} is more than the attention takes, {limit}$"):
        dataclasses.replace(config, max_length=limit + 1)


def test_the_counted_rule_leaves_room_up_to_the_padding_id() -> None:
    config = dataclasses.replace(GOOD, position_rule=PositionRule("counted", 6), max_length=1)
    assert config.first_position == 7
    assert config.position_rows == 8
    assert GOOD.first_position == 0
    assert GOOD.position_rows == 8


@pytest.mark.parametrize(
    ("changes", "aligned", "block_sparse", "needs"),
    [
        ({}, False, False, set()),
        ({"positions": SinusoidalConfig()}, False, False, set()),
        ({"layers": (layer(), layer(rotary_base=100.0))}, False, False, set()),
        ({"relative_bias": LogBuckets()}, True, False, set()),
        ({"layers": (layer(), layer(pattern=Window(2)))}, True, True, set()),
        ({"layers": (layer(pattern=Adjacency()),)}, True, False, {"adjacency"}),
        (
            {"layers": (layer(pattern=Window(2) | GlobalMask()), layer(pattern=Adjacency()))},
            True,
            True,
            {"global_attention_mask", "adjacency"},
        ),
        ({"layers": (layer(approximation=LinearTransformer),)}, True, False, set()),
    ],
)
def test_what_a_model_says_of_itself(
    changes: dict[str, Any], aligned: bool, block_sparse: bool, needs: set[str]
) -> None:
    config = dataclasses.replace(GOOD, **changes)
    assert (config.aligned, config.block_sparse, config.needs) == (aligned, block_sparse, frozenset(needs))


def test_configs_are_frozen_and_equal_by_what_they_hold() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        GOOD.width = 24  # type: ignore[misc]
    assert dataclasses.replace(GOOD) == GOOD
    assert dataclasses.replace(GOOD, embedding_norm=NormConfig()) != GOOD
