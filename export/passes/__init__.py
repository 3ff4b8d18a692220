"""Passes over ONNX graphs, each from a `ModelProto` to a `ModelProto`."""
