"""What the tests of the model share: random weights and inputs, masks of every kind, and layouts made of them.

Letters: B batch, L length.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from heed.bundle.manifest import PositionRule
from heed.bundle.sequence_packing import pack, token_sequence
from heed.model import Encoder, load_checkpoint
from heed.model.attention import MultiHeadAttention
from heed.model.attention_config import AttentionConfig
from heed.model.attention_plan import AttentionPlan, plan_for_padded_rows
from heed.model.layout import GlobalTokens, Layout, Packed, Padded
from heed.model.patterns import Pattern, all_pairs
from tests import oracle
from tests.model.loops import Bools, Floats

Module = TypeVar("Module", bound=nn.Module)


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal, in float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def with_random_weights(module: Module, seed: int = 0) -> Module:
    """In float64, every learned weight and bias from a normal distribution, so that none can go unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.double().parameters():
        if parameter.requires_grad:
            parameter.data = 0.5 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
    return module.eval().requires_grad_(False)


def make_attention(config: AttentionConfig, width: int, max_length: int = 128, seed: int = 0) -> MultiHeadAttention:
    return with_random_weights(config.build(width, max_length), seed)


def masks(length: int) -> Bools:
    """Without padding, padded right, padded left, with holes, with one real token, with none: `[6, L]`."""
    real = np.ones((6, length), bool)
    real[1, length // 2 + 1 :] = False
    real[2, : length // 2] = False
    real[3, ::3] = length == 1
    real[4] = np.arange(length) == length // 3
    real[5] = False
    return real


def random_mask(batch: int, length: int, seed: int) -> Bools:
    """Holes anywhere, and a real token in every row."""
    generator = np.random.default_rng(seed)
    real = generator.random((batch, length)) < 0.6
    real[np.arange(batch), generator.integers(0, length, batch)] = True
    return real


def random_edges(batch: int, length: int, seed: int) -> Bools:
    return np.random.default_rng(seed).random((batch, length, length)) < 0.4


def global_tokens(marked_BL: Bools) -> GlobalTokens:
    """The marked columns of each row, and places without a token after them."""
    columns = [np.flatnonzero(row).tolist() for row in marked_BL]
    count = max(2, *map(len, columns))
    filled = [row + [0] * (count - len(row)) for row in columns]
    holds = [[True] * len(row) + [False] * (count - len(row)) for row in columns]
    return GlobalTokens(torch.tensor(filled), torch.tensor(holds))


def padded(real_BL: Bools, marked_BL: Bools | None = None, edges_BLL: Bools | None = None) -> Padded:
    return Padded(
        torch.from_numpy(real_BL),
        torch.arange(real_BL.shape[1]).expand(real_BL.shape),
        None if edges_BLL is None else torch.from_numpy(edges_BLL),
        None if marked_BL is None else global_tokens(marked_BL),
    )


def plan(layout: Layout) -> AttentionPlan:
    """The encoder's own plan for padded rows; all pairs for tokens end to end."""
    return plan_for_padded_rows(layout) if isinstance(layout, Padded) else AttentionPlan(layout)


def in_blocks(layout: Layout) -> AttentionPlan:
    """Blockwise, however short the rows are."""
    return AttentionPlan(layout, blockwise=True)


def packed(
    real_BL: Bools,
    marked_BL: Bools | None = None,
    edges_BLL: Bools | None = None,
    *,
    aligned: bool = True,
) -> Packed:
    """The layout without padding. A token's column is its position."""
    batch, length = real_BL.shape
    members = [
        token_sequence(
            PositionRule(kind="column"),
            {"input_ids": np.zeros(length, np.int64)},
            real_BL[row],
            None if edges_BLL is None else edges_BLL[row],
            None if marked_BL is None else marked_BL[row],
        )
        for row in range(batch)
    ]
    feeds = {name: torch.from_numpy(array) for name, array in pack(members, aligned).items()}
    return Packed(
        feeds["slots"],
        feeds["rows"],
        feeds["columns"],
        feeds["real"],
        feeds["position_ids"],
        feeds.get("adjacency"),
        GlobalTokens(feeds["globals"], feeds["globals_real"]) if "globals" in feeds else None,
    )


def allowed_by(patterns: tuple[Pattern, ...], layout: Padded) -> Bools:
    """The pairs that each head may look at, real keys only: `[B, N, L, L]`."""
    batch, length = layout.real_BL.shape
    pairs = all_pairs(layout)
    allowed = [pattern.allows(pairs).expand(batch, 1, length, length) for pattern in patterns]
    return (torch.cat(allowed, 1) & layout.real_BL[:, None, None, :]).numpy()


def allowed_where(rule: Callable[[int, int], bool], heads: int, real_BL: Bools) -> Bools:
    """The same, of a rule over columns."""
    batch, length = real_BL.shape
    allowed = np.zeros((batch, heads, length, length), bool)
    for b, n, i, j in np.ndindex(allowed.shape):
        allowed[b, n, i, j] = rule(i, j) and real_BL[b, j]
    return allowed


def assert_close(ours: Tensor, expected: Floats | Tensor, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(ours.numpy(), np.asarray(expected), rtol=0, atol=tolerance)


def real_states(encoder: Encoder, length: int) -> Tensor:
    """The hidden states of real tokens in float64, `[T, D]`, of rows with padding of every kind."""
    mask = oracle.padded(length)
    with torch.no_grad():
        states: Tensor = encoder.double()(oracle.random_ids(encoder.config.vocabulary, mask), mask)["last_hidden_state"]
    return states[mask.bool()]


def assert_states_equal(folder: Path, network: str, length: int) -> None:
    """Those of a checkpoint are what `transformers` answers to the same rows."""
    encoder, mask = load_checkpoint(folder).encoder, oracle.padded(length)
    ids = oracle.random_ids(encoder.config.vocabulary, mask)
    theirs = oracle.ask(folder, network, input_ids=ids, attention_mask=mask)
    assert oracle.error(real_states(encoder, length), theirs[mask.bool()]) < oracle.BUDGET
