"""Chooses, by measuring on this very machine, how a model's requests are grouped."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from heed.bundle import Manifest
from heed.bundle.packing import Arrays, TokenSequence, cut_into_patches
from heed.server.engine.graphs import Answer
from heed.server.engine.host import usable_cpus
from heed.server.engine.model import Model
from heed.server.engine.session import CPU
from heed.server.requests.rows import row_of
from heed.server.scheduling.batching import BatchingPolicy, OneByOne, SimilarLengths

TYPICAL_LENGTH = 24
GROUP_TOKENS = {CPU: (64, 128, 256)}
GPU_GROUP_TOKENS = (512, 2048, 8192, 32768)
WINDOW = {CPU: 32}  # entries that a group is chosen from
GPU_WINDOW = 1024
WORTHWHILE = 0.97  # a group must cost less than this share of its sequences one by one
WIDE = 0.9  # a run on all cores must take less than this share of one on a single core
ROUNDS = 2
WIDE_ROUNDS = 16  # at most: others on this machine may take a core for a moment, and what is found here stays
LONG = 200  # tokens: long enough for every operator to be shared out among threads
LENGTHS = [1, 1, 2, 3, 5, 8, 13, 16, 17, 21, 31, 32, 33, 47, 64, 80]  # tokens of what groups are tried with


@dataclass(frozen=True)
class Warmup:
    """What was found."""

    strategy: BatchingPolicy
    bit_equal: bool  # the same request gave the same bits alone and in groups
    difference: float  # the largest absolute difference that a group made


def random_tokens(manifest: Manifest, length: int, random: np.random.Generator) -> Arrays:
    """What goes into the first layer of any model: `[length]` ids or `[length, F]` floats."""
    if manifest.image:
        size = manifest.image
        pixels = random.normal(size=(1, size.channels, size.height, size.width)).astype(np.float32)
        return {"features": cut_into_patches(pixels, size.patch)[0]}
    for spec in manifest.inputs:
        if spec.name == "features":
            return {"features": random.normal(size=(length, spec.shape[-1])).astype(np.float32)}
    tables = {"input_ids": manifest.limits.vocabulary, "token_type_ids": manifest.limits.token_types}
    return {name: random.integers(0, rows, length) for name, rows in tables.items() if rows}


def random_sequence(
    manifest: Manifest, length: int, random: np.random.Generator, columns: int | None = None
) -> TokenSequence:
    """A sequence of `length` tokens, all edges and marks at random.

    Args:
        columns: where it ends in its full row, with holes before; where `length` ends if left out.
    """
    tokens = random_tokens(manifest, columns or length, random)
    columns = len(next(iter(tokens.values())))  # an image has its own number
    real = np.ones(columns, np.bool_)
    if columns > length and not manifest.image:
        real[random.permutation(columns - 1)[: columns - length]] = False
    edges = random.random((columns, columns)) < 0.5 if manifest.takes("adjacency") else None
    marks = random.random(columns) < 0.1 if manifest.takes("global_attention_mask") else None
    return row_of(manifest, tokens, real, edges, marks)


def _samples(model: Model, random: np.random.Generator) -> list[TokenSequence]:
    """Sequences of many lengths, and a few tokens far apart for each graph that serves longer spans."""
    manifest = model.manifest
    longest = manifest.limits.length
    samples = [random_sequence(manifest, min(length, longest), random) for length in LENGTHS]
    if manifest.aligned:
        spans = [min(step + more, longest) for step in model.graphs.steps for more in (1, 40)]
        samples += [random_sequence(manifest, min(16, span), random, span) for span in spans]
    return samples


def _difference(alone: Answer, grouped: Answer) -> float:
    return max(float(np.abs(alone[name] - grouped[name]).max()) for name in grouped)


def _compare_groups(model: Model, random: np.random.Generator) -> tuple[bool, float]:
    """Whether groups change bits, over lengths from 1 up in groups of 2 and more, or what else is asked for."""
    sequences = _samples(model, random)
    orders = [random.permutation(len(sequences))[:size] for size in (len(sequences), 8, 3, 2)]
    groups = [*map(list, orders), *([index] for index in range(len(sequences)))]
    runs = [(group, way) for way in model.graphs.ways for group in groups]
    with ThreadPoolExecutor(usable_cpus()) as pool:  # a start waits for this: the largest ones begin first
        answers = list(pool.map(lambda run: model.run([sequences[index] for index in run[0]], run[1]), runs))
    alone = [answer for (answer,) in answers[len(orders) : len(groups)]]
    equal, difference = True, 0.0
    for (group, _), together in zip(runs, answers, strict=True):
        for index, grouped in zip(group, together, strict=True):
            equal &= all(np.array_equal(alone[index][name], grouped[name]) for name in grouped)
            difference = max(difference, _difference(alone[index], grouped))
    return equal, difference


def _seconds(model: Model, group: Sequence[TokenSequence], alone: bool = False) -> float:
    started = time.perf_counter()
    model.run(group, model.graphs.ways[-1], alone)
    return time.perf_counter() - started


def _try_multi_threaded(model: Model, threads: int, random: np.random.Generator) -> None:
    """Leaves the model wide if that is faster for a lone request, and gives the same bits."""
    model.open_multi_threaded(threads)
    longest = model.manifest.limits.length
    for member in [*_samples(model, random)[::4], random_sequence(model.manifest, min(longest, LONG), random)]:
        (narrow,), (wide,) = model.run([member]), model.run([member], alone=True)
        if not all(np.array_equal(narrow[name], wide[name]) for name in narrow):
            return model.close_multi_threaded()
    lone = [random_sequence(model.manifest, min(longest, TYPICAL_LENGTH), random)]
    on_one = on_all = np.inf
    for number in range(WIDE_ROUNDS):
        on_one, on_all = min(on_one, _seconds(model, lone)), min(on_all, _seconds(model, lone, alone=True))
        if number > 0 and on_all <= WIDE * on_one:
            return
    model.close_multi_threaded()


def _choose(model: Model, threads: int, random: np.random.Generator) -> BatchingPolicy:
    """The group size whose tokens cost least; one by one unless a group is clearly cheaper.

    All threads measure side by side: when many ask, they share caches and memory, too.
    """
    length = min(model.manifest.limits.length, TYPICAL_LENGTH)
    sizes = GROUP_TOKENS.get(model.session.provider, GPU_GROUP_TOKENS)
    lone = [random_sequence(model.manifest, length, random)]
    length = len(lone[0])
    groups = [
        [random_sequence(model.manifest, length, random) for _ in range(max(2, size // length))] for size in sizes
    ]

    def costs(_: int) -> list[float]:
        """Seconds for a sequence by itself and in each group."""
        return [_seconds(model, group) / len(group) for group in (lone, *groups)]

    model.run(lone)
    with ThreadPoolExecutor(threads) as pool:
        rounds = list(pool.map(costs, range(max(ROUNDS, threads))))
    alone, *grouped = map(min, zip(*rounds, strict=True))
    best = min(grouped)
    size = sizes[grouped.index(best)]
    window = WINDOW.get(model.session.provider, GPU_WINDOW)
    return SimilarLengths(size, window) if best < alone * WORTHWHILE else OneByOne()


def warm_up(model: Model, threads: int = 1) -> Warmup:
    """Runs the model on random sequences, finds its grouping, and whether a lone request shall take all `threads`.

    In float32 on the CPU an answer must not depend on its neighbours in a group by a single bit. onnxruntime promises
    nothing of the kind, so it is checked here, and a machine where it does not hold serves one by one. In other
    precisions and on other providers the largest difference is measured and told.
    """
    random = np.random.default_rng(0)
    threads = threads if model.session.provider == CPU else 1
    if threads > 1:
        _try_multi_threaded(model, threads, random)
    bit_equal, difference = _compare_groups(model, random)
    if (model.precision, model.session.provider) == ("fp32", CPU) and not bit_equal:
        return Warmup(OneByOne(), bit_equal, difference)
    return Warmup(_choose(model, threads, random), bit_equal, difference)
