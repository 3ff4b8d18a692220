"""Chooses how a model's rows are batched, by measuring on this very machine."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from heed.bundle import Manifest
from heed.bundle.sequence_packing import Answer, Arrays, TokenSequence, cut_into_patches
from heed.server.engine.host import usable_cpus
from heed.server.engine.model import Model
from heed.server.engine.session import CPU
from heed.server.requests.preprocess import Preprocessor
from heed.server.scheduling.batching import OneByOne, SimilarLengths
from heed.server.scheduling.model_queue import BatchingPolicy

TYPICAL_LENGTH = 24
BATCH_TOKENS = {CPU: (64, 128, 256)}
GPU_BATCH_TOKENS = (512, 2048, 8192, 32768)
WINDOW = {CPU: 32}  # entries that a batch is chosen from
GPU_WINDOW = 1024
BATCHING_PAYS = 0.97  # a batch must cost less than this share of its rows one by one
MULTI_THREADED_PAYS = 0.9  # a run on all cores must take less than this share of one on a single core
ROUNDS = 2
MULTI_THREADED_ROUNDS = 16  # at most: others on this machine may take a core for a moment, and what is found here stays
LONG = 200  # tokens: long enough for every operator to be shared out among threads
LENGTHS = [1, 1, 2, 3, 5, 8, 13, 16, 17, 21, 31, 32, 33, 47, 64, 80]  # tokens of the rows that batches are tried with


@dataclass(frozen=True)
class Warmup:
    """How a model's rows are batched, and what batches change."""

    policy: BatchingPolicy
    bit_equal: bool  # the same row gave the same bits alone and in batches
    difference: float  # the largest absolute difference that a batch made


def random_tokens(manifest: Manifest, length: int, random: np.random.Generator) -> Arrays:
    """Random inputs of the first layer: `[length]` ids or `[length, F]` floats."""
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
    """A row of `length` tokens, with random edges and global tokens.

    Args:
        columns: the length of the full row, with holes; `length` if left out.
    """
    tokens = random_tokens(manifest, columns or length, random)
    columns = len(next(iter(tokens.values())))  # an image has its own number
    real = np.ones(columns, np.bool_)
    if columns > length and not manifest.image:
        real[random.permutation(columns - 1)[: columns - length]] = False
    edges = random.random((columns, columns)) < 0.5 if manifest.takes("adjacency") else None
    marks = random.random(columns) < 0.1 if manifest.takes("global_attention_mask") else None
    return Preprocessor(manifest).make_row(tokens, real, edges, marks)


def _samples(model: Model, random: np.random.Generator) -> list[TokenSequence]:
    """Rows of many lengths, and a few tokens far apart for each graph of longer spans."""
    manifest = model.manifest
    longest = manifest.limits.length
    samples = [random_sequence(manifest, min(length, longest), random) for length in LENGTHS]
    if manifest.aligned:
        spans = [min(limit + more, longest) for limit in model.graphs.span_limits for more in (1, 40)]
        samples += [random_sequence(manifest, min(16, span), random, span) for span in spans]
    return samples


def _equal(one: Answer, other: Answer) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def _difference(alone: Answer, batched: Answer) -> float:
    both = alone.keys() & batched.keys()
    return max((float(np.abs(alone[name] - batched[name]).max()) for name in both), default=0.0)


def _compare_batches(model: Model, random: np.random.Generator) -> tuple[bool, float]:
    """Whether batches leave bits as they are, and the largest difference: for lengths from 1 up, batches of 2 rows and
    more, and each set of outputs."""
    rows = _samples(model, random)
    orders = [random.permutation(len(rows))[:size] for size in (len(rows), 8, 3, 2)]
    batches = [*map(list, orders), *([index] for index in range(len(rows)))]
    runs = [(batch, outputs) for outputs in model.graphs.output_sets for batch in batches]
    with ThreadPoolExecutor(usable_cpus()) as pool:  # a start waits for this: the largest ones begin first
        answers = list(pool.map(lambda run: model.graphs.run([rows[index] for index in run[0]], run[1]), runs))
    alone = [answer for (answer,) in answers[len(orders) : len(batches)]]
    equal, difference = True, 0.0
    for (batch, outputs), together in zip(runs, answers, strict=True):
        for index, batched in zip(batch, together, strict=True):
            asked = {name: alone[index][name] for name in alone[index] if not outputs or name in outputs}
            equal &= _equal(asked, batched)
            difference = max(difference, _difference(asked, batched))
    return equal, difference


