"""A checkpoint folder to a bundle folder: written aside, proven, then renamed into place."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from bundle.contract import Report, write_contract
from bundle.digests import file_digest, write_digests
from bundle.manifest import (
    TOKENIZER,
    Graph,
    Limits,
    Manifest,
    ModelName,
    PositionRule,
    Provenance,
    TensorSpec,
    write_manifest,
)
from export.graph import export_graph
from export.reference import make_contract
from model import Checkpoint, load_checkpoint

TOOLS = ("torch", "onnx", "onnxscript", "tokenizers", "numpy")


class ExportError(ValueError):
    """Why no bundle was written."""


def _inputs(text: bool) -> list[TensorSpec]:
    specs = [
        # Optional only because text can stand in its place.
        TensorSpec(name="input_ids", datatype="INT64", shape=[-1, -1], optional=text, help="token ids"),
        TensorSpec(
            name="attention_mask", datatype="INT64", shape=[-1, -1], optional=True,
            help="1 for a real token, 0 for padding; all real when left out",
        ),
        TensorSpec(
            name="token_type_ids", datatype="INT64", shape=[-1, -1], optional=True, help="zeros when left out"
        ),
    ]  # fmt: skip
    if text:
        specs.append(
            TensorSpec(
                name="text", datatype="BYTES", shape=[-1], optional=True, help="UTF-8, instead of the other inputs"
            )
        )
    return specs


def _outputs(checkpoint: Checkpoint) -> list[TensorSpec]:
    width = checkpoint.encoder.config.width
    specs = [
        TensorSpec(
            name="last_hidden_state",
            datatype="FP32",
            shape=[-1, -1, width],
            help="a vector per token, zeros at padding",
        )
    ]
    if checkpoint.encoder.pooling:
        config = checkpoint.encoder.pooling.config
        unit = ", of length 1" if config.unit_length else ""
        specs.append(
            TensorSpec(
                name="sentence_embedding", datatype="FP32", shape=[-1, width], help=f"{config.mode} of the tokens{unit}"
            )
        )
    return specs


def _manifest(checkpoint: Checkpoint, source: Path, name: str) -> Manifest:
    config = checkpoint.encoder.config
    outputs = _outputs(checkpoint)
    return Manifest(
        name=name,
        task="embedding" if checkpoint.encoder.pooling else "encoder",
        inputs=_inputs(text=checkpoint.tokenizer is not None),
        outputs=outputs,
        limits=Limits(
            vocabulary=config.vocabulary,
            token_types=config.token_types,
            length=config.max_length,
            text_length=checkpoint.max_text_length,
        ),
        position_rule=PositionRule(kind=config.position_rule, padding_id=config.padding_id),
        graphs=[Graph(precision="fp32", file="model.fp32.onnx", outputs=[spec.name for spec in outputs])],
        provenance=Provenance(
            family=checkpoint.family,
            source={path.relative_to(source).as_posix(): file_digest(path) for path in checkpoint.files},
            tools={tool: version(tool) for tool in TOOLS},
            command=f"heed export SOURCE OUT --name {name}",
        ),
    )


@contextmanager
def _written_aside(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place if all goes well, and is gone if anything does not."""
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.parent / f".{out.name}.partial-{os.getpid()}"
    old = out.parent / f".{out.name}.old-{os.getpid()}"
    aside.mkdir()
    try:
        yield aside
        if out.exists():
            out.rename(old)
        aside.rename(out)
    finally:
        if old.exists() and not out.exists():  # interrupted between the two renames
            old.rename(out)
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def write_bundle(
    source: Path,
    out: Path,
    prove: Callable[[Path], Report],
    name: str | None = None,
    force: bool = False,
    step: Callable[[str], None] = lambda _: None,
) -> Report:
    """Exports the checkpoint folder `source` to the bundle folder `out`.

    Args:
        prove: compares the finished bundle with its contract. It is handed in because it is the server's own
            runtime that must be right, and this package does not know the server.
        name: the model's name; that of the folder `out` by default.
        force: replace `out` if it exists.
        step: is told what happens next.

    Returns:
        The proof. If it does not hold, nothing was written.

    Raises:
        CheckpointError: the source cannot be loaded.
        ExportError: `out` exists, the name cannot be one, or the graph's answers are not the reference's.
    """
    out = out.resolve()
    if out.exists() and not force:
        raise ExportError(f"{out} exists; --force replaces it")
    name = name or out.name
    try:
        TypeAdapter(ModelName).validate_python(name)
    except ValidationError:
        raise ExportError(
            f"{name!r} cannot be a model's name: letters, digits, '.', '_' and '-' can; choose one with --name"
        ) from None
    step("loading the weights")
    checkpoint = load_checkpoint(source)
    with _written_aside(out) as folder:
        manifest = _manifest(checkpoint, source, name)
        step("computing the reference's answers in float64")
        write_contract(folder, make_contract(checkpoint))
        step("writing the graph")
        export_graph(checkpoint.encoder, folder / manifest.graphs[0].file)
        if checkpoint.tokenizer:
            shutil.copyfile(checkpoint.tokenizer, folder / TOKENIZER)
        write_manifest(folder, manifest)
        write_digests(folder)
        step("comparing the graph with the reference")
        report = prove(folder)
        if not report.holds:
            raise ExportError(f"the graph does not answer as the reference: {report.worst}; nothing was written")
    return report
