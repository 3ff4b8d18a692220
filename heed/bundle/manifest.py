"""`bundle.json`, the manifest of a bundle: its model, its inputs and outputs, its limits, its graphs, its provenance.

Letters in shapes: -1 stands for any size (batch, length).
"""

import json
import math
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from heed.bundle.errors import BundleError, explain_missing, explain_os_error

MANIFEST = "bundle.json"
TOKENIZER = "tokenizer.json"
FORMAT = 1  # what is added to it later is refused by name

Datatype = Literal["BOOL", "INT64", "FP32", "BYTES"]
Device = Literal["auto", "cpu", "cuda"]  # that a model is computed on
Precision = Literal["fp32", "fp16", "int8"]
Task = Literal["encoder", "embedding", "sequence_classification", "token_classification", "reranking"]
GraphKind = Literal["answers", "attentions"]
ScoreActivation = Literal["none", "sigmoid", "softmax"]
# A name in the bundle's own folder: no separators, no leading dot, so that it can never lead out of it, and never that
# of a file that `SHA256SUMS` does not list.
GraphName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*\.onnx$")]
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=128)]


def is_model_name(name: str) -> bool:
    """Whether callers can address a model by this name."""
    try:
        TypeAdapter(ModelName).validate_python(name)
    except ValidationError:
        return False
    return True


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorSpec(_Part):
    """One input or output as callers see it."""

    name: str
    datatype: Datatype
    shape: list[int]  # -1: any size
    optional: bool = False
    help: str = ""

    @property
    def letters(self) -> str:
        """The shape as people write it: B rows, L columns, and what is fixed as a number."""
        sizes = iter("BLLL")
        return "[" + ", ".join(next(sizes) if size == -1 else str(size) for size in self.shape) + "]"


class PositionRule(_Part):
    """Which position and which column the tokens of a full row get.

    - column: the column index is both (BERT).
    - counted: positions are counted from the ids, past the padding id (RoBERTa).
    - stripped: as if the row's outer padding were cut off, both are counted from the first real token (Big Bird).
    """

    kind: Literal["column", "counted", "stripped"]
    padding_id: int = 0  # read by "counted" only


class Limits(_Part):
    """The limits of a request. 0: the model has no such table, or takes no text."""

    vocabulary: int = Field(0, ge=0)
    token_types: int = Field(0, ge=0)
    length: int = Field(ge=1)  # columns of the longest row
    text_length: int = Field(0, ge=0)  # tokens of a text, special ones included


