"""What the servers share: the padded graph in onnxruntime, a command line, a free port.

Letters: B batch, L length, D width.
"""

import argparse
import socket
from collections.abc import Mapping

import numpy as np
import onnxruntime

MODEL = "minilm"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUT = "sentence_embedding"


class Graph:
    """The padded graph. May be used from several threads at once."""

    def __init__(self, path: str, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    @property
    def width(self) -> int:
        """D."""
        return int(next(output.shape[1] for output in self._session.get_outputs() if output.name == OUTPUT))

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """`[B, L]` each in, `[B, D]` out."""
        (embedding_BD,) = self._session.run([OUTPUT], {name: inputs[name] for name in INPUTS})
        return np.asarray(embedding_BD)


def command_line() -> argparse.ArgumentParser:
    """What every server is told."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--graph", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1, help="of onnxruntime, for one run")
    return parser


def free_port() -> int:
    """For the doors that a peer cannot be kept from opening."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
