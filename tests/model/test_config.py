import dataclasses

import pytest

from model import EncoderConfig, PoolingConfig

GOOD = EncoderConfig(vocabulary=10, positions=8, token_types=2, width=12, heads=3, layers=1, feed_forward=16)
SIZES = ["vocabulary", "positions", "token_types", "width", "heads", "layers", "feed_forward"]


@pytest.mark.parametrize("field", SIZES)
@pytest.mark.parametrize("value", [0, -1, 1.5, "4", True, None])
def test_a_size_that_is_no_positive_integer_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{field} must be a positive integer, got {value!r}$"):
        dataclasses.replace(GOOD, **{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 5}, "width 12 does not divide into 5 heads"),
        ({"activation": "mish"}, "activation 'mish' is none of gelu, gelu_tanh, relu, silu"),
        ({"position_rule": "rotary"}, "position_rule 'rotary' is none of column, counted"),
        ({"norm_epsilon": 0}, "norm_epsilon must lie between 0 and 1, got 0"),
        ({"norm_epsilon": -1e-12}, "norm_epsilon must lie between 0 and 1, got -1e-12"),
        ({"norm_epsilon": 1}, "norm_epsilon must lie between 0 and 1, got 1"),
        ({"norm_epsilon": "1e-12"}, "norm_epsilon must lie between 0 and 1, got '1e-12'"),
        ({"norm_epsilon": float("nan")}, "norm_epsilon must lie between 0 and 1, got nan"),
        ({"padding_id": 10}, "padding_id 10 is outside the vocabulary of 10"),
        ({"padding_id": -1}, "padding_id -1 is outside the vocabulary of 10"),
        ({"padding_id": None}, "padding_id None is outside the vocabulary of 10"),
        ({"position_rule": "counted", "padding_id": 7}, "8 positions leave no room after padding id 7"),
    ],
)
def test_a_bad_field_is_refused_by_name(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        dataclasses.replace(GOOD, **changes)  # type: ignore[arg-type]


def test_the_counted_rule_may_leave_room_for_one_token() -> None:
    assert dataclasses.replace(GOOD, position_rule="counted", padding_id=6).max_length == 1
    assert GOOD.max_length == 8


@pytest.mark.parametrize("mode", ["mean_sqrt_len", "", "CLS"])
def test_an_unknown_pooling_mode_is_refused(mode: str) -> None:
    with pytest.raises(ValueError, match=f"pooling mode '{mode}' is none of cls, mean, max"):
        PoolingConfig(mode, unit_length=True)  # type: ignore[arg-type]


def test_configs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        GOOD.width = 24  # type: ignore[misc]
