"""A graph and its weights, from a bundle's files in memory to what a session takes.

onnxruntime would map weights from the folder: whoever writes into a file there would change answers, and whoever cuts
it short would end the process. So on the CPU a session gets arrays that lie in the files' own memory, and all sessions
of a model share them.
"""

from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import onnxruntime
from google.protobuf.message import DecodeError

from heed.bundle import BundleError
from heed.bundle.files import BundleFiles
from heed.protos.onnx_weights_pb2 import Model, Tensor

EXTERNAL = 1  # data_location of a tensor in another file
# Of ONNX's data types those that weights have: FLOAT, INT8, INT64, FLOAT16.
TYPES = {1: np.float32, 3: np.int8, 7: np.int64, 10: np.float16}


@dataclass(frozen=True)
class LoadedGraph:
    """What a session is made of."""

    model: bytes  # the graph as onnxruntime reads it
    weights: dict[str, onnxruntime.OrtValue]  # by name, in the memory of the files
    weights_folder: Path  # onnxruntime wants the files to be there, and may read a weight while it loads


def load_graph(files: BundleFiles, name: str) -> LoadedGraph:
    """
    Raises:
        BundleError: a file is not usable (see `BundleFiles.read`), or is no graph.
    """
    content = bytes(files.read(name))
    try:
        model = Model.FromString(content)
    except DecodeError:
        raise BundleError(f"{files.folder / name} cannot be loaded: it is no ONNX graph") from None
    external = [tensor for tensor in model.graph.initializer if tensor.data_location == EXTERNAL]
    weights = {
        tensor.name: onnxruntime.OrtValue.ortvalue_from_numpy(_array(files, name, tensor)) for tensor in external
    }
    # onnxruntime follows links, and takes no file that lies elsewhere: it gets the names of what they lead to.
    folders = {_lead_to_real_files(files.folder, tensor) for tensor in external} or {files.folder}
    if len(folders) > 1:
        raise BundleError(f"{files.folder}: its weights are links into several folders; copy what they lead to (cp -L)")
    return LoadedGraph(model.SerializeToString() if external else content, weights, folders.pop())


def _entries(tensor: Tensor) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _array(files: BundleFiles, name: str, tensor: Tensor) -> np.ndarray:
    """The tensor in the memory of its file."""
    stored = _entries(tensor)
    location = stored.get("location", "")
    if Path(location).name != location:
        raise BundleError(
            f"{files.folder / name} cannot be loaded: its weights lie outside of the bundle, in {location!r}"
        )
    content = files.read(location)
    try:
        return np.frombuffer(content, TYPES[tensor.data_type], prod(tensor.dims), int(stored.get("offset", 0))).reshape(
            tensor.dims
        )
    except (KeyError, ValueError) as error:
        raise BundleError(f"{files.folder / name} cannot be loaded: {tensor.name}: {error}") from None


def _lead_to_real_files(folder: Path, tensor: Tensor) -> Path:
    """Names the file itself in place of a link to it, and returns its folder."""
    (location,) = [entry for entry in tensor.external_data if entry.key == "location"]
    path = (folder / location.value).resolve()
    location.value = path.name
    return path.parent
