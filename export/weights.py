"""One file of weights for all graphs of a bundle."""

import hashlib
from pathlib import Path
from typing import BinaryIO

import onnx
from onnx import TensorProto
from onnx.external_data_helper import load_external_data_for_model, set_external_data

ALIGNMENT = 4096  # of each tensor in the file, so that it can be mapped into memory
SMALLEST = 1024  # bytes; what is smaller stays in the graph


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
            load_external_data_for_model(model, str(path.parent))
            for tensor in model.graph.initializer:
                if tensor.HasField("raw_data") and len(tensor.raw_data) >= SMALLEST:
                    _move(tensor, places, file, weights.name)
            onnx.save(model, path)
            path.with_name(path.name + ".data").unlink(missing_ok=True)


def _move(tensor: TensorProto, places: Places, file: BinaryIO, name: str) -> None:
    digest = hashlib.sha256(tensor.raw_data).digest()
    if digest not in places:
        file.write(bytes(-file.tell() % ALIGNMENT))
        places[digest] = name, file.tell()
        file.write(tensor.raw_data)
    location, offset = places[digest]
    set_external_data(tensor, location=location, offset=offset, length=len(tensor.raw_data))
    tensor.ClearField("raw_data")
