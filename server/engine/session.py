"""Runs one graph with onnxruntime on the provider that was requested, or not at all."""

import ctypes
import os
import platform
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime

from heed.bundle.contract import has_budget
from heed.bundle.files import BundleFiles
from heed.bundle.manifest import Device
from heed.bundle.sequence_packing import GRAPH_INPUTS, Arrays
from heed.server.engine.kernels import library, serves
from heed.server.engine.weights import LoadedGraph, load_graph
from heed.server.errors import DeviceError

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
# TF32 keeps 10 bits of 23, and a norm must not be summed in float16.
CUDA_OPTIONS = {"use_tf32": "0", "enable_skip_layer_norm_strict_mode": "1"}
# The length from which rows get flash attention where a graph is fused. Its tiles are 128 tokens wide; shorter rows get
# attention in smaller tiles. onnxruntime reads it from its environment.
FLASH_FROM_NAME, FLASH_FROM = "ORT_MIN_SEQ_LEN_FLASH_ATTENTION_PACKED_QKV", 128
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
# Pairs of slots of a batch, B * L * L, beyond which a run is long enough for memory to be fetched for it alone.
LARGE = 2**15


# glibc's fenv_t on x86-64: 7 words of the x87 unit, then MXCSR (System V ABI, and SDM volume 1, 10.2.3).
_WORDS, _MXCSR = 8, 7
_FLUSH = 0x8040  # of MXCSR: flush results to zero, take denormal operands as zero

Environment = ctypes.c_uint32 * _WORDS


def _library() -> ctypes.CDLL | None:
    """Where the processor's state can be set; None where this is not known to help."""
    if platform.machine() != "x86_64" or platform.libc_ver()[0] != "glibc":
        return None
    return ctypes.CDLL("libm.so.6")


_libm = _library()


@contextmanager
def denormals_as_zero() -> Iterator[None]:
    """Takes numbers below float32's normal range as 0 in this thread, until the block ends.

    A masked score leaves softmax's exponential below that range, where x86 processors fall back to microcode: the
    softmax of padded rows takes several times as long as that of full ones. onnxruntime has an option for it
    (`session.set_denormal_as_zero`), but that reaches its own threads and the thread that makes a process's first
    session, not those that call `run`.
    """
    if _libm is None:
        yield
        return
    before, inside = Environment(), Environment()
    _libm.fegetenv(before)
    _libm.fegetenv(inside)
    inside[_MXCSR] |= _FLUSH
    _libm.fesetenv(inside)
    try:
        yield
    finally:
        _libm.fesetenv(before)


@cache
def _share_memory() -> None:
    """One arena for all sessions of the process: each would keep as much as its own largest run took, else."""
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    onnxruntime.create_and_register_allocator(memory, None)


