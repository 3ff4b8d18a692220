"""Drops the exporter's notes on where each node came from: this machine's paths, half of the graph's size."""

from onnx import ModelProto


def drop_metadata(model: ModelProto) -> ModelProto:
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return model
