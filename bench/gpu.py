"""What a machine with CUDA has to show: `python -m bench.gpu SOURCE`.

Exports a checkpoint folder, proves the bundle on CUDA, looks at where the nodes of the graph run, serves it in a
process of its own with `--device cuda` and with `--device auto`, and compares what they and the CPU answer over gRPC.
A short table comes last; exit code 1 if anything in it does not hold.
"""

import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import Annotated

import numpy as np
import onnxruntime
import typer
from rich.console import Console
from rich.table import Table

from bundle.contract import Report
from bundle.packing import Arrays
from client import CallError, Client
from export.bundle import write_bundle
from server.model import Model
from server.runtime import CPU, CUDA, session_options
from server.settings import Device
from server.warmup import random_sequence, warm_up

# What costs time in an encoder: none of it may run on the CPU when CUDA serves.
HEAVY = {"MatMul", "Gemm", "FusedMatMul", "Softmax", "LayerNormalization", "Gelu"}
TEXTS = ["good morning", "早上好", "How do I return an item that I bought online?"] * 20


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    what: str
    found: str
    holds: bool


def placement(model: Model, folder: Path) -> Counter[tuple[str, str]]:
    """How many nodes of each operator ran on each provider, from onnxruntime's own profile of one run."""
    options = session_options()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    graph = model.folder / model.manifest.graphs_of(model.precision)[0].file
    session = onnxruntime.InferenceSession(graph, options, providers=[(model.runtime.provider, {})])
    feeds: Arrays = {
        node.name: np.ones((1, 1) if len(node.shape) == 2 else 1, _dtype(node.type)) for node in session.get_inputs()
    }
    for name in ("slots", "rows", "columns"):
        feeds[name] *= 0
    session.run(None, feeds)
    events = json.loads(Path(session.end_profiling()).read_text())
    nodes = [event["args"] for event in events if event.get("cat") == "Node" and "provider" in event["args"]]
    return Counter((node["op_name"], node["provider"]) for node in nodes)


def _dtype(name: str) -> type:
    return {"tensor(int64)": np.int64, "tensor(bool)": np.bool_, "tensor(float)": np.float32}[name]


@contextmanager
def served(bundle: Path, device: Device, port: int) -> Iterator[Client]:
    """A server in a process of its own, ready."""
    command = [sys.executable, "-m", "heed", "serve", str(bundle), "--device", device, "--port", str(port)]
    process = subprocess.Popen([*command, "--metrics-port", "-1", "--linger-seconds", "0"])
    try:
        with Client(f"127.0.0.1:{port}", bundle.name) as client:
            until = monotonic() + 120
            while True:
                try:
                    client.embed(["ready?"])
                    break
                except CallError:
                    if process.poll() is not None or monotonic() > until:
                        raise
                    sleep(0.2)
            yield client
    finally:
        process.terminate()
        process.wait()


def throughput(model: Model, tokens: int) -> float:
    """Sequences of 24 tokens per second in groups of so many tokens, the best of five runs."""
    random = np.random.default_rng(0)
    group = [random_sequence(model.manifest, 24, random) for _ in range(max(1, tokens // 24))]
    model.run(group)
    seconds = []
    for _ in range(5):
        started = perf_counter()
        model.run(group)
        seconds.append(perf_counter() - started)
    return len(group) / min(seconds)


def check_in_process(bundle: Path, folder: Path, device: Device) -> Iterator[Line]:
    model = Model(bundle, device)
    provider = model.runtime.provider
    yield Line("provider", provider, device == "cpu" or provider == CUDA)
    report = Report(list(model.check_contract(everything=True)))
    worst = report.worst
    yield Line("contract", f"worst {worst.error:.1e} of {worst.budget:.0e} ({worst.case}) {worst.reason}", report.holds)
    warmup = warm_up(model)
    yield Line("groups", f"{warmup.strategy}; bit-equal {warmup.bit_equal}, difference {warmup.difference:.1e}", True)
    nodes = placement(model, folder)
    elsewhere = sorted({name for (name, where) in nodes if where != provider})
    yield Line("nodes elsewhere", ", ".join(elsewhere) or "none", not HEAVY & set(elsewhere))
    alone = throughput(model, 24)
    shares = [f"{tokens}: {throughput(model, tokens) / alone:.1f}" for tokens in (512, 2048, 8192, 32768)]
    yield Line("sequences/s, alone = 1", "  ".join(shares), True)
    on_cpu = throughput(Model(bundle, "cpu"), 128)
    yield Line("against one CPU thread", f"{throughput(model, 8192) / on_cpu:.0f} times", True)


def check_served(bundle: Path, device: Device) -> Iterator[Line]:
    with served(bundle, "cpu", 18001) as client:
        reference = client.embed(TEXTS)
    for asked in dict.fromkeys((device, "auto")):
        with served(bundle, asked, 18002) as client:
            answer = client.infer({"text": TEXTS}, ["sentence_embedding"])
        difference = float(np.abs(answer["sentence_embedding"] - reference).max())
        right = answer.provider == (CPU if device == "cpu" else CUDA) and difference < 2e-5
        yield Line(f"served, --device {asked}", f"{answer.provider}, {difference:.1e} from the CPU's", right)


def main(
    source: Annotated[Path, typer.Argument(help="Checkpoint folder with pooling and a tokenizer.")],
    device: Annotated[str, typer.Option(help="cpu tries the script itself.")] = "cuda",
) -> None:
    """Prove and measure CUDA on this machine."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = folder / "model"
        write_bundle(source, bundle, lambda path: Report(list(Model(path, "cpu").check_contract(everything=True))))
        lines = [*check_in_process(bundle, folder, device), *check_served(bundle, device)]  # type: ignore[arg-type]
    table = Table(box=None)
    for line in lines:
        table.add_row("[green]✓[/]" if line.holds else "[red]✗[/]", line.what, line.found)
    Console(width=140).print(table)
    raise typer.Exit(0 if all(line.holds for line in lines) else 1)


if __name__ == "__main__":
    typer.run(main)
