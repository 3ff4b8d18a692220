"""Linear layers as heed multiplies them, beside onnxruntime's: `python -m bench.layers`.

For the sizes of MiniLM's layers and some numbers of tokens: how much longer onnxruntime takes on one core, where both
have the weights in the caches, and how far both are from float64. Exit code 1 if heed's are further off.

Letters: T tokens, K values in, M values out.
"""

import sys
from dataclasses import dataclass
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

from export.layers import name_layers
from server.kernels import library
from server.runtime import CPU, session_options

SIZES = ((384, 384), (384, 1536), (1536, 384))  # K, M
TOKENS = (1, 8, 24, 64, 256, 1024)
PRODUCTS = 2e9  # of a turn, K * M * T


def write_layer(path: Path, weight_MK: np.ndarray, bias_M: np.ndarray | None = None) -> Path:
    """A graph of one linear layer, from `x` to `y`: with a bias by Gemm, without one by MatMul."""
    value = helper.make_tensor_value_info
    if bias_M is None:
        node, constants = helper.make_node("MatMul", ["x", "w"], ["y"]), {"w": weight_MK.T.copy()}
    else:
        node, constants = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1), {"w": weight_MK, "b": bias_M}
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    x, y = value("x", TensorProto.FLOAT, None), value("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "layer", [x], [y], tensors)
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


def compare(folder: Path, values: int, channels: int, tokens: int, rounds: int) -> tuple[Found, Found]:
    """heed's way and onnxruntime's."""
    random = np.random.default_rng(0)
    weight_MK = random.normal(size=(channels, values)).astype(np.float32)
    x, bias_M = random.normal(size=(tokens, values)).astype(np.float32), np.zeros(channels, np.float32)
    graph = write_layer(folder / "layer.onnx", weight_MK, bias_M)
    name_layers(graph)
    exact = x.astype(np.float64) @ weight_MK.T.astype(np.float64)
    found = []
    for with_library in (True, False):
        way = session(graph, with_library)
        error = float(np.abs(way.run(None, {"x": x})[0] - exact).max() / np.abs(exact).max())
        found.append((way, Found([], error)))
    for _ in range(rounds):
        for way, each in found:
            each.seconds.append(seconds(way, x, max(1, int(PRODUCTS / (tokens * values * channels)))))
    (_, ours), (_, theirs) = found
    return ours, theirs


def main(rounds: Annotated[int, typer.Option(min=3, help="How often both ways are timed, in turns.")] = 5) -> None:
    """Compare heed's linear layers with onnxruntime's: speed and errors."""
    out, err = Console(width=140, highlight=False), Console(file=sys.stderr)
    if library() is None:
        err.print("the library of server/kernels was not compiled here, or this CPU has no tiles of int8 (AMX)")
        raise typer.Exit(2)
    table = Table("layer", "tokens", "onnxruntime's time ÷ heed's", "spread", "heed's error", "onnxruntime's", box=None)
    exact = True
    with TemporaryDirectory() as folder, Progress(console=err, transient=True) as progress:
        for values, channels in progress.track(SIZES, description="layers"):
            for tokens in TOKENS:
                ours, theirs = compare(Path(folder), values, channels, tokens, rounds)
                exact &= ours.error <= theirs.error
                ratios = [slow / fast for slow, fast in zip(theirs.seconds, ours.seconds, strict=True)]
                spread = f"{min(ratios):.2f} … {max(ratios):.2f}"
                errors = f"{ours.error:.1e}", f"{theirs.error:.1e}"
                table.add_row(f"{values} → {channels}", str(tokens), f"{median(ratios):.2f}", spread, *errors)
    out.print(table)
    raise typer.Exit(0 if exact else 1)


if __name__ == "__main__":
    typer.run(main)
