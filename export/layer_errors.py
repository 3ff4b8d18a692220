"""Where an error begins: the hidden states behind each layer, of the reference and of a graph.

Letters: T tokens, D width.
"""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch

from heed.bundle.contract import Budget
from heed.bundle.manifest import Graph
from heed.bundle.sequence_packing import Arrays
from heed.export.passes.pipeline import passes_for, run_passes
from heed.export.reference import same_threads
from heed.export.torch_to_onnx import PackedEncoder, capture_graph
from heed.export.weights import save_graphs
from heed.model import Encoder


@dataclass(frozen=True)
class LayerErrors:
    """How far the hidden states are off, behind the embeddings and behind each layer."""

    errors: dict[str, float]
    budget: Budget

    @property
    def first(self) -> str:
        """The first that is beyond the budget; empty if none is."""
        return next((name for name, error in self.errors.items() if not error <= self.budget.limit), "")

    def __str__(self) -> str:
        where = f"it begins in {self.first}" if self.first else "it begins behind the last layer"
        measure = "1 - cosine" if self.budget.measure == "cosine" else "the error"
        errors = ", ".join(f"{name} {error:.1e}" for name, error in self.errors.items())
        return f"{where} ({measure} of the hidden states: {errors})"


def write_states_graph(encoder: Encoder, graph: Graph, folder: Path) -> Path:
    """Writes the counterpart of a bundle's graph whose outputs are the hidden states, and returns its path."""
    captured = capture_graph(encoder, folder / "captured.data", _is_dense(graph), states=True)
    path = folder / f"states.{graph.precision}.onnx"
    save_graphs([(path, run_passes(captured, passes_for(graph, encoder)))], folder / "states.data")
    return path


def layer_errors(encoder: Encoder, graph: Graph, feeds: Arrays, answers: Arrays, budget: Budget) -> LayerErrors:
    """Compares hidden states with those of the reference in float64.

    Args:
        graph: of the bundle.
        feeds: a graph's inputs for one batch of sequences, see `bundle/sequence_packing.py`.
        answers: what the graph of `write_states_graph` computed of them.
    """
    states = _reference_states(encoder, _is_dense(graph), feeds)
    errors = {name.replace("_", " "): budget.used(answers[name], state.numpy()) for name, state in states.items()}
    return LayerErrors(errors, budget)


def _is_dense(graph: Graph) -> bool:
    """Whether a graph computes all pairs of tokens."""
    return graph.longest is not None or graph.kind == "attentions"


def _reference_states(encoder: Encoder, dense: bool, feeds: Arrays) -> dict[str, torch.Tensor]:
    """The reference's hidden states in float64, `[T, D]` each."""
    packed = PackedEncoder(copy.deepcopy(encoder).double().eval(), dense, states=True)
    inputs = {name: torch.from_numpy(array) for name, array in feeds.items()}
    if "features" in inputs:
        inputs["features"] = inputs["features"].double()
    with torch.no_grad(), same_threads(feeds, encoder.config):
        return dict(zip(packed.outputs, packed(inputs), strict=True))
