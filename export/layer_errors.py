"""Where answers begin to drift: the hidden state behind each layer, of the reference and of a graph.

Letters: T tokens, D width.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from heed.bundle.contract import Budget
from heed.bundle.manifest import Graph
from heed.bundle.packing import Arrays
from heed.export.graphs import convert
from heed.export.reference import one_thread
from heed.export.torch_to_onnx import PackedEncoder, export_graph
from heed.model import Encoder

Run = Callable[[Path, Arrays], Arrays]  # a graph, its inputs, its outputs


@dataclass(frozen=True)
class Drift:
    """How far the hidden states are off, behind the embeddings and behind each layer."""

    errors: dict[str, float]
    budget: Budget

    @property
    def first(self) -> str:
        """The first that is beyond the budget; empty if none is."""
        return next((name for name, error in self.errors.items() if not error <= self.budget.limit), "")

    def __str__(self) -> str:
        where = f"it begins in {self.first}" if self.first else "it begins behind the last layer"
        of = "1 - cosine" if self.budget.measure == "cosine" else "the error"
        steps = ", ".join(f"{name} {error:.1e}" for name, error in self.errors.items())
        return f"{where} ({of} of the hidden states: {steps})"


def drift(encoder: Encoder, graph: Graph, feeds: Arrays, budget: Budget, run: Run) -> Drift:
    """Computes the hidden states of one group of sequences twice: in float64, and as a graph of the bundle would.

    Args:
        graph: says the precision, and whether its kind computes all pairs.
        feeds: the graph's inputs, see `bundle/packing.py`.
    """
    dense = graph.longest is not None or graph.kind == "attentions"
    with TemporaryDirectory() as folder:
        source, target = Path(folder, "states.fp32.onnx"), Path(folder, f"states.{graph.precision}.onnx")
        export_graph(encoder, source, dense, states=True)
        if target != source:
            convert(encoder, graph, source, target)
        answers = run(target, feeds)
    states = _reference(encoder, dense, feeds)
    errors = {name.replace("_", " "): budget.used(answers[name], state.numpy()) for name, state in states.items()}
    return Drift(errors, budget)


def _reference(encoder: Encoder, dense: bool, feeds: Arrays) -> dict[str, torch.Tensor]:
    """The hidden states in float64, `[T, D]` each."""
    packed = PackedEncoder(copy.deepcopy(encoder).double().eval(), dense, states=True)
    inputs = {name: torch.from_numpy(array) for name, array in feeds.items()}
    if "features" in inputs:
        inputs["features"] = inputs["features"].double()
    with torch.no_grad(), one_thread():
        return dict(zip(packed.outputs, packed(inputs), strict=True))
