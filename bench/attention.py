"""What the length costs: `scripts/bench attention`.

One layer of 12 heads, as exported and as served, over longer and longer rows: all pairs, against the forms that cost
linear time and memory. Time and peak memory of each, how far the blockwise form is from the dense masked one, and the
slope of log time over log length, which is 1 where cost is linear. Every measurement runs in a process of its own.

Letters: L length, D width, N heads.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

HEADS, WIDTH, RADIUS = 12, 384, 64
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
LONGEST_FULL = 8192  # all pairs of 12 heads at 16k take 12 GiB for the scores alone
COMPARED = 2048  # the length at which the blockwise form is compared with the dense one
REPEATS = 5
# The largest slopes that count as linear. Time: what lies above 1 is the caches' doing, which a short row still fits
# into; the linear layers, which know nothing of attention, take a third more for each token of a long row, too.
LINEAR_TIME, LINEAR_MEMORY = 1.15, 1.05
BUDGET = 1e-5
FORMS = ("all pairs", "window", "chunks", "Longformer")

console = Console(highlight=False)


@dataclass(frozen=True)
class Cost:
    """What one form costs at one length."""

    form: str
    length: int
    seconds: list[float]
    peak_bytes: int  # above what the process held before its first run

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))


def export_form(form: str, folder: Path) -> None:
    """`blockwise.onnx` and, where it is something else, `dense.onnx`."""
    import torch

    from heed.export.torch_to_onnx import export_graph
    from heed.model import Encoder
    from heed.model.config import (
        AttentionConfig,
        EncoderConfig,
        FeedForwardConfig,
        LayerConfig,
        LongformerConfig,
        VectorsConfig,
    )
    from heed.model.patterns import Chunk, Full, Window

    attention: dict[str, AttentionConfig | LongformerConfig] = {
        "all pairs": AttentionConfig(HEADS, Full()),
        "window": AttentionConfig(HEADS, Window(RADIUS)),
        "chunks": AttentionConfig(HEADS, Chunk(2 * RADIUS)),
        "Longformer": LongformerConfig(HEADS, RADIUS),
    }
    torch.manual_seed(0)
    layer = LayerConfig(attention[form], FeedForwardConfig(4 * WIDTH))
    encoder = Encoder(EncoderConfig(VectorsConfig(WIDTH), WIDTH, (layer,), LENGTHS[-1])).eval()
    folder.mkdir()
    export_graph(encoder, folder / "dense.onnx", dense=True)
    if form != "all pairs":
        export_graph(encoder, folder / "blockwise.onnx", dense=False)


def row(length: int) -> dict[str, np.ndarray]:
    """A graph's inputs for one row of random vectors whose first token is global."""
    from heed.bundle.manifest import PositionRule
    from heed.bundle.sequence_packing import pack, token_sequence

    features = np.random.default_rng(length).standard_normal((length, WIDTH)).astype(np.float32)
    is_global = np.arange(length) == 0
    real = np.ones(length, np.bool_)
    member = token_sequence(PositionRule(kind="column"), {"features": features}, real, is_global=is_global)
    return pack([member], aligned=True)


def measure(graph: Path, length: int) -> None:
    """Prints the cost of one graph at one length, for the parent to read."""
    from heed.server.engine.session import Session

    runtime, inputs = Session(graph, "cpu"), row(length)
    before = memory_now("VmRSS")
    runtime.run(inputs)
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        runtime.run(inputs)
        seconds.append(time.perf_counter() - started)
    print(json.dumps({"seconds": seconds, "peak_bytes": memory_now("VmHWM") - before}))