class Image(_Part):
    """The size of the images that a model takes, and of the square patches that become its tokens."""

    channels: int = Field(ge=1)
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    patch: int = Field(ge=1)

    @property
    def tokens(self) -> int:
        """The patches and the class token before them."""
        return 1 + (self.height // self.patch) * (self.width // self.patch)


class Graph(_Part):
    """One ONNX file and the callers' outputs it computes, in its own order."""

    precision: Precision
    file: GraphName
    outputs: list[str]
    kind: GraphKind = "answers"  # "attentions": those and the attention weights
    longest: int | None = Field(None, ge=1)  # for sequences that span at most so many columns; None: for all
    # In operators that onnxruntime has for CUDA only and that take the lengths of rows: for sequences of real tokens.
    fused: bool = False
    # Whether it was compared with the reference at the export, on the provider that it is for. If not, the first server
    # on such a provider compares it.
    proven: bool = True
    float32_layers: list[str] = []  # linear layers that an int8 graph computes in float32, as int8 is not exact enough


class Provenance(_Part):
    """How to export the bundle again. No paths, times or measurements: the same export gives the same digest."""

    family: str
    source: dict[str, str]  # SHA-256 of every source file, by its name in the source folder
    tools: dict[str, str]
    command: str
    ignored_keys: list[str] = []  # of the source's config.json, because whoever exported it said so


class Manifest(_Part):
    """Everything that a server or a caller needs to know about a bundle."""

    format: Literal[1] = 1
    name: ModelName
    version: int = Field(default=1, ge=1)
    task: Task
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    limits: Limits
    position_rule: PositionRule
    # Whether attention depends on columns (windows, chunks, relative positions, ...). If so the slot of a token inside
    # attention is its column; if not, there are as many slots as tokens.
    aligned: bool = False
    first_tokens_global: int = Field(0, ge=0)  # the global tokens where a request has no global_attention_mask
    # Which token of a row the graphs read as its first: that of column 0, whether it is real or not, or the first real
    # one.
    first_token: Literal["column", "real"] = "column"
    labels: list[str] = []  # their names, in the order of the logits
    score_activation: ScoreActivation | None = None  # makes scores of logits. None: the bundle is older than this field
    # Whether sentence_embedding is scaled to length 1. None: there is none, or the bundle is older than this field.
    unit_length: bool | None = None
    prompts: dict[str, str] = {}  # by name: what the tei.v1 API can put before a text
    default_prompt_name: str | None = None  # the one it uses if a caller names none
    image: Image | None = None
    graphs: list[Graph] = Field(min_length=1)
    provenance: Provenance

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for precision, kind in sorted({(graph.precision, graph.kind) for graph in self.graphs}):
            last = self.graphs_of(precision, kind)[-1]
            if last.longest is not None and last.longest < self.limits.length:
                raise ValueError(f"no {precision} graph for sequences of {self.limits.length} columns")
        names = {spec.name for spec in self.outputs}
        if "labels" in names and not ("logits" in names and self.labels):
            raise ValueError("labels are among the outputs, but have no names or no logits")
        if "attentions" in names and not self.gives_attentions:
            raise ValueError("attentions are among the outputs, but no graph computes them")
        if self.takes("pixel_values") and self.image is None:
            raise ValueError("pixel_values are among the inputs, but the size of an image is not given")
        if self.default_prompt_name not in (None, *self.prompts):
            raise ValueError(f"the default prompt {self.default_prompt_name!r} is none of the prompts")
        return self

    @cached_property
    def input_specs(self) -> dict[str, TensorSpec]:
        """What a request may hold, by name."""
        return {spec.name: spec for spec in self.inputs}

    @cached_property
    def output_specs(self) -> dict[str, TensorSpec]:
        """What an answer may hold, by name."""
        return {spec.name: spec for spec in self.outputs}

    def takes(self, name: str) -> bool:
        """Whether a request may hold this input."""
        return name in self.input_specs

    @property
    def label_activation(self) -> ScoreActivation:
        """What makes scores of logits; where the bundle does not say, a sigmoid of one label, a softmax of several."""
        return self.score_activation or ("sigmoid" if len(self.labels) == 1 else "softmax")

    @property
    def takes_text(self) -> bool:
        return self.takes("text")

    @property
    def gives_attentions(self) -> bool:
        return any(graph.kind == "attentions" for graph in self.graphs)

    @property
    def precisions(self) -> list[Precision]:
        """Those there are, the most exact first."""
        return [precision for precision in get_args(Precision) if any(g.precision == precision for g in self.graphs)]

    def is_proven(self, precision: str) -> bool:
        """Whether every graph of a precision was compared with the reference when it was exported."""
        return all(graph.proven for graph in self.graphs if graph.precision == precision)

    def graphs_of(self, precision: str, kind: GraphKind = "answers") -> list[Graph]:
        """The graphs of one precision and kind, the fused one and those for short sequences first.

        Raises:
            BundleError: the bundle has none.
        """
        found = [graph for graph in self.graphs if (graph.precision, graph.kind) == (precision, kind)]
        if not found:
            known = ", ".join(f"{graph.precision} {graph.kind}" for graph in self.graphs)
            missing = precision in get_args(Precision) and precision not in self.precisions
            adds = f"; `heed export --precision {precision}` adds it" * missing
            raise BundleError(f"{self.name} has no {precision} graph of {kind}, only {known}{adds}")
        return sorted(found, key=lambda graph: (not graph.fused, graph.longest or math.inf))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    (folder / MANIFEST).write_text(json.dumps(manifest.model_dump(), indent=2, ensure_ascii=False) + "\n", "utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Raises BundleError if there is none, or if it is not one that this version understands."""
    try:
        return parse_manifest(folder, (folder / MANIFEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(explain_missing(folder, MANIFEST)) from None
    except OSError as error:
        raise BundleError(explain_os_error(error)) from None


def parse_manifest(folder: Path, content: bytes) -> Manifest:
    """
    Args:
        folder: for errors.
        content: of `bundle.json`.

    Raises:
        BundleError: it is not one that this version understands.
    """
    try:
        return _with_specs_of_logits(Manifest.model_validate_json(content))
    except ValidationError as error:
        wrong = {".".join(map(str, one["loc"])) or "the whole file": one for one in error.errors()}
        unknown = [where for where, one in wrong.items() if one["type"] == "extra_forbidden"]
        where, first = next(iter(wrong.items()))
        why = _other_version(content, unknown) or f"{where}: {first['msg']}"
        raise BundleError(f"{folder / MANIFEST}: {why}") from None


def _other_version(content: bytes, unknown: list[str]) -> str:
    """What another version of heed wrote here that this one cannot read, and what to do; empty if it is not that.

    Args:
        unknown: the keys that this version does not know.
    """
    try:
        written = json.loads(content)
    except ValueError:
        return ""
    if not isinstance(written, dict) or not isinstance(written.get("format"), int):
        return ""
    by, here = _maker(written), f"this is heed {version('heed-serve')}, which reads format {FORMAT}"
    if written["format"] != FORMAT:
        return f"the bundle has format {written['format']}{by}; {here}: use a heed for it, or export the bundle again"
    if unknown:
        return (
            f"{', '.join(unknown)} {'are' if unknown[1:] else 'is'} unknown{by}; {here} as it was then: "
            "use a newer heed, or export the bundle again with this one"
        )
    return ""


def _maker(written: dict[str, object]) -> str:
    provenance = written.get("provenance")
    tools = provenance.get("tools") if isinstance(provenance, dict) else None
    maker = tools.get("heed-serve") if isinstance(tools, dict) else None
    return f", made by heed {maker}" if maker else ""


def specs_of_logits(logits: TensorSpec) -> list[TensorSpec]:
    """What a server makes of logits."""
    scores = "on request: what the model's folder makes of logits"
    return [
        logits.model_copy(update={"name": "scores", "help": scores}),
        TensorSpec(
            name="labels", datatype="BYTES", shape=logits.shape[:-1], help="the label with the highest score"
        ),
    ]  # fmt: skip


def _with_specs_of_logits(manifest: Manifest) -> Manifest:
    """Bundles that are older than scores, or than labels of models with a single one, have them, too."""
    logits = manifest.output_specs.get("logits")
    made = specs_of_logits(logits) if logits and manifest.labels else []
    missing = [spec for spec in made if spec.name not in manifest.output_specs]
    if not missing:
        return manifest
    return Manifest.model_validate(manifest.model_dump() | {"outputs": [*manifest.outputs, *missing]})
