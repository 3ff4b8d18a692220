"""A model to a bundle folder: written aside, proven, then renamed into place."""

import hashlib
import shutil
from collections.abc import Callable, Collection
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import torch
from pydantic import TypeAdapter, ValidationError

from heed.bundle.contract import Case, Finding, Report, write_contract
from heed.bundle.digests import file_digest, write_digests
from heed.bundle.manifest import TOKENIZER, Graph, Manifest, ModelName, Precision, Provenance, write_manifest
from heed.bundle.signature import read_private_key, sign
from heed.export import manifest as signature
from heed.export.atomic_folder import written_aside
from heed.export.int8_sensitivity import layers_to_keep
from heed.export.passes.convert_to_float16 import write_half
from heed.export.passes.fuse_for_cuda import fused
from heed.export.passes.outline_attention import name_parts
from heed.export.passes.outline_linear import name_layers
from heed.export.passes.quantize_to_int8 import write_int8
from heed.export.reference import make_contract
from heed.export.report import write_report
from heed.export.torch_to_onnx import export_graph
from heed.export.weights import Places, share_weights
from heed.model import Checkpoint, Encoder, load_checkpoint

WEIGHTS = "weights.fp32.data"
FUSED = "fused.fp16.onnx"
Step = Callable[[str], None]
TOOLS = ("torch", "onnx", "onnxscript", "tokenizers", "numpy")


class ExportError(ValueError):
    """Why no bundle was written."""


def _manifest(checkpoint: Checkpoint, name: str, digests: dict[str, str], graphs: list[Graph]) -> Manifest:
    config = checkpoint.encoder.config
    precisions = list(dict.fromkeys(graph.precision for graph in graphs))
    others = f" --precision {','.join(precisions)}" if precisions != ["fp32"] else ""
    return Manifest(
        name=name,
        task=signature.task(config),
        inputs=signature.inputs(checkpoint),
        outputs=signature.outputs(checkpoint, signature.gives_attentions(config)),
        limits=signature.limits(checkpoint),
        position_rule=signature.position_rule(config),
        aligned=config.aligned,
        first_tokens_global=config.first_tokens_global,
        labels=signature.labels(config),
        unit_length=signature.unit_length(config),
        prompts=dict(checkpoint.prompts.texts) if checkpoint.tokenizer else {},
        default_prompt_name=checkpoint.prompts.default if checkpoint.tokenizer else None,
        image=signature.image(config),
        graphs=graphs,
        provenance=Provenance(
            family=checkpoint.family,
            source=digests,
            tools={tool: version(tool) for tool in TOOLS},
            command=f"heed export SOURCE OUT --name {name}{others}",
        ),
    )


def _load(source: Path | Checkpoint) -> Checkpoint:
    return source if isinstance(source, Checkpoint) else load_checkpoint(source)


def _let_go(encoder: Encoder) -> None:
    """Frees the weights: they and the graphs that are loaded next would take twice the memory.

    It is not enough to forget the encoder, because the exporter's rules remember the last graph that they matched.
    """
    for weight in encoder.parameters():
        weight.data = torch.empty(0)


def _source_digests(source: Path | Checkpoint, checkpoint: Checkpoint) -> dict[str, str]:
    """What names the source: the digest of every file that was read, or of the weights."""
    if isinstance(source, Path):
        return {path.relative_to(source).as_posix(): file_digest(path) for path in checkpoint.files}
    digest = hashlib.sha256()
    for name, tensor in sorted(checkpoint.encoder.state_dict().items()):
        digest.update(f"{name} {list(tensor.shape)}\n".encode() + tensor.numpy().tobytes())
    return {"weights": digest.hexdigest()}


def _graphs(
    checkpoint: Checkpoint,
    cases: list[Case],
    others: Collection[Precision],
    unproven: Collection[Precision],
    step: Step,
) -> list[Graph]:
    """Those of float32, and the same in other precisions."""
    graphs = signature.graphs(checkpoint)
    found = list(graphs)
    for precision in others:
        fields: dict[str, object] = {"precision": precision, "proven": precision not in unproven}
        if precision == "int8":
            step("trying which layers int8 can hold")
            fields["float32_layers"] = layers_to_keep(checkpoint.encoder, cases)
        found += [graph.model_copy(update=fields | {"file": _named(graph.file, precision)}) for graph in graphs]
        if precision == "fp16" and checkpoint.encoder.config.plain:
            only = {"file": FUSED, "fused": True}
            found += [graph.model_copy(update=fields | only) for graph in graphs if graph.kind == "answers"]
    return found


def _named(file: str, precision: Precision) -> str:
    """The name of what a file of float32 is in another precision."""
    return file.replace(".fp32.", f".{precision}.")


