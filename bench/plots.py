"""A picture of the figures that have something to reach."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure as Canvas

from bench.figures import Figure

GOOD, BAD = "#3b7d5c", "#b5543c"


def draw(figures: Sequence[Figure], path: Path) -> None:
    """One bar for each figure with a target: how far it is from it, where 1 is just there and more is better."""
    shown = [figure for figure in figures if figure.target and figure.target.limit]
    canvas = Canvas(figsize=(10, 0.42 * len(shown) + 1), layout="constrained")
    axes = canvas.subplots()
    for place, figure in enumerate(shown):
        assert figure.target
        share = figure.value / figure.target.limit
        share = 1 / share if figure.target.at_most and share else share
        axes.barh(place, share, color=GOOD if share >= 1 else BAD)
        axes.text(0.02, place, f"{figure.value:.3g}, {figure.target}", va="center", color="white", fontsize=8)
    axes.set_yticks(range(len(shown)), [figure.name for figure in shown], fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel("how much of what is meant is reached")
    axes.spines[["top", "right"]].set_visible(False)
    canvas.savefig(path, dpi=120)