def _seconds(model: Model, rows: Sequence[TokenSequence], exclusive: bool = False) -> float:
    started = time.perf_counter()
    model.graphs.run(rows, model.graphs.output_sets[-1], exclusive)
    return time.perf_counter() - started


def _try_multi_threaded(model: Model, threads: int, random: np.random.Generator) -> None:
    """Leaves the multi-threaded session open if it is faster for a lone row, and gives the same bits."""
    model.graphs.open_multi_threaded(threads)
    longest = model.manifest.limits.length
    for row in [*_samples(model, random)[::4], random_sequence(model.manifest, min(longest, LONG), random)]:
        (on_one_thread,), (on_all_threads,) = model.graphs.run([row]), model.graphs.run([row], exclusive=True)
        if not _equal(on_one_thread, on_all_threads):
            return model.graphs.close_multi_threaded()
    lone = [random_sequence(model.manifest, min(longest, TYPICAL_LENGTH), random)]
    on_one = on_all = np.inf
    for number in range(MULTI_THREADED_ROUNDS):
        on_one, on_all = min(on_one, _seconds(model, lone)), min(on_all, _seconds(model, lone, exclusive=True))
        if number > 0 and on_all <= MULTI_THREADED_PAYS * on_one:
            return
    model.graphs.close_multi_threaded()


def _choose_policy(model: Model, threads: int, random: np.random.Generator) -> BatchingPolicy:
    """The batch size whose tokens cost least; one by one unless a batch is clearly cheaper.

    All threads measure at the same time: under load they share caches and memory, too.
    """
    length = min(model.manifest.limits.length, TYPICAL_LENGTH)
    sizes = BATCH_TOKENS.get(model.session.provider, GPU_BATCH_TOKENS)
    lone = [random_sequence(model.manifest, length, random)]
    length = len(lone[0])
    batches = [
        [random_sequence(model.manifest, length, random) for _ in range(max(2, size // length))] for size in sizes
    ]

    def costs(_: int) -> list[float]:
        """Seconds for a row by itself and in each batch."""
        return [_seconds(model, rows) / len(rows) for rows in (lone, *batches)]

    model.graphs.run(lone)
    with ThreadPoolExecutor(threads) as pool:
        rounds = list(pool.map(costs, range(max(ROUNDS, threads))))
    alone, *batched = map(min, zip(*rounds, strict=True))
    best = min(batched)
    size = sizes[batched.index(best)]
    window = WINDOW.get(model.session.provider, GPU_WINDOW)
    return SimilarLengths(size, window) if best < alone * BATCHING_PAYS else OneByOne()


def warm_up(model: Model, threads: int = 1) -> Warmup:
    """Runs the model on random rows, and finds its batching policy and whether a lone row is computed by all `threads`.

    In float32 on the CPU the other rows of a batch must not change a single bit of an answer. onnxruntime does not
    promise that, so it is checked here, and a machine where it does not hold computes one row at a time. In other
    precisions and on other providers the largest difference is measured and reported.
    """
    random = np.random.default_rng(0)
    threads = threads if model.session.provider == CPU else 1
    if threads > 1:
        _try_multi_threaded(model, threads, random)
    bit_equal, difference = _compare_batches(model, random)
    if (model.precision, model.session.provider) == ("fp32", CPU) and not bit_equal:
        return Warmup(OneByOne(), bit_equal, difference)
    return Warmup(_choose_policy(model, threads, random), bit_equal, difference)
