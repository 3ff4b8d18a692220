"""The weights of graphs: tensors as passes read them, and one file of weights for several graphs of a bundle.

While a graph is in memory its large tensors stay in a file (ONNX calls them external data), named by its absolute path,
and are mapped when a pass reads them. So passes need no folder, a copy of a graph is cheap, and no weight is in memory
twice.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, set_external_data

ALIGNMENT = 4096  # of each tensor in the file, so that it can be mapped into memory
SMALLEST = 1024  # bytes of a tensor that is written to the file of weights; smaller ones stay in the graph

TensorBytes = bytes | memoryview
Locations = dict[bytes, tuple[str, int]]  # by a tensor's digest: the file that holds it, and the offset in that file


def tensor_bytes(tensor: TensorProto) -> TensorBytes | None:
    """A tensor's content, mapped if it is in a file; None if it holds a list of numbers instead of bytes."""
    if tensor.data_location == TensorProto.EXTERNAL:
        info = ExternalDataInfo(tensor)
        if not info.length:
            return b""
        return memoryview(np.memmap(info.location, np.uint8, "r", info.offset or 0, (info.length,)))
    return tensor.raw_data if tensor.HasField("raw_data") else None


def tensor_array(tensor: TensorProto) -> np.ndarray:
    """A tensor as a read-only array, mapped if it is in a file."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor)
    content = tensor_bytes(tensor)
    assert content is not None
    return np.frombuffer(content, helper.tensor_dtype_to_np_dtype(tensor.data_type)).reshape(tuple(tensor.dims))


def is_large(tensor: TensorProto) -> bool:
    """Whether a tensor is a weight rather than a shape or another small constant."""
    return tensor.data_location == TensorProto.EXTERNAL or len(tensor.raw_data) > SMALLEST


def save_graphs(graphs: Iterable[tuple[Path, ModelProto]], weights: Path, locations: Locations | None = None) -> None:
    """Writes graphs, and the tensors of all of them to one file in the same folder, each distinct tensor once.

    Args:
        graphs: the path and the content of each. They are taken one by one, so that one at a time is in memory.
        locations: the tensors that other files of weights in this folder hold. They are not written again; those that
            are written here are added.
    """
    locations = {} if locations is None else locations
    with weights.open("wb") as file:
        for path, model in graphs:
            for tensor in model.graph.initializer:
                _move_tensor(tensor, file, weights.name, locations)
            onnx.save(model, path)


def _move_tensor(tensor: TensorProto, file: BinaryIO, name: str, locations: Locations) -> None:
    """A large tensor to the file `name`, a small one into the graph."""
    content = tensor_bytes(tensor)
    if content is None:
        return
    if len(content) < SMALLEST:
        tensor.raw_data = bytes(content)
        tensor.data_location = TensorProto.DEFAULT
        tensor.ClearField("external_data")
        return
    digest = hashlib.sha256(content).digest()
    if digest not in locations:
        file.write(bytes(-file.tell() % ALIGNMENT))
        locations[digest] = name, file.tell()
        file.write(content)
    location, offset = locations[digest]
    tensor.raw_data = b""  # set_external_data requires the field
    set_external_data(tensor, location=location, offset=offset, length=len(content))
    tensor.ClearField("raw_data")
