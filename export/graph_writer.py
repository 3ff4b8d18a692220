"""The graphs of a bundle: which there are, and how they are written.

Every graph is captured once in float32 (`torch_to_onnx.py`), changed by the passes of its precision
(`passes/pipeline.py`) and written once (`weights.py`).
"""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import torch
from onnx import ModelProto

from heed.bundle.manifest import Graph, GraphKind, Precision
from heed.export.manifest import gives_attentions
from heed.export.passes.pipeline import passes_for, run_passes
from heed.export.torch_to_onnx import capture_graph, capture_with_attentions
from heed.export.weights import Locations, save_graphs
from heed.model import Encoder
from heed.model.attention_plan import DENSE_COLUMNS

WEIGHTS = "weights.fp32.data"
FUSED = "fused.fp16.onnx"
Captured = dict[tuple[GraphKind, int | None], ModelProto]  # by a graph's kind and its longest row


def plan_graphs(
    encoder: Encoder,
    precisions: Collection[Precision] = (),
    unproven: Collection[Precision] = (),
    float32_layers: Collection[str] = (),
) -> list[Graph]:
    """The graphs of a bundle, as its manifest lists them: those of float32, and the same in other precisions.

    Args:
        precisions: which to write beside float32.
        unproven: those of them that this machine has no device for.
        float32_layers: linear layers that the int8 graphs compute in float32.
    """
    float32 = _float32_graphs(encoder)
    graphs = list(float32)
    for precision in get_args(Precision)[1:]:
        if precision not in precisions:
            continue
        fields: dict[str, object] = {"precision": precision, "proven": precision not in unproven}
        if precision == "int8":
            fields["float32_layers"] = list(float32_layers)
        graphs += [graph.model_copy(update=fields | {"file": _file_in(precision, graph.file)}) for graph in float32]
        if precision == "fp16" and encoder.config.plain:
            fields |= {"file": FUSED, "fused": True}
            graphs += [graph.model_copy(update=fields) for graph in float32 if graph.kind == "answers"]
    return graphs


def _file_in(precision: Precision, file: str) -> str:
    """The name in another precision of a float32 file."""
    return file.replace(".fp32.", f".{precision}.")


def _float32_graphs(encoder: Encoder) -> list[Graph]:
    """The float32 graphs.

    Where a layer can be computed blockwise there are two: all pairs for short rows, where that is faster, and
    blockwise for longer ones. A row's own length decides, never its neighbours'.
    """
    config = encoder.config
    dense_columns = max([DENSE_COLUMNS, *(layer.attention.dense_up_to for layer in config.layers)])
    plain = Graph(precision="fp32", file="model.fp32.onnx", outputs=encoder.outputs)
    found = [plain]
    if config.block_sparse and config.max_length > dense_columns:
        found.insert(0, plain.model_copy(update={"file": "short.fp32.onnx", "longest": dense_columns}))
    elif config.block_sparse:  # no row is long
        found = [plain.model_copy(update={"longest": config.max_length})]
    if gives_attentions(config):
        found.append(
            Graph(
                precision="fp32",
                file="attentions.fp32.onnx",
                outputs=[*encoder.outputs, "attentions"],
                kind="attentions",
            )
        )
    return found


def write_graphs(encoder: Encoder, graphs: Sequence[Graph], folder: Path) -> None:
    """Writes every graph, and a file of weights for each precision. What two precisions share is written once."""
    locations: Locations = {}
    with TemporaryDirectory(prefix="captured-", dir=folder) as data:
        captured = _capture_graphs(encoder, graphs, Path(data))
        for precision in get_args(Precision):
            of_precision = [graph for graph in graphs if graph.precision == precision]
            if of_precision:
                finished = _finished_graphs(encoder, of_precision, captured, folder)
                save_graphs(finished, folder / _file_in(precision, WEIGHTS), locations)


def _capture_graphs(encoder: Encoder, graphs: Sequence[Graph], data: Path) -> Captured:
    """The float32 graphs, their weights in the folder `data`. The first one computes all pairs."""
    float32 = [graph for graph in graphs if graph.precision == "fp32"]
    dense, *blockwise = (graph.longest for graph in float32 if graph.kind == "answers")
    captured: Captured = {}
    if any(graph.kind == "attentions" for graph in float32):
        captured["answers", dense], captured["attentions", None] = capture_with_attentions(encoder, data / "dense")
    else:
        captured["answers", dense] = capture_graph(encoder, data / "dense")
    for longest in blockwise:
        captured["answers", longest] = capture_graph(encoder, data / f"blockwise-{longest}", dense=False)
    return captured


def _finished_graphs(
    encoder: Encoder, graphs: Sequence[Graph], captured: Captured, folder: Path
) -> Iterator[tuple[Path, ModelProto]]:
    """The path and the content of each graph, made when it is asked for."""
    for graph in graphs:
        source = captured[graph.kind, graph.longest]
        yield folder / graph.file, run_passes(source, passes_for(graph, encoder))


def release_weights(encoder: Encoder) -> None:
    """Frees an encoder's weights: they and the graphs that are loaded next would take twice the memory.

    It is not enough to forget the encoder, because the exporter's rules remember the last graph that they matched.
    """
    for weight in encoder.parameters():
        weight.data = torch.empty(0)
