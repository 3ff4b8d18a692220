"""Memory under a long mixed load: `python -m bench.soak --minutes 60`.

A few callers with pauses ask the real all-MiniLM-L6-v2 for everything: requests of all workloads, embeddings, hidden
states, attention weights. The server's memory is looked at every few seconds; the medians of six parts of the time
stand side by side, where that of the first is 1. Exit code 1 if a later one is more than GROWTH times the first, or a
request failed.
"""

import asyncio
import random
import sys
import time
from collections import Counter
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
import uvloop
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.processes import Served, served
from bench.served import OUTPUTS, Work, prepare, work
from heed.client import AsyncClient, CallError
from heed.load.workloads import SEED

CALLERS, PAUSE = 6, 0.15  # seconds between an answer and the next request, on average
SHARES = {"sentences": 6, "queries": 6, "documents": 1, "mixed": 2}
RARE = {"sentences": 0.02, "queries": 0.02}  # of them ask for attention weights
EVERYTHING = 0.08  # of all ask for hidden states
PARTS = 6
GROWTH = 1.05


async def ask(client: AsyncClient, works: dict[str, Work], choice: random.Random) -> None:
    """One request of any kind."""
    (name,) = choice.choices(list(SHARES), list(SHARES.values()))
    outputs = list(OUTPUTS)
    if choice.random() < RARE.get(name, 0.0):
        outputs = ["attentions"]
    elif choice.random() < EVERYTHING:
        outputs = ["last_hidden_state", *OUTPUTS]
    await client.infer(choice.choice(works[name].requests), outputs, truncate=True)


async def load(
    server: Served, works: dict[str, Work], seconds: float, progress: Progress
) -> tuple[list[float], Counter[str]]:
    """The server's memory in bytes, looked at a hundred times for each part, and what came of the requests."""
    choice, done, memory = random.Random(SEED), Counter[str](), list[float]()
    until = time.monotonic() + seconds

    async def caller(client: AsyncClient) -> None:
        while time.monotonic() < until:
            try:
                await ask(client, works, choice)
                done["answered"] += 1
            except CallError as error:
                done[error.code.name] += 1
            await asyncio.sleep(choice.expovariate(1 / PAUSE))

    async def watch() -> None:
        for _ in progress.track(range(PARTS * 100), description="mixed load"):
            await asyncio.sleep(seconds / PARTS / 100)
            memory.append(server.tree.memory())

    async with AsyncClient(server.address, server.model) as client:
        await asyncio.gather(watch(), *(caller(client) for _ in range(CALLERS)))
    return memory, done


def main(minutes: Annotated[float, typer.Option(min=0.1, help="How long the load lasts.")] = 60.0) -> None:
    """Keep a mixed load up for long, and see whether the server's memory grows."""
    out, err = Console(width=140, highlight=False), Console(file=sys.stderr)
    with TemporaryDirectory() as folder, Progress(console=err, transient=True) as progress:
        subject = prepare(Path(folder), ())
        works = {name: work(subject, name) for name in SHARES}
        with served(subject.bundle) as server:
            memory, done = uvloop.run(load(server, works, 60 * minutes, progress))
    size = len(memory) // PARTS
    medians = [median(memory[part * size : (part + 1) * size]) for part in range(PARTS)]
    table = Table("part", "median, the first = 1", "highest", box=None, pad_edge=False)
    for part, value in enumerate(medians):
        highest = max(memory[part * size : (part + 1) * size])
        table.add_row(str(part + 1), f"{value / medians[0]:.3f}", f"{highest / medians[0]:.3f}")
    out.print(table, f"\n{minutes:g} minutes, {dict(done)}")
    raise typer.Exit(0 if max(medians) <= GROWTH * medians[0] and set(done) == {"answered"} else 1)


if __name__ == "__main__":
    typer.run(main)
