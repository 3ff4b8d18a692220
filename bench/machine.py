"""What the machine can do at best: the rate of its matrix products, and how many of them a model needs.

Letters: T tokens, D width, F width between the feed-forward layers, t tokens of one request.
"""

import threading
import time
from collections.abc import Iterable

import torch

from heed.model.config import EncoderConfig, FeedForwardConfig
from heed.server.engine.host import usable_cpus

SHAPE = 128, 384, 1536  # of the product: rows of a group, and MiniLM's larger linear layers


def sgemm_rate(seconds: float = 1.0) -> float:
    """Floating-point operations per second and core, one thread on each core, all of them busy."""
    rows, inner, columns = SHAPE
    torch.set_num_threads(1)
    stop = time.perf_counter() + seconds
    counts: list[int] = []

    def multiply() -> None:
        a, b = torch.randn(rows, inner), torch.randn(inner, columns)
        out, count = torch.empty(rows, columns), 0
        while time.perf_counter() < stop:
            for _ in range(20):
                torch.mm(a, b, out=out)
            count += 20
        counts.append(count)

    threads = [threading.Thread(target=multiply) for _ in range(usable_cpus())]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) * 2 * rows * inner * columns / (time.perf_counter() - started) / len(threads)


def encoder_flops(config: EncoderConfig, lengths: Iterable[int]) -> float:
    """Floating-point operations of the matrix products for requests of these lengths: real tokens only, all pairs."""
    tokens = squares = 0
    for length in lengths:
        tokens, squares = tokens + length, squares + length**2
    total = 0
    for layer in config.layers:
        assert isinstance(layer.feed_forward, FeedForwardConfig)
        linear = 4 * config.width**2 + (3 if layer.feed_forward.gated else 2) * config.width * layer.feed_forward.width
        total += 2 * tokens * linear + 2 * 2 * squares * config.width
    return total
