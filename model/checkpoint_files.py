"""The files of a checkpoint folder: JSON, and weights from safetensors only.

A pickle can run code when it is read, so it is refused.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

INDEX = "model.safetensors.index.json"


class CheckpointError(ValueError):
    """A checkpoint folder that cannot be loaded; the message says what is wrong and what would help."""


def read_json(path: Path) -> dict[str, Any]:
    """
    Raises:
        CheckpointError: the file is missing or holds no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds {type(content).__name__}, expected an object")
    return content


def weight_files(folder: Path) -> list[Path]:
    """The file that holds a folder's weights, or all that an index names.

    Raises:
        CheckpointError: one is missing.
    """
    index = folder / INDEX
    if index.exists():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise CheckpointError(f"{index} has no weight_map of file names")
        files = [folder / Path(name).name for name in sorted(set(shards.values()))]
    else:
        files = [folder / "model.safetensors"]
    for file in files:
        if not file.exists():
            _refuse_pickles(folder)
            raise CheckpointError(f"{file} is missing")
    return files


def _refuse_pickles(folder: Path) -> None:
    pickled = sorted(path.name for path in folder.glob("*.bin")) + sorted(path.name for path in folder.glob("*.pt"))
    if pickled:
        raise CheckpointError(
            f"{folder} has its weights as a pickle ({pickled[0]}), which can run code when it is read; "
            "save it as safetensors first (transformers: model.save_pretrained(folder))"
        )


def read_shapes(files: list[Path]) -> list[list[int]]:
    """The shape of every weight, from the headers alone.

    Raises:
        CheckpointError: a file is damaged.
    """
    shapes: list[list[int]] = []
    for file in files:
        try:
            with safe_open(file, framework="pt") as weights:
                shapes += [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118
        except SafetensorError as error:
            raise CheckpointError(f"{file} is damaged or truncated: {error}") from None
    return shapes


def read_weights(files: list[Path]) -> Iterator[tuple[str, Tensor]]:
    """Every weight and its name.

    Raises:
        CheckpointError: a file is damaged.
    """
    for file in files:
        try:
            with safe_open(file, framework="pt") as weights:
                for name in weights.keys():  # noqa: SIM118 - not a dictionary
                    yield name, weights.get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(f"{file} is damaged or truncated: {error}") from None
