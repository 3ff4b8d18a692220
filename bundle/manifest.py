"""`bundle.json`: what a bundle says about itself.

Letters in shapes: -1 stands for any size (batch, length).
"""

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bundle.errors import BundleError

MANIFEST = "bundle.json"
TOKENIZER = "tokenizer.json"

Datatype = Literal["BOOL", "INT64", "FP32", "BYTES"]
Precision = Literal["fp32"]
# A name in the bundle's own folder: no separators, no leading dot, so that it can never lead out of it.
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=128)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorSpec(_Part):
    """One input or output as callers see it."""

    name: str
    datatype: Datatype
    shape: list[int]  # -1: any size
    optional: bool = False
    help: str = ""


class PositionRule(_Part):
    """How position ids follow from a full row of ids: the column, or counted past the padding id (RoBERTa)."""

    kind: Literal["column", "counted"]
    padding_id: int = 0


class Limits(_Part):
    """What a request may hold, in tokens; `text` counts special tokens too."""

    vocabulary: int = Field(ge=1)
    token_types: int = Field(ge=1)
    length: int = Field(ge=1)
    text_length: int = Field(ge=1)


class Graph(_Part):
    """One ONNX file and the callers' outputs it computes, in its own order."""

    precision: Precision
    file: FileName
    outputs: list[str]


class Provenance(_Part):
    """Enough to do the export again. No paths, times or measurements: the same export gives the same digest."""

    family: str
    source: dict[str, str]  # SHA-256 of every source file, by its name in the source folder
    tools: dict[str, str]
    command: str


class Manifest(_Part):
    """Everything that a server or a caller needs to know about a bundle."""

    format: Literal[1] = 1
    name: ModelName
    version: int = Field(default=1, ge=1)
    task: Literal["encoder", "embedding"]
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    limits: Limits
    position_rule: PositionRule
    graphs: list[Graph] = Field(min_length=1)
    provenance: Provenance

    @property
    def takes_text(self) -> bool:
        return any(spec.name == "text" for spec in self.inputs)

    def graph(self, precision: str) -> Graph:
        """The graph of one precision.

        Raises:
            BundleError: the bundle has none.
        """
        for graph in self.graphs:
            if graph.precision == precision:
                return graph
        raise BundleError(f"{self.name} has no {precision} graph, only {', '.join(g.precision for g in self.graphs)}")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    (folder / MANIFEST).write_text(json.dumps(manifest.model_dump(), indent=2, ensure_ascii=False) + "\n", "utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Raises BundleError if there is none, or if it is not one that this version understands."""
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise BundleError(f"{folder} has no {MANIFEST}; `heed export SOURCE {folder}` makes a bundle") from None
    except NotADirectoryError:
        raise BundleError(f"{folder} is not a folder") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise BundleError(f"{folder / MANIFEST}: {where}: {first['msg']}") from None
