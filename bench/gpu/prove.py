"""Whether a bundle's answers on the device are the reference's, and whether it is the device that computes them."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime

from bench.gpu.rows import Row, Skipped
from bench.gpu.speed import Subject
from bench.gpu.ways import feeds_of
from heed.bundle.contract import Report, has_budget
from heed.server.engine.model import Model
from heed.server.engine.session import CPU, CUDA, session_options
from heed.server.repository.warmup import random_sequence, warm_up

# What costs time in an encoder, by parts of the operators' names, fused ones included.
HEAVY = ("MatMul", "Gemm", "Attention", "Softmax", "Norm", "Gelu")


def contract(subject: Subject, precision: str) -> Iterator[Row]:
    """Every case of the contract, by the budgets of the precision on this device."""
    provider = CUDA if subject.device == "cuda" else CPU
    if not has_budget(precision, provider):
        raise Skipped(f"{precision} is not for the CPU")
    model = Model(subject.file("bundle"), subject.device, precision)
    yield Row(subject.name, f"{precision}, provider", model.session.provider, model.session.provider == provider)
    report = Report(list(model.check_contract(everything=True)))
    worst = report.worst
    unit = " of 1 - cosine" if worst.measure == "cosine" else " of scale"
    found = f"{worst.error:.1e}{unit}, {worst.budget:.0e} allowed, in {len(report.findings)} comparisons"
    where = f"{found} ({worst.output} in {worst.case}) {worst.reason}"
    yield Row(subject.name, f"{precision}, contract", where, report.holds, {"error": worst.error})
    warmup = warm_up(model)
    found = f"{warmup.policy}; a group moves an answer by {warmup.difference:.1e}"
    yield Row(subject.name, f"{precision}, warm-up", found, None, {"difference": warmup.difference})


def placement(subject: Subject, precision: str) -> Iterator[Row]:
    """Which nodes of the graph the device does not compute."""
    provider = CUDA if subject.device == "cuda" else CPU
    nodes = placed(subject.model(precision), provider)
    elsewhere = Counter({name: count for (name, where), count in nodes.items() if where != provider})
    listed = ", ".join(f"{count} {name}" for name, count in elsewhere.most_common()) or "none"
    found = f"{sum(elsewhere.values())} of {nodes.total()} nodes: {listed}"
    holds = bool(nodes) and not any(is_heavy(name) for name in elsewhere)
    counts = {f"{name} on {where}": float(count) for (name, where), count in nodes.items()}
    yield Row(subject.name, f"{precision}, not on {provider}", found, holds, counts)


def is_heavy(operator: str) -> bool:
    return any(part in operator for part in HEAVY)


def placed(model: Model, provider: str) -> Counter[tuple[str, str]]:
    """How many nodes of each operator ran on each provider, from onnxruntime's own profile of one run."""
    random = np.random.default_rng(0)
    feeds = feeds_of([random_sequence(model.manifest, length, random) for length in (7, 20)])
    graphs = model.manifest.graphs_of(model.precision)
    graph = model.folder / next(each.file for each in graphs if provider == CUDA or not each.fused)
    with TemporaryDirectory() as folder:
        options = session_options()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(graph, options, providers=[provider])
        session.run(None, {node.name: feeds[node.name] for node in session.get_inputs()})
        events = json.loads(Path(session.end_profiling()).read_text())
    nodes = [event["args"] for event in events if event.get("cat") == "Node" and "provider" in event["args"]]
    return Counter((node["op_name"], node["provider"]) for node in nodes)
