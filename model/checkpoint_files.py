"""The files of a checkpoint folder: JSON, and weights from safetensors or from a pickle of nothing but tensors."""

import json
import re
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

# In the order in which `transformers` looks for them: the first that is there counts.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

LFS = b"version https://git-lfs.github.com/spec/"  # begins a file that stands for a large one

# Weights that only other programs read, by the ends of their files' names.
FOREIGN = {
    ".onnx": "ONNX",
    ".xml": "OpenVINO",
    ".gguf": "GGUF",
    ".h5": "TensorFlow",
    ".msgpack": "Flax",
    ".ot": "rust-bert",
    ".mlmodel": "Core ML",
    ".mlpackage": "Core ML",
}


PICKLES = {".bin", ".ckpt", ".pt", ".pth"}


class CheckpointError(ValueError):
    """A checkpoint folder that cannot be loaded; the message says what is wrong and what would help."""


def read_json(path: Path) -> dict[str, Any]:
    """
    Raises:
        CheckpointError: the file is missing or holds no object.
    """
    try:
        check_is_here(path)
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is missing; give the folder of a checkpoint, whole as it was published"
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds {type(content).__name__}, expected an object")
    return content


def check_is_here(path: Path) -> None:
    """Raises CheckpointError for a pointer of Git LFS, which a clone without `git lfs` leaves in a file's place."""
    with path.open("rb") as file:
        if file.read(len(LFS)) == LFS:
            raise CheckpointError(
                f"{path} is a pointer of Git LFS, not the file itself; fetch it: git -C {path.parent} lfs pull"
            )


@dataclass(frozen=True)
class StoredWeights:
    """The files that hold a folder's weights."""

    files: tuple[Path, ...]
    index: Path | None = None  # which names them

    @property
    def read_files(self) -> list[Path]:
        return [*self.files, *([self.index] if self.index else [])]

    def shapes(self) -> dict[str, list[int]]:
        """The shape of every weight by its name, without reading any numbers.

        Raises:
            CheckpointError: a file is damaged, or holds more than weights.
        """
        return dict(item for file in self.files for item in _shapes(file))

    def read(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight and its name.

        Raises:
            CheckpointError: a file is damaged, or holds more than weights.
        """
        for file in self.files:
            yield from _tensors(file)


def find_weights(folder: Path) -> StoredWeights:
    """The file that holds a folder's weights, or all that an index names.

    Raises:
        CheckpointError: there are none, or one that an index names is missing.
    """
    found = next((folder / name for name in WEIGHTS if (folder / name).exists()), None)
    if found is None:
        raise CheckpointError(_none_found(folder))
    if found.suffix != ".json":
        return StoredWeights((found,))
    shards = read_json(found).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise CheckpointError(f"{found} has no weight_map of file names")
    files = tuple(folder / Path(name).name for name in sorted(set(shards.values())))
    for file in files:
        if not file.exists():
            raise CheckpointError(f"{file} is missing, which {found.name} names; fetch it, or the folder again")
    return StoredWeights(files, found)


def _none_found(folder: Path) -> str:
    """What a folder without weights has instead, and what to fetch."""
    expected = f"{WEIGHTS[0]} is missing, and so are {', '.join(WEIGHTS[1:])}"
    fetch = f"fetch it: hf download NAME {WEIGHTS[0]} --local-dir {folder}"
    foreign = sorted(path for path in folder.rglob("*") if path.suffix in FOREIGN)
    if foreign:
        kinds = " and ".join(dict.fromkeys(FOREIGN[path.suffix] for path in foreign))
        first = foreign[0].relative_to(folder)
        return f"{folder} has its weights for {kinds} only ({first}), and heed exports PyTorch's: {expected}; {fetch}"
    others = sorted(path for path in folder.iterdir() if path.suffix in PICKLES | {".safetensors"})
    if others:
        kind = WEIGHTS[2] if others[0].suffix in PICKLES else WEIGHTS[0]
        return f"{folder}: {expected}; if {others[0].name} holds the model's weights, rename it to {kind}"
    return f"{folder}: {expected}; {fetch}"


def _shapes(file: Path) -> Iterator[tuple[str, list[int]]]:
    if file.suffix != ".safetensors":
        yield from ((name, list(tensor.shape)) for name, tensor in _unpickled(file, "meta").items())
        return
    check_is_here(file)
    try:
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - not a dictionary
                yield name, weights.get_slice(name).get_shape()
    except SafetensorError as error:
        raise CheckpointError(f"{file} is damaged or truncated: {error}") from None


def _tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    if file.suffix != ".safetensors":
        yield from _unpickled(file, "cpu").items()
        return
    try:
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - not a dictionary
                yield name, weights.get_tensor(name)
    except SafetensorError as error:
        raise CheckpointError(f"{file} is damaged or truncated: {error}") from None


def _unpickled(file: Path, device: str) -> dict[str, Tensor]:
    """The tensors of a pickle by their names. A pickle can run code when it is read; with `weights_only` torch builds
    nothing but tensors, and refuses what names anything else."""
    check_is_here(file)
    try:
        with warnings.catch_warnings(action="ignore"):  # about pickles of other days
            content = torch.load(file, device, weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # whatever a damaged pickle brings up
        raise CheckpointError(
            f"{file} {_why_not_unpickled(str(error))}; save the weights where they were made: "
            "model.save_pretrained(folder) writes safetensors"
        ) from None
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(
            f"{file} holds something else than tensors by name; save those of the model alone: "
            "torch.save(model.state_dict(), file)"
        )
    return {str(name): tensor for name, tensor in content.items()}


def _why_not_unpickled(error: str) -> str:
    if code := re.search(r"GLOBAL (\S+)", error):
        return f"holds more than weights: it names {code[1]}, which is never imported or run"
    return "is damaged or truncated, or was not written by torch.save"
