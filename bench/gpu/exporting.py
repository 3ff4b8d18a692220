"""The graphs that are measured, each written by a process of its own, for that takes minutes and needs no GPU:
`python -m bench.gpu.exporting KIND MODEL FOLDER`."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import torch

from bench.bare import export_padded
from bench.gpu.attend import OPERATOR, packed_operator, swapped
from bench.gpu.subjects import checkpoint
from bundle.manifest import Precision
from export import half
from export.graph import export_graph
from heed.exporting import export_bundle

KINDS = ("bundle", "padded", "operator")
NAME = "model"  # the bundle's
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")


def write(kind: str, model: str, folder: Path) -> None:
    """`folder/bundle`, proven, or `folder/<kind>.fp16.onnx`."""
    made = checkpoint(model)
    if kind == "bundle":
        export_bundle(made, folder / "bundle", NAME, precisions=PRECISIONS)
        return
    single, target = folder / f"{kind}.onnx", folder / f"{kind}.fp16.onnx"
    if kind == "padded":
        export_padded(made.encoder, single)
    else:
        half.FOLLOWS.add(OPERATOR)  # it computes in float16 if what comes in is float16
        export_graph(swapped(made.encoder, packed_operator), single)
    half.write_half(single, target)


@dataclass(frozen=True)
class Writing:
    """A graph that is being written."""

    kind: str
    process: "subprocess.Popen[bytes]"
    said: IO[bytes]

    def wait(self) -> None:
        """
        Raises:
            RuntimeError: it was not written; the message is the process's last line.
        """
        if self.process.wait():
            self.said.seek(0)
            lines = self.said.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise RuntimeError(f"{self.kind} was not exported: {lines[-1]}")


def start(model: str, folder: Path) -> dict[str, Writing]:
    """Begins to write all kinds into `folder`."""
    folder.mkdir()
    started = {}
    for kind in KINDS:
        said = TemporaryFile()  # noqa: SIM115 - open for as long as the process runs
        command = [sys.executable, "-m", "bench.gpu.exporting", kind, model, str(folder)]
        started[kind] = Writing(kind, subprocess.Popen(command, stdout=said, stderr=said), said)
    return started


def main() -> None:
    torch.set_num_threads(2)  # several models at a time, each in three processes
    kind, model, folder = sys.argv[1:]
    write(kind, model, Path(folder))


if __name__ == "__main__":
    main()
