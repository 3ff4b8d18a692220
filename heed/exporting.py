"""Exporting from Python: what `heed export` does, for checkpoint folders and for models of one's own."""

import importlib
import sys
from collections.abc import Callable, Collection
from pathlib import Path

from heed.bundle.contract import Case, Report, write_contract
from heed.bundle.digests import write_digests
from heed.bundle.manifest import TOKENIZER, Manifest, Precision, is_model_name, write_manifest
from heed.bundle.signature import read_private_key, sign
from heed.export.atomic_folder import atomic_folder
from heed.export.errors import ExportError
from heed.export.graph_writer import plan_graphs, release_weights, write_graphs
from heed.export.int8_sensitivity import layers_to_keep
from heed.export.manifest import make_manifest, source_digests
from heed.export.reference import make_contract
from heed.export.report import write_report
from heed.export_verification import explain, prove, unprovable
from heed.model import Checkpoint, Encoder, load_checkpoint

__all__ = ["ExportError", "export_bundle", "own_model"]

Step = Callable[[str], None]


def export_bundle(
    source: Path | str | Encoder | Checkpoint,
    out: Path | str,
    name: str | None = None,
    force: bool = False,
    step: Step = lambda _: None,
    key: Path | None = None,
    precisions: Collection[Precision] = (),
) -> Report:
    """Writes a model to the bundle folder `out`, proven equal to the reference.

    Args:
        source: a checkpoint folder, an encoder of one's own, or `Checkpoint(encoder, tokenizer=...)` for one that
            takes texts.
        name: the model's name for callers; that of the folder `out` by default.
        force: replace `out` if it exists.
        step: is called with the name of each step before it begins.
        key: an Ed25519 private key in PEM to sign the bundle with.
        precisions: what to write beside float32. Those that this machine has no device for are written unproven, and
            the report says why.

    Returns:
        The proof, which holds.

    Raises:
        CheckpointError: the source cannot be loaded, or its tokenizer is not the model's.
        ExportError: `out` exists, the name cannot be one, or the graph's answers are not the reference's.
        BundleError: the key cannot sign.
        WriteError: `out` cannot be written: the disk is full, there is no permission, or somebody else wrote it.
    """
    out = Path(out).resolve()
    name = name or out.name
    _check_target(out, name, force)
    signer = read_private_key(key) if key else None
    model = _model(source)
    with atomic_folder(out, force) as folder:  # renamed to `out` at the end, or removed
        manifest, cases = _write_bundle(folder, model, name, precisions, step)
        report = _prove_bundle(folder, model, step)
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
    if not is_model_name(name):
        raise ExportError(
            f"{name!r} cannot be a model's name: letters, digits, '.', '_' and '-' can; choose one with --name"
        )


def _model(source: Path | str | Encoder | Checkpoint) -> Path | Checkpoint:
    if isinstance(source, Encoder):
        return Checkpoint(source.eval())
    return Path(source) if isinstance(source, str) else source


def _load(model: Path | Checkpoint) -> Checkpoint:
    return model if isinstance(model, Checkpoint) else load_checkpoint(model)


def _write_bundle(
    folder: Path, model: Path | Checkpoint, name: str, precisions: Collection[Precision], step: Step
) -> tuple[Manifest, list[Case]]:
    """Writes every file of a bundle except for its report and its signature."""
    step("loading the weights")
    checkpoint = _load(model)
    step("computing the reference's answers in float64")
    cases = make_contract(checkpoint)
    write_contract(folder, cases)
    float32_layers: list[str] = []
    if "int8" in precisions:
        step("trying which layers int8 can hold")
        float32_layers = layers_to_keep(checkpoint.encoder, cases)
    step("writing the graphs")
    graphs = plan_graphs(checkpoint.encoder, precisions, unprovable(), float32_layers)
    write_graphs(checkpoint.encoder, graphs, folder)
    if checkpoint.tokenizer:
        (folder / TOKENIZER).write_bytes(checkpoint.tokenizer_json())
    manifest = make_manifest(checkpoint, name, graphs, source_digests(model, checkpoint))
    write_manifest(folder, manifest)
    write_digests(folder)
    if isinstance(model, Path):
        release_weights(checkpoint.encoder)
    return manifest, cases


def _prove_bundle(folder: Path, model: Path | Checkpoint, step: Step) -> Report:
    """Raises ExportError if an answer is not the reference's; the message says in which layer the error begins."""
    step("comparing the graphs with the reference")
    report = prove(folder)
    if not report.holds:
        step("looking where it begins")
        where = explain(folder, _load(model), report.worst)
        raise ExportError(f"the graph does not answer as the reference: {report.worst}; {where}; nothing was written")
    return report


def own_model(reference: str) -> Checkpoint:
    """The model that `package.module:factory` makes. The module is looked for in the current folder, too.

    Raises:
        ExportError: it cannot be imported, or makes something else.
    """
    module_name, _, factory_name = reference.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ExportError(f"{module_name} cannot be imported: {error}") from error
    finally:
        sys.path.pop(0)
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        raise ExportError(f"{module_name} has no function {factory_name!r}")
    model = factory()
    if isinstance(model, Encoder):
        return Checkpoint(model.eval())
    if isinstance(model, Checkpoint):
        return model
    raise ExportError(
        f"{reference} made {type(model).__name__}, expected a heed.model.Encoder or a heed.model.Checkpoint"
    )
