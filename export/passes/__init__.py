"""Passes over ONNX graphs, each a function from a `ModelProto` to a `ModelProto`. `pipeline.py` names them in order.

A pass may change the graph that it is given. Large tensors are in a file: see `export/weights.py`.
"""
