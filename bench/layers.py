"""Linear layers as heed multiplies them, beside onnxruntime's: `python -m bench.layers`.

For the sizes of MiniLM's layers and some numbers of tokens: how much longer onnxruntime takes on one core, and how far
both are from float64. Exit code 1 if heed's are further off (panels: by half). Weights lie in the caches, or are too
many for them: so many layers, one after the other, as a model has.

Letters: T tokens, K values in, M values out.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Annotated

import numpy as np
import onnx
import onnxruntime
import typer
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from heed.export.passes.outline_linear import outline_linear
from heed.server.engine.kernels import DIGITS, library, way
from heed.server.engine.session import CPU, session_options

# The widths of chains of layers: one whose weights lie in the caches, or so many that no cache holds them.
CHAINS: dict[str, list[int]] = {
    "384 → 384": [384, 384],
    "384 → 1536": [384, 1536],
    "1536 → 384": [1536, 384],
    "384 → 384, 80 in turn": [384] * 81,
    "384 → 1536 → 384, 10 in turn": [384, *[1536, 384] * 10],
}
TOKENS = (1, 8, 24, 64, 256, 1024)
PRODUCTS = 2e9  # of a turn, K * M * T
SCATTER = 1.5  # the largest errors of panels: sums as exact as onnxruntime's, but taken in another order
Layer = tuple[np.ndarray, np.ndarray | None]  # weights [M, K]; a bias [M], or none


def write_layers(path: Path, layers: Sequence[Layer]) -> Path:
    """A graph of linear layers one after the other, from `x` to `y`: with a bias by Gemm, without one by MatMul."""
    nodes, tensors, value = [], [], "x"
    for number, (weight_MK, bias_M) in enumerate(layers, 1):
        last, w, b = value, f"w{number}", f"b{number}"
        value = "y" if number == len(layers) else f"y{number}"
        if bias_M is None:
            nodes.append(helper.make_node("MatMul", [last, w], [value]))
            tensors.append(numpy_helper.from_array(weight_MK.T.copy(), w))
        else:
            nodes.append(helper.make_node("Gemm", [last, w, b], [value], transB=1))
            tensors += [numpy_helper.from_array(weight_MK, w), numpy_helper.from_array(bias_M, b)]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y"))
    graph = helper.make_graph(nodes, "layers", [x], [y], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@dataclass
class Found:
    """How one way computes one layer."""

    seconds: list[float]
    error: float  # the largest, of the largest answer


def session(graph: Path, with_library: bool) -> onnxruntime.InferenceSession:
    options = session_options()
    if with_library:
        options.register_custom_ops_library(str(library()))
    return onnxruntime.InferenceSession(graph, options, providers=[CPU])


def seconds(way: onnxruntime.InferenceSession, x: np.ndarray, times: int) -> float:
    started = perf_counter()
    for _ in range(times):
        way.run(None, {"x": x})
    return perf_counter() - started


def compare(folder: Path, widths: Sequence[int], tokens: int, rounds: int) -> tuple[Found, Found]:
    """heed's way and onnxruntime's."""
    random = np.random.default_rng(0)
    sizes = list(pairwise(widths))
    weights = [(random.normal(size=(m, k)) / np.sqrt(k)).astype(np.float32) for k, m in sizes]
    graph = write_layers(folder / "layers.onnx", [(weight, np.zeros(len(weight), np.float32)) for weight in weights])
    onnx.save(outline_linear(onnx.load(graph)), graph)
    x = random.normal(size=(tokens, widths[0])).astype(np.float32)
    exact = x.astype(np.float64)
    for weight_MK in weights:
        exact = exact @ weight_MK.T.astype(np.float64)
    found = []
    for with_library in (True, False):
        opened = session(graph, with_library)
        error = float(np.abs(opened.run(None, {"x": x})[0] - exact).max() / np.abs(exact).max())
        found.append((opened, Found([], error)))
    times = max(1, int(PRODUCTS / tokens / sum(k * m for k, m in sizes)))
    for _ in range(rounds):
        for opened, each in found:
            each.seconds.append(seconds(opened, x, times))
    (_, ours), (_, theirs) = found
    return ours, theirs


def main(rounds: Annotated[int, typer.Option(min=3, help="How often both ways are timed, in turns.")] = 5) -> None:
    """Compare heed's linear layers with onnxruntime's: speed and errors."""
    out, err = Console(width=140, highlight=False), Console(file=sys.stderr)
    if not way():
        err.print("the library of server/engine/kernels was not compiled here, or it is of no use on this CPU")
        raise typer.Exit(2)
    table = Table("layer", "tokens", "onnxruntime's time ÷ heed's", "spread", "heed's error", "onnxruntime's", box=None)
    exact = True
    with TemporaryDirectory() as folder, Progress(console=err, transient=True) as progress:
        for name, widths in progress.track(CHAINS.items(), description="layers"):
            for tokens in TOKENS:
                ours, theirs = compare(Path(folder), widths, tokens, rounds)
                exact &= ours.error <= (1.0 if way() == DIGITS else SCATTER) * theirs.error
                ratios = [slow / fast for slow, fast in zip(theirs.seconds, ours.seconds, strict=True)]
                spread = f"{min(ratios):.2f} … {max(ratios):.2f}"
                errors = f"{ours.error:.1e}", f"{theirs.error:.1e}"
                table.add_row(name, str(tokens), f"{median(ratios):.2f}", spread, *errors)
    out.print(f"linear layers in {way()}")
    out.print(table)
    raise typer.Exit(0 if exact else 1)


if __name__ == "__main__":
    typer.run(main)
