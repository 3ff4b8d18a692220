"""Who may look at whom, drawn by hand: a row for each query, a column for each key."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from heed.model.attention_config import AttentionConfig
from heed.model.patterns import (
    Adjacency,
    BlockWindow,
    Causal,
    Chunk,
    FirstTokens,
    Full,
    GlobalMask,
    Pattern,
    Random,
    Strided,
    Window,
    all_pairs,
    big_bird,
)
from tests.model.loops import Bools
from tests.model.support import padded, random_edges


def drawn(picture: str) -> list[list[bool]]:
    return [[mark == "x" for mark in line.split()] for line in picture.strip().splitlines()]


def matrix(
    pattern: Pattern, length: int, *, marked: list[int] | None = None, edges: Bools | None = None
) -> list[list[bool]]:
    """The pairs of one row without padding."""
    real_BL = np.ones((1, length), bool)
    marked_BL = None if marked is None else np.isin(np.arange(length), marked)[None]
    layout = padded(real_BL, marked_BL, None if edges is None else edges[None])
    pairs: list[list[bool]] = pattern.allows(all_pairs(layout)).expand(1, 1, length, length)[0, 0].tolist()
    return pairs


FULL = """
    x x x
    x x x
    x x x
"""
WINDOW = """
    x x . . .
    x x x . .
    . x x x .
    . . x x x
    . . . x x
"""
STRIDED = """
    x . . x . . x
    . x . . x . .
    . . x . . x .
    x . . x . . x
    . x . . x . .
    . . x . . x .
    x . . x . . x
"""
STRIDED_NEAR = """
    x . x . .
    . x . x .
    x . x . x
    . x . x .
    . . x . x
"""
CHUNK = """
    x x . . .
    x x . . .
    . . x x .
    . . x x .
    . . . . x
"""
BLOCK_WINDOW = """
    x x x x . .
    x x x x . .
    x x x x x x
    x x x x x x
    . . x x x x
    . . x x x x
"""
CAUSAL = """
    x . . .
    x x . .
    x x x .
    x x x x
"""
FIRST = """
    x x x x
    x x x x
    x x . .
    x x . .
"""
LONGFORMER = """
    x x . x .
    x x x x .
    . x x x .
    x x x x x
    . . . x x
"""
CAUSAL_WINDOW = """
    x . . . .
    x x . . .
    x x x . .
    . x x x .
    . . x x x
"""
CAUSAL_CHUNKS_AND_FIRST = """
    x x x x x
    x x . . .
    x . x . .
    x . x x .
    x . . . x