def session_options(threads: int = 1) -> onnxruntime.SessionOptions:
    """The options of every session that heed makes: the proof at export runs with what will serve.

    Args:
        threads: for one run. With 1, runs side by side have the best throughput, and no run waits for a spinning
            thread. More are for a run that has the machine to itself: there, waking threads for each operator would
            take longer than the work.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if threads > 1 else "0")
    options.add_session_config_entry("session.force_spinning_stop", "1")  # when the run is over
    if threads > 1:  # the calling thread: see `denormals_as_zero`
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
    _share_memory()
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.log_severity_level = 3  # errors
    return options


def _shrinking(provider: str) -> onnxruntime.RunOptions | None:
    """For a run that gives its memory back when it is over. onnxruntime keeps what the largest one took, else."""
    if provider != CPU:
        return None
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def device_for(precision: str, device: Device) -> Device:
    """The device that a precision is for: CUDA for float16, the CPU for int8, the requested one otherwise.

    Raises:
        DeviceError: another one was requested.
    """
    on_cuda, on_cpu = has_budget(precision, CUDA), has_budget(precision, CPU)
    if on_cuda == on_cpu:
        return device
    only: Device = "cuda" if on_cuda else "cpu"
    if device not in ("auto", only):
        raise DeviceError(f"{precision} is for {'CUDA' if on_cuda else 'the CPU'}; --device {device} cannot serve it")
    return only


def without_driver() -> str:
    """Why CUDA cannot work at all on this machine; empty if a driver is there."""
    if CUDA not in onnxruntime.get_available_providers():
        return "this onnxruntime is built for the CPU only; the extra `gpu` brings CUDA"
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "there is no NVIDIA driver here (libcuda.so.1 is not found)"
    return ""


class Session:
    """One graph in one session.

    `run` may be called from several threads at once; onnxruntime lets go of the interpreter while it computes.
    """

    def __init__(self, graph: Path | LoadedGraph, device: Device, threads: int = 1, kernels: bool = True) -> None:
        """
        Args:
            graph: a file, with weights beside it that nobody touches meanwhile; or what was loaded from a bundle.
            threads: of the CPU, for one run.
            kernels: on a CPU that can, what graphs name (layers, attention) is computed by `server/engine/kernels`.

        Raises:
            DeviceError: `device` is "cuda" and CUDA cannot be used. With "auto" the CPU serves then, and the
                reason is in `fallback`.
        """
        if isinstance(graph, Path):
            graph = load_graph(BundleFiles(graph.parent), graph.name)
        self.fallback = ""
        if device == "cpu":
            self._session = self._open_cpu(graph, threads, kernels)
        else:
            try:
                self._session = self._open_cuda(graph)
            except DeviceError as error:
                if device == "cuda":
                    raise
                self.fallback = str(error)
                self._session = self._open_cpu(graph, threads, kernels)
        # The requested provider proves nothing: onnxruntime falls back to the CPU in silence.
        self.provider: str = self._session.get_providers()[0]
        self.has_kernels = kernels and self.provider == CPU and serves(graph.model)
        self.outputs = [output.name for output in self._session.get_outputs()]
        self._weights = graph.weights if self.provider == CPU else {}  # onnxruntime keeps no reference to their memory
        self._shrinking = _shrinking(self.provider)
        self.inputs = {node.name for node in self._session.get_inputs()} & set(GRAPH_INPUTS)

    def run(self, feeds: Arrays, outputs: Collection[str] = ()) -> dict[str, np.ndarray]:
        """These outputs, or all, for the graph's inputs (see `bundle/sequence_packing.py`).

        All are computed either way, but outputs that are not requested stay on the device: hidden states of 8,192
        tokens are 25 MB for a width of 768, their embeddings less than 1.
        """
        options = self._shrinking if feeds["slots"].size * feeds["slots"].shape[1] > LARGE else None
        names = list(outputs or self.outputs)
        with denormals_as_zero():
            answers = self._session.run(names, {name: feeds[name] for name in self.inputs}, options)
        return dict(zip(names, answers, strict=True))

    @staticmethod
    def _open_cpu(graph: LoadedGraph, threads: int, kernels: bool) -> onnxruntime.InferenceSession:
        options = session_options(threads)
        if kernels and (path := library()):
            options.register_custom_ops_library(str(path))
        options.add_session_config_entry(WEIGHTS_FOLDER, str(graph.weights_folder))
        for name, value in graph.weights.items():
            options.add_initializer(name, value)
        session = onnxruntime.InferenceSession(graph.model, options, providers=[CPU])
        session.disable_fallback()
        return session

    def _open_cuda(self, graph: LoadedGraph) -> onnxruntime.InferenceSession:
        if reason := without_driver():
            raise DeviceError(f"CUDA cannot be used: {reason}")
        os.environ.setdefault(FLASH_FROM_NAME, str(FLASH_FROM))
        onnxruntime.preload_dlls()  # CUDA and cuDNN as Python packages bring them, if they do
        options = session_options()
        options.add_session_config_entry(WEIGHTS_FOLDER, str(graph.weights_folder))  # from where it copies them
        try:
            session = onnxruntime.InferenceSession(graph.model, options, providers=[(CUDA, CUDA_OPTIONS)])
        except Exception as error:
            raise DeviceError(f"CUDA cannot be used: {error}") from error
        session.disable_fallback()
        if session.get_providers()[0] != CUDA:
            raise DeviceError(
                f"CUDA cannot be used: onnxruntime {onnxruntime.__version__} loaded {session.get_providers()[0]} "
                "instead; its CUDA and cuDNN libraries are missing or too old (it wrote the details above)"
            )
        return session
