"""Draws patterns: a dot where a query (row) may look at a key (column)."""

from pathlib import Path

import numpy as np
import torch

from heed.model.layout import GlobalTokens, Padded
from heed.model.patterns import (
    Adjacency,
    Causal,
    Chunk,
    FirstTokens,
    Full,
    GlobalMask,
    Pattern,
    Strided,
    Window,
    all_pairs,
    big_bird,
)

LENGTH = 32
PATTERNS: dict[str, Pattern] = {
    "Full()": Full(),
    "Window(3)": Window(3),
    "Strided(4)": Strided(4),
    "Strided(4, within=12)": Strided(4, within=12),
    "Chunk(8)": Chunk(8),
    "Causal()": Causal(),
    "Window(3) & Causal()": Window(3) & Causal(),
    "FirstTokens(2)": FirstTokens(2),
    "Window(3) | FirstTokens(1)": Window(3) | FirstTokens(1),
    "Window(3) | GlobalMask()": Window(3) | GlobalMask(),
    "big_bird(4, random=1, blocks=8)": big_bird(4, random=1, blocks=8),
    "Adjacency()": Adjacency(),
}


def matrix(pattern: Pattern, length: int = LENGTH) -> np.ndarray:
    """True where row i may look at column j, `[L, L]`; with two global tokens and a ring with chords as the graph."""
    node = torch.arange(length)
    distance = (node[:, None] - node).abs()
    edges = torch.isin(distance, torch.tensor([1, length - 1, length // 2]))
    layout = Padded(
        real_BL=torch.ones(1, length, dtype=torch.bool),
        positions=node[None],
        adjacency_BLL=edges[None],
        global_tokens=GlobalTokens(torch.tensor([[5, 20]]), torch.tensor([[True, True]])),
    )
    return pattern.allows(all_pairs(layout)).expand(1, 1, length, length)[0, 0].numpy()


def draw(path: Path, patterns: dict[str, Pattern]) -> None:
    """All of them in a grid."""
    import matplotlib.pyplot as plt

    columns = 4
    rows = -(-len(patterns) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.4 * columns, 2.6 * rows), layout="constrained")
    for axis, (title, pattern) in zip(axes.flat, patterns.items(), strict=False):
        axis.imshow(matrix(pattern), cmap="Blues", vmin=0, vmax=1.3, interpolation="nearest")
        axis.set_title(title, fontsize=8, family="monospace")
        axis.set_xticks([])
        axis.set_yticks([])
    axes[0, 0].set_ylabel("query i")
    axes[0, 0].set_xlabel("key j")
    figure.savefig(path)
    plt.close(figure)


if __name__ == "__main__":
    target = Path("build/patterns.svg")
    target.parent.mkdir(exist_ok=True)
    draw(target, PATTERNS)
    print(target)