def memory_now(field: str) -> int:
    """Bytes that this process holds (VmRSS), or held at most (VmHWM). Linux only."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def cost(form: str, graph: Path, length: int) -> Cost:
    command = [sys.executable, "-m", "bench.attention", "--measure", str(graph), "--length", str(length)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Cost(form, length, **json.loads(done.stdout))


def difference(folder: Path) -> float:
    """How far the blockwise form is from the dense masked one, as a share of the largest value."""
    from heed.server.engine.session import Session

    inputs = row(COMPARED)
    dense, blockwise = (
        Session(folder / name, "cpu").run(inputs)["last_hidden_state"] for name in ("dense.onnx", "blockwise.onnx")
    )
    return float(np.abs(dense - blockwise).max() / max(1.0, np.abs(dense).max()))


def slope(costs: list[Cost], values: Callable[[Cost], list[float]]) -> float:
    """Of log value over log length from 1k on: the median over the repeats."""
    long = [each for each in costs if each.length >= 1024]
    lengths = np.log([each.length for each in long])
    repeats = zip(*(values(each) for each in long), strict=True)
    return float(np.median([np.polyfit(lengths, np.log(repeat), 1)[0] for repeat in repeats]))


def show(costs: dict[str, list[Cost]]) -> None:
    """Times as multiples of all pairs at the shortest length."""
    unit = costs["all pairs"][0].median

    def time_of(each: Cost) -> str:
        return f"{each.median / unit:.1f}"

    def memory_of(each: Cost) -> str:
        return f"{each.peak_bytes / 2**20:.0f}"

    for title, value in ((f"time, all pairs at {LENGTHS[0]} = 1", time_of), ("peak memory, MiB", memory_of)):
        table = Table(title=title, title_justify="left", box=None, header_style="bold")
        table.add_column("")
        for length in LENGTHS:
            table.add_column(str(length), justify="right")
        for form, measured in costs.items():
            table.add_row(form, *(value(each) for each in measured))
        console.print(table)


def draw(costs: dict[str, list[Cost]], path: Path) -> None:
    import matplotlib.pyplot as plt

    unit = costs["all pairs"][0].median
    figure, (times, memory) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for form, measured in costs.items():
        lengths = [each.length for each in measured]
        times.loglog(lengths, [each.median / unit for each in measured], marker="o", label=form, base=2)
        memory.loglog(lengths, [each.peak_bytes / 2**20 for each in measured], marker="o", label=form, base=2)
    times.set_title(f"time (all pairs at {LENGTHS[0]} = 1)")
    memory.set_title("peak memory, MiB")
    for axis in (times, memory):
        axis.set_xlabel("length")
        axis.set_xticks(LENGTHS, [f"{length // 1024}k" if length >= 1024 else str(length) for length in LENGTHS])
        axis.yaxis.set_major_formatter("{x:g}")
        axis.grid(alpha=0.3)
    times.legend(frameon=False)
    figure.savefig(path)
    plt.close(figure)


def main(
    out: Annotated[Path, typer.Option(help="Where to draw.")] = Path("build/attention-cost.svg"),
    measure_graph: Annotated[Path | None, typer.Option("--measure", hidden=True)] = None,
    length: Annotated[int, typer.Option(hidden=True)] = 0,
) -> None:
    """Time and memory of attention over the length: all pairs, windows, chunks, Longformer."""
    if measure_graph is not None:
        measure(measure_graph, length)
        return
    held = True
    with TemporaryDirectory() as name:
        folders = {form: Path(name) / form.replace(" ", "-") for form in FORMS}
        for form, folder in track(folders.items(), description="exporting", console=console, transient=True):
            export_form(form, folder)
        plan = [(form, each) for form in FORMS for each in LENGTHS if form != "all pairs" or each <= LONGEST_FULL]
        costs: dict[str, list[Cost]] = {form: [] for form in FORMS}
        for form, each in track(plan, description="measuring", console=console, transient=True):
            graph = folders[form] / ("dense.onnx" if form == "all pairs" else "blockwise.onnx")
            costs[form].append(cost(form, graph, each))
        show(costs)
        for form in FORMS:
            seconds = slope(costs[form], lambda each: each.seconds)
            memory = slope(costs[form], lambda each: [float(each.peak_bytes)])
            line = f"{form:12} slope of time {seconds:.2f}, of memory {memory:.2f}"
            if form != "all pairs":
                error = difference(folders[form])
                line += f"; {error:.1e} from the dense form at {COMPARED} columns"
                held &= error <= BUDGET and seconds <= LINEAR_TIME and memory <= LINEAR_MEMORY
            console.print(line)
    out.parent.mkdir(parents=True, exist_ok=True)
    draw(costs, out)
    console.print(f"drawn: {out}")
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    typer.run(main)
