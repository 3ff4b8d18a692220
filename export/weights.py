"""One file of weights for all graphs of a bundle."""

import hashlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from onnx import TensorProto
from onnx.external_data_helper import ExternalDataInfo, set_external_data

ALIGNMENT = 4096  # of each tensor in the file, so that it can be mapped into memory
SMALLEST = 1024  # bytes; what is smaller stays in the graph


Content = bytes | memoryview
Places = dict[bytes, tuple[str, int]]  # in which file the tensor with a digest lies, and where it begins


def share_weights(graphs: list[Path], weights: Path, places: Places | None = None) -> None:
    """Moves the tensors of all graphs to one file, each distinct one once, and removes the graphs' own files.

    Args:
        places: the tensors of other files in the same folder. They are not written again; those of this file are added.
    """
    places = {} if places is None else places
    with weights.open("wb") as file:
        for path in graphs:
            model = onnx.load(path, load_external_data=False)
            for tensor in model.graph.initializer:
                content = _content(tensor, path.parent)
                if content is not None and len(content) >= SMALLEST:
                    _move(tensor, content, places, file, weights.name)
                elif content is not None:
                    tensor.raw_data = bytes(content)
                    tensor.data_location = TensorProto.DEFAULT
                    tensor.ClearField("external_data")
            onnx.save(model, path)
            path.with_name(path.name + ".data").unlink(missing_ok=True)


def _content(tensor: TensorProto, folder: Path) -> Content | None:
    """A tensor's bytes, where they are mapped and not read if they lie in a file; None if it holds numbers instead."""
    if tensor.data_location == TensorProto.EXTERNAL:
        info = ExternalDataInfo(tensor)
        if not info.length:
            return b""
        return memoryview(np.memmap(folder / info.location, np.uint8, "r", info.offset or 0, (info.length,)))
    return tensor.raw_data if tensor.HasField("raw_data") else None


def _move(tensor: TensorProto, content: Content, places: Places, file: BinaryIO, name: str) -> None:
    digest = hashlib.sha256(content).digest()
    if digest not in places:
        file.write(bytes(-file.tell() % ALIGNMENT))
        places[digest] = name, file.tell()
        file.write(content)
    location, offset = places[digest]
    tensor.raw_data = b""  # that there is such a field is asked for
    set_external_data(tensor, location=location, offset=offset, length=len(content))
    tensor.ClearField("raw_data")
