"""The graphs that are measured, each written by a process of its own, for that takes minutes and needs no GPU:
`python -m bench.gpu.exporting KIND MODEL FOLDER`."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import torch

from bench.bare import export_padded
from bench.gpu.subjects import checkpoint
from heed.bundle.manifest import Precision
from heed.export.passes.convert_to_float16 import convert_to_float16
from heed.export.weights import save_graphs
from heed.exporting import export_bundle

KINDS = ("bundle", "padded")
NAME = "model"  # the bundle's
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")


def write(kind: str, model: str, folder: Path) -> None:
    """`folder/bundle`, proven, or `folder/padded.fp16.onnx`: the graph that anybody would export."""
    made = checkpoint(model)
    if kind == "bundle":
        export_bundle(made, folder / "bundle", NAME, precisions=PRECISIONS)
        return
    with TemporaryDirectory() as beside:
        single = Path(beside) / "padded.onnx"
        export_padded(made.encoder, single)
        converted = convert_to_float16(onnx.load(single))
        save_graphs([(folder / "padded.fp16.onnx", converted)], folder / "padded.fp16.data")


@dataclass(frozen=True)
class Writing:
    """A graph that is being written."""

    kind: str
    process: "subprocess.Popen[bytes]"
    log: Path

    def wait(self) -> None:
        """
        Raises:
            RuntimeError: it was not written; the message is the process's last line.
        """
        if self.process.wait():
            lines = self.log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
            raise RuntimeError(f"{self.kind} was not exported: {lines[-1]}")


def start(model: str, folder: Path, kinds: tuple[str, ...] = KINDS) -> dict[str, Writing]:
    """Begins to write graphs into `folder`."""
    folder.mkdir()
    return {kind: _start(kind, model, folder) for kind in kinds}


def _start(kind: str, model: str, folder: Path) -> Writing:
    log = folder / f"{kind}.log"
    with log.open("wb") as said:
        command = [sys.executable, "-m", "bench.gpu.exporting", kind, model, str(folder)]
        return Writing(kind, subprocess.Popen(command, stdout=said, stderr=said), log)


def main() -> None:
    torch.set_num_threads(2)  # several models at a time, each in three processes
    kind, model, folder = sys.argv[1:]
    write(kind, model, Path(folder))


if __name__ == "__main__":
    main()