"""


@pytest.mark.parametrize(
    ("pattern", "picture"),
    [
        (Full(), FULL),
        (Window(1), WINDOW),
        (Strided(3), STRIDED),
        (Strided(2, within=2), STRIDED_NEAR),
        (Strided(2, within=3), STRIDED_NEAR),
        (Chunk(2), CHUNK),
        (BlockWindow(2), BLOCK_WINDOW),
        (BlockWindow(1), WINDOW),
        (Causal(), CAUSAL),
        (FirstTokens(2), FIRST),
        (Window(2) & Causal(), CAUSAL_WINDOW),
        (Causal() & Window(2), CAUSAL_WINDOW),
        ((Chunk(2) & Causal()) | FirstTokens(1), CAUSAL_CHUNKS_AND_FIRST),
    ],
)
def test_a_pattern_is_as_drawn(pattern: Pattern, picture: str) -> None:
    expected = drawn(picture)
    assert matrix(pattern, len(expected)) == expected


def test_a_token_marked_as_global_sees_all_and_is_seen_by_all() -> None:
    assert matrix(Window(1) | GlobalMask(), 5, marked=[3]) == drawn(LONGFORMER)
    assert matrix(Window(1) | GlobalMask(), 5, marked=[]) == drawn(WINDOW)
    assert matrix(Window(1) | GlobalMask(), 5) == drawn(WINDOW)


def test_a_graph_s_edges_are_the_pairs() -> None:
    edges = random_edges(1, 6, seed=0)[0]
    assert matrix(Adjacency(), 6, edges=edges) == edges.tolist()


@pytest.mark.parametrize(
    ("count", "length", "slots"), [(1, 5, {0}), (3, 5, {0, 1, 2}), (3, 2, {0, 1}), (1, 1, {0}), (4, 1, {0})]
)
def test_the_first_tokens_are_named_once_each(count: int, length: int, slots: set[int]) -> None:
    tokens = FirstTokens(count).tokens(padded(np.ones((2, length), bool)))
    assert tokens.slots_BG.shape == (2, max(count, 2))
    for row in range(2):
        named = tokens.slots_BG[row][tokens.present_BG[row]].tolist()
        assert sorted(named) == sorted(slots)


def test_missing_edges_are_named() -> None:
    with pytest.raises(ValueError, match="the input adjacency is missing"):
        matrix(Adjacency(), 3)


RULES: list[tuple[Pattern, Callable[[int, int], bool]]] = [
    (Full(), lambda i, j: True),
    (Window(0), lambda i, j: i == j),
    (Window(4), lambda i, j: abs(i - j) <= 4),
    (Strided(3), lambda i, j: (i - j) % 3 == 0),
    (Strided(3, within=7), lambda i, j: (i - j) % 3 == 0 and abs(i - j) <= 7),
    (Chunk(5), lambda i, j: i // 5 == j // 5),
    (BlockWindow(3, 2), lambda i, j: abs(i // 3 - j // 3) <= 2),
    (Causal(), lambda i, j: j <= i),
    (FirstTokens(3), lambda i, j: min(i, j) < 3),
]


@pytest.mark.parametrize(("pattern", "rule"), RULES)
@pytest.mark.parametrize("length", [1, 2, 5, 23])
def test_a_pattern_is_its_definition(pattern: Pattern, rule: Callable[[int, int], bool], length: int) -> None:
    assert matrix(pattern, length) == [[rule(i, j) for j in range(length)] for i in range(length)]


@pytest.mark.parametrize(("one", "one_rule"), RULES)
@pytest.mark.parametrize(("other", "other_rule"), RULES)
def test_patterns_combine_pair_by_pair(
    one: Pattern, one_rule: Callable[[int, int], bool], other: Pattern, other_rule: Callable[[int, int], bool]
) -> None:
    columns = range(11)
    assert matrix(one | other, 11) == [[one_rule(i, j) or other_rule(i, j) for j in columns] for i in columns]
    assert matrix(one & other, 11) == [[one_rule(i, j) and other_rule(i, j) for j in columns] for i in columns]


RANDOM = Random(2, 4, blocks=30, seed=5)


def blocks_seen(pattern: Random, length: int) -> list[set[int]]:
    """Which blocks of keys each query sees: all of a block's columns, or none."""
    pairs = np.array(matrix(pattern, length))
    seen = []
    for row in pairs:
        blocks = {int(j) // pattern.size for j in np.flatnonzero(row)}
        assert row.tolist() == [j // pattern.size in blocks for j in range(length)]
        seen.append(blocks)
    return seen


@pytest.mark.parametrize("more", [1, 3, 4, 17, 60])
@pytest.mark.parametrize("length", [1, 10, 43, 60])
def test_random_pairs_do_not_depend_on_the_length(length: int, more: int) -> None:
    longer = np.array(matrix(RANDOM, length + more))
    assert matrix(RANDOM, length) == longer[:length, :length].tolist()


def test_all_queries_of_a_block_see_the_same_random_blocks() -> None:
    seen = blocks_seen(RANDOM, 120)
    for query, blocks in enumerate(seen):
        assert blocks == seen[query // 4 * 4]
        assert len(blocks) <= 2
    # Drawn from the first 2 b + 3 blocks: up to the 13th query block all of them lie inside the 30.
    assert all(len(blocks) == 2 for blocks in seen[: 13 * 4])


def test_random_blocks_lie_before_and_after_the_query() -> None:
    seen = blocks_seen(RANDOM, 120)
    assert any(max(blocks) > query // 4 for query, blocks in enumerate(seen[:52]))
    assert any(min(blocks) < query // 4 for query, blocks in enumerate(seen[:52]))


def test_another_seed_draws_other_blocks() -> None:
    assert matrix(RANDOM, 80) == matrix(Random(2, 4, blocks=30, seed=5), 80)
    assert matrix(RANDOM, 80) != matrix(Random(2, 4, blocks=30, seed=6), 80)


def test_a_larger_table_of_random_blocks_draws_the_same() -> None:
    assert matrix(RANDOM, 80) == matrix(Random(2, 4, blocks=300, seed=5), 80)


def test_big_bird_is_neighbours_the_first_block_and_random_ones() -> None:
    near, random = np.array(matrix(BlockWindow(4), 90)), np.array(matrix(RANDOM, 90))
    first = np.array([[i < 4 or j < 4 for j in range(90)] for i in range(90)])
    assert matrix(big_bird(4, 2, 30, seed=5), 90) == (near | first | random).tolist()


CHEAP = [
    Window(0),
    Window(5),
    Window(40),
    Strided(3, within=11),
    Chunk(7),
    Chunk(33),
    BlockWindow(6),
    BlockWindow(5, 3),
    RANDOM,
    Window(3) | Chunk(9),
    Chunk(25) | Chunk(9),  # blocks of 25 cut through chunks of 9
    Window(20) | RANDOM | BlockWindow(6),
    Window(9) & Causal(),
    Chunk(6) & Causal(),
    RANDOM & Window(30),
]


@pytest.mark.parametrize("pattern", CHEAP)
@pytest.mark.parametrize("factor", [1, 2])
def test_the_named_blocks_hold_every_pair(pattern: Pattern, factor: int) -> None:
    assert pattern.block is not None
    size = factor * pattern.block
    assert size % pattern.step == 0
    named = pattern.key_blocks(torch.arange(-(-120 // size)), size).tolist()
    for i, j in np.argwhere(np.array(matrix(pattern, 120))):
        assert j // size in named[i // size]


@pytest.mark.parametrize(
    ("pattern", "reach"),
    [
        (Full(), None),
        (Window(5), 5),
        (Strided(3), None),
        (Strided(3, within=6), 6),
        (Chunk(4), 3),
        (BlockWindow(3), 5),
        (BlockWindow(3, 2), 8),
        (Causal(), None),
        (RANDOM, None),
        (GlobalMask(), None),
        (Window(2) | Window(5), 5),
        (Window(2) | Causal(), None),
        (Window(5) & Window(2), 2),
        (Causal() & Window(2), 2),
        (Causal() & RANDOM, None),
    ],
)
def test_the_reach_is_the_largest_distance(pattern: Pattern, reach: int | None) -> None:
    assert pattern.reach == reach
    if reach is not None:
        assert max(abs(i - j) for i, j in np.argwhere(np.array(matrix(pattern, 40)))) == reach


@pytest.mark.parametrize(
    ("pattern", "needs"),
    [
        (Full(), set()),
        (Window(3) | GlobalMask(), {"global_attention_mask"}),
        (Adjacency() & Causal(), {"adjacency"}),
        (Adjacency() | GlobalMask(), {"adjacency", "global_attention_mask"}),
    ],
)
def test_what_a_pattern_reads_is_named(pattern: Pattern, needs: set[str]) -> None:
    assert pattern.needs == needs
    assert AttentionConfig(2, (Full(), pattern)).needs == needs


def test_a_pattern_drawn_for_so_many_blocks_limits_the_length() -> None:
    assert RANDOM.max_length == 120
    assert (Window(3) | RANDOM).max_length == 120
    assert (RANDOM & Random(1, 4, blocks=10)).max_length == 40
    assert Window(3).max_length is None
    assert AttentionConfig(2, (Full(), Window(3) | RANDOM)).max_length == 120


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Window(-1), "radius must be an integer of at least 0, got -1"),
        (lambda: Window(1.5), "radius must be an integer of at least 0, got 1.5"),  # type: ignore[arg-type]
        (lambda: Strided(0), "stride must be a positive integer, got 0"),
        (lambda: Strided(2, -1), "within must be an integer of at least 0, got -1"),
        (lambda: Chunk(0), "size must be a positive integer, got 0"),
        (lambda: BlockWindow(0), "size must be a positive integer, got 0"),
        (lambda: BlockWindow(4, -1), "radius must be an integer of at least 0, got -1"),
        (lambda: FirstTokens(0), "count must be a positive integer, got 0"),
        (lambda: Random(0, 4, 8), "count must be a positive integer, got 0"),
        (lambda: Random(1, 0, 8), "size must be a positive integer, got 0"),
        (lambda: Random(1, 4, 0), "blocks must be a positive integer, got 0"),
        (lambda: Random(1, 4, 8, -1), "seed must be an integer of at least 0, got -1"),
    ],
)
def test_a_pattern_that_cannot_be_is_refused_by_field(make: Callable[[], Pattern], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        make()
