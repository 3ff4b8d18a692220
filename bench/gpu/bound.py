"""onnxruntime with inputs and outputs at fixed places on the device, instead of arrays that it copies each time."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from heed.bundle.manifest import Device
from heed.bundle.sequence_packing import Arrays
from heed.server.engine.session import CPU, CUDA, CUDA_OPTIONS, session_options

# Shapes of the outputs, for inputs of those shapes.
Shapes = Callable[[Arrays], dict[str, tuple[int, ...]]]


def open_session(graph: Path, device: Device, **options: str) -> onnxruntime.InferenceSession:
    """With the server's own options and more for CUDA.

    Raises:
        RuntimeError: onnxruntime took another provider.
    """
    provider = (CUDA, CUDA_OPTIONS | options) if device == "cuda" else (CPU, {})
    session = onnxruntime.InferenceSession(graph, session_options(), providers=[provider])
    if session.get_providers()[0] != provider[0]:
        raise RuntimeError(f"onnxruntime loaded {session.get_providers()[0]}")
    return session


class Buffer:
    """Memory of the device, and pinned memory of the host before it; both grow to the largest array and stay."""

    def __init__(self, device: Device) -> None:
        self._device: Device = device
        self._host = self._there = torch.empty(0, dtype=torch.uint8)

    def of(self, count: int) -> Tensor:
        """So many bytes on the device."""
        if count > len(self._there):
            self._there = torch.empty(count, dtype=torch.uint8, device=self._device)
            cuda = self._device == "cuda"
            self._host = torch.empty(count, dtype=torch.uint8, pin_memory=True) if cuda else self._there
        return self._there[:count]

    def put(self, array: np.ndarray) -> int:
        """Sends an array, and returns where it will be. What was sent before must have been read."""
        there = self.of(array.nbytes)
        host = self._host[: array.nbytes]
        host.numpy()[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        if host.data_ptr() != there.data_ptr():
            there.copy_(host, non_blocking=True)
        return int(there.data_ptr())

    def get(self, shape: tuple[int, ...]) -> np.ndarray:
        """A copy of the floats that it holds. Waits for what is under way in this stream."""
        count = int(np.prod(shape)) * 4
        host = self._host[:count]
        if host.data_ptr() != self._there.data_ptr():
            host.copy_(self._there[:count], non_blocking=True)
            torch.cuda.current_stream().synchronize()
        return host.numpy().view(np.float32).reshape(shape).copy()


class Bound:
    """One graph, one caller at a time. On CUDA all of it happens in torch's current stream, in order."""

    def __init__(self, graph: Path, device: Device, outputs: Shapes, **options: str) -> None:
        if device == "cuda":
            options["user_compute_stream"] = str(torch.cuda.current_stream().cuda_stream)
        self._session = open_session(graph, device, **options)
        self._device: Device = device
        self._outputs = outputs
        self._names = {node.name for node in self._session.get_inputs()}
        self._buffers: dict[str, Buffer] = {}

    def run(self, feeds: Arrays) -> Arrays:
        """The outputs whose shapes are known, float32. Others stay where onnxruntime puts them."""
        shapes = self._outputs(feeds)
        self.compute(feeds, shapes)
        return {name: self._buffers[name].get(shape) for name, shape in shapes.items()}

    def compute(self, feeds: Arrays, shapes: dict[str, tuple[int, ...]]) -> None:
        binding = self._session.io_binding()
        for name in self._names:
            place = self._buffer(name).put(feeds[name])
            binding.bind_input(name, self._device, 0, feeds[name].dtype, feeds[name].shape, place)
        for node in self._session.get_outputs():
            if shape := shapes.get(node.name):
                place = self._buffer(node.name).of(int(np.prod(shape)) * 4).data_ptr()
                binding.bind_output(node.name, self._device, 0, np.float32, shape, place)
            else:
                binding.bind_output(node.name, self._device, 0)
        self._session.run_with_iobinding(binding)

    def _buffer(self, name: str) -> Buffer:
        return self._buffers.setdefault(name, Buffer(self._device))