def _write_graphs(encoder: Encoder, graphs: list[Graph], folder: Path) -> None:
    """Every graph, and a file of weights for each precision; a weight that an earlier one has is not written again."""
    float32 = [graph for graph in graphs if graph.precision == "fp32"]
    short, *long = (graph.file for graph in float32 if graph.kind == "answers")
    attentions = next((folder / graph.file for graph in float32 if graph.kind == "attentions"), None)
    export_graph(encoder, folder / short, dense=True, attentions=attentions)
    for file in long:
        export_graph(encoder, folder / file, dense=False)
    sources = {_named(graph.file, precision): graph.file for graph in float32 for precision in get_args(Precision)}
    sources[FUSED] = float32[0].file
    for graph in graphs:
        convert(encoder, graph, folder / sources[graph.file], folder / graph.file)
    for graph in graphs:
        name_layers(folder / graph.file, rough=graph.precision == "int8")
        if graph.precision != "fp16":  # its numbers are float32
            name_parts(folder / graph.file)
    places: Places = {}
    for precision in get_args(Precision):
        if files := [folder / graph.file for graph in graphs if graph.precision == precision]:
            share_weights(files, folder / _named(WEIGHTS, precision), places)


def convert(encoder: Encoder, graph: Graph, source: Path, target: Path) -> None:
    """Writes a float32 graph in the precision of another."""
    if graph.fused:
        write_half(fused(source), target)
    elif graph.precision == "fp16":
        write_half(source, target)
    elif graph.precision == "int8":
        write_int8(encoder, graph.float32_layers, source, target)


def write_bundle(
    source: Path | Checkpoint,
    out: Path,
    prove: Callable[[Path], Report],
    name: str | None = None,
    force: bool = False,
    step: Step = lambda _: None,
    key: Path | None = None,
    precisions: Collection[Precision] = (),
    unproven: Collection[Precision] = (),
    explain: Callable[[Path, Checkpoint, Finding], str] = lambda *_: "",
) -> Report:
    """Exports a model to the bundle folder `out`.

    Args:
        source: the folder of a published checkpoint, or a model of one's own: `Checkpoint(encoder)`.
        prove: compares the finished bundle with its contract. It is handed in because it is the server's own
            runtime that must be right, and this package does not know the server.
        name: the model's name; that of the folder `out` by default.
        force: replace `out` if it exists.
        step: is told what happens next.
        key: an Ed25519 private key in PEM; what is proven is signed with it.
        precisions: which to write beside float32, from which the others are made.
        unproven: those of them that this machine cannot prove, as the manifest will say.
        explain: more about a finding that does not hold, in words.

    Returns:
        The proof. If it does not hold, nothing was written.

    Raises:
        CheckpointError: the source cannot be loaded, or its tokenizer is not the model's.
        ExportError: `out` exists, the name cannot be one, or the graph's answers are not the reference's.
        BundleError: the key is none that signs.
        WriteError: `out` cannot be written: the disk is full, the place is somebody else's, or it was taken meanwhile.
    """
    out = out.resolve()
    name = name or out.name
    _check_target(out, name, force)
    signer = read_private_key(key) if key else None
    with written_aside(out, force) as folder:
        step("loading the weights")
        checkpoint = _load(source)
        step("computing the reference's answers in float64")
        cases = make_contract(checkpoint)
        write_contract(folder, cases)
        others = [precision for precision in get_args(Precision)[1:] if precision in precisions]
        graphs = _graphs(checkpoint, cases, others, unproven, step)
        manifest = _manifest(checkpoint, name, _source_digests(source, checkpoint), graphs)
        step("writing the graphs")
        _write_graphs(checkpoint.encoder, manifest.graphs, folder)
        if checkpoint.tokenizer:
            shutil.copyfile(checkpoint.tokenizer, folder / TOKENIZER)
        write_manifest(folder, manifest)
        write_digests(folder)
        if isinstance(source, Path):
            _let_go(checkpoint.encoder)
        step("comparing the graphs with the reference")
        report = prove(folder)
        if not report.holds:
            step("looking where it begins")
            more = explain(folder, _load(source), report.worst)
            raise ExportError(f"the graph does not answer as the reference: {report.worst}{more}; nothing was written")
        write_report(folder, manifest, cases, report.by_precision())
        if signer:
            sign(folder, signer)
    return report


def _check_target(out: Path, name: str, force: bool) -> None:
    """Raises ExportError if `out` must not be written, or the name cannot be a model's."""
    if out.exists() and not force:
        raise ExportError(f"{out} exists; --force replaces it")
    if out.exists() and not out.is_dir():
        raise ExportError(f"{out} is there and is no folder; --force replaces folders only")
    try:
        TypeAdapter(ModelName).validate_python(name)
    except ValidationError:
        raise ExportError(
            f"{name!r} cannot be a model's name: letters, digits, '.', '_' and '-' can; choose one with --name"
        ) from None
