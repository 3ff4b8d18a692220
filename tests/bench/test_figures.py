import json
import math
from pathlib import Path

import pytest

from bench.figures import Figure, Target, as_json, of_lower_quartile, of_median, table
from bench.machine import encoder_flops
from bench.plots import draw
from heed.model.config import AttentionConfig, EncoderConfig, FeedForwardConfig, LayerConfig, NormConfig, TokensConfig


def test_a_figure_is_the_median_or_the_lower_quartile_and_shows_its_spread() -> None:
    values = [1.0, 4.0, 2.0, 8.0, 6.0]
    assert (of_median("a", values).value, of_median("a", values).spread) == (4.0, "1.00 … 8.00")
    assert of_lower_quartile("a", values).value == 2.0
    assert of_lower_quartile("a", [3.0]).value == 3.0


@pytest.mark.parametrize(
    ("target", "reached", "missed"), [(Target(1.3), 1.3, 1.29), (Target(1.1, at_most=True), 1.1, 1.11)]
)
def test_a_target_is_reached_or_not(target: Target, reached: float, missed: float) -> None:
    assert target.reached(reached)
    assert not target.reached(missed)
    assert not target.reached(math.nan)
    assert "✗" in Figure("a", missed, target=target).mark


def test_figures_are_shown_written_and_drawn(tmp_path: Path) -> None:
    figures = [Figure("rate", 1.5, "1.4 … 1.6", Target(1.3)), Figure("plain", 2.0), Figure("bits", 0, target=Target(0))]
    assert table(figures).row_count == 3
    assert json.loads(json.dumps(as_json(figures)))[0]["target"] == {"limit": 1.3, "at_most": False}
    draw(figures, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_operations_are_those_of_the_products_over_real_tokens() -> None:
    layer = LayerConfig(AttentionConfig(heads=2), FeedForwardConfig(16), NormConfig())
    config = EncoderConfig(inputs=TokensConfig(vocabulary=9), width=8, layers=(layer,) * 3, max_length=9)
    by_hand = 0
    for length in (1, 5):
        projections, feed_forward, attention = 4 * 8 * 8 * length, 2 * 8 * 16 * length, 2 * length * length * 8
        by_hand += 3 * 2 * (projections + feed_forward + attention)
    assert encoder_flops(config, [1, 5]) == by_hand
