"""Exporting from Python: what `heed export` does, for checkpoint folders and for models of one's own."""

import importlib
import sys
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from heed.bundle import BundleError
from heed.bundle.contract import WIDEST, Case, Report, wide_budgets, write_contract
from heed.bundle.digests import bundle_files, write_digests
from heed.bundle.manifest import MANIFEST, TOKENIZER, Manifest, Precision, is_model_name, write_manifest
from heed.bundle.signature import read_private_key, sign
from heed.export.atomic_folder import atomic_folder
from heed.export.errors import ExportError
from heed.export.graph_writer import plan_graphs, release_weights, write_graphs
from heed.export.int8_sensitivity import layers_to_keep
from heed.export.manifest import make_manifest, source_digests
from heed.export.progress import Progress, no_progress
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
    ignore_keys: Collection[str] = (),
    note: Step = lambda _: None,
    progress: Progress = no_progress,
    max_length: int | None = None,
) -> Report:
    """Writes a model to the bundle folder `out`, proven equal to the reference.

    Args:
        source: a checkpoint folder, an encoder of one's own, or `Checkpoint(encoder, tokenizer=...)` for one that
            takes texts.
        name: the model's name for callers; that of the folder `out` by default.
        force: replace `out` if it is a bundle; nothing else is ever replaced.
        step: is called with the name of each step before it begins.
        key: an Ed25519 private key in PEM to sign the bundle with.
        precisions: what to write beside float32. Those that this machine has no device for are written unproven, and
            the report says why.
        ignore_keys: keys of a checkpoint's `config.json` that you know to be harmless, see `load_checkpoint`.
        note: is called with what you should know and may not expect: what of the checkpoint's folder is not in the
            bundle, and which outputs float32 holds badly.
        max_length: tokens of the longest row that callers may send, if fewer than a checkpoint's model could take.
        progress: is called with the share of a step that is done, from 0 to 1, within the steps that can be long.

    Returns:
        The proof, which holds.

    Raises:
        CheckpointError: the source cannot be loaded, or its tokenizer is not the model's.
        ExportError: `out` exists and must not be replaced, the name cannot be one, float32 cannot hold the model, or
            the graph's answers are not the reference's.
        BundleError: the key cannot sign.
        WriteError: `out` cannot be written: the disk is full, there is no permission, or somebody else wrote it.
    """
    out = Path(out).resolve()
    name = name or out.name
    model = _source(source, ignore_keys, max_length)
    _check_target(out, name, force, model)
    signer = read_private_key(key) if key else None
    listener = _Listener(step, note, progress)
    with atomic_folder(out, force) as folder:  # renamed to `out` at the end, or removed
        manifest, cases = _write_bundle(folder, model, name, precisions, listener)
        report = _prove_bundle(folder, model, listener)
        write_report(folder, manifest, cases, report.by_precision())
        if signer:
            sign(folder, signer)
        if force:
            _check_target(out, name, force, model)  # again: an export takes minutes
    return report


class _Listener(NamedTuple):
    """What hears how an export goes, see `export_bundle`."""

    step: Step
    note: Step
    progress: Progress


@dataclass(frozen=True)
class _Source:
    """What is exported: a folder, or a model in memory."""

    model: Path | Checkpoint
    ignore_keys: Collection[str] = ()
    max_length: int | None = None

    def load(self) -> Checkpoint:
        if isinstance(self.model, Checkpoint):
            return self.model
        return load_checkpoint(self.model, self.ignore_keys, self.max_length)


def _source(source: Path | str | Encoder | Checkpoint, ignore_keys: Collection[str], max_length: int | None) -> _Source:
    if isinstance(source, Path | str):
        return _Source(Path(source), ignore_keys, max_length)
    if max_length is not None:
        raise ExportError("max_length is for checkpoint folders; a model in memory has it in its EncoderConfig")
    if ignore_keys:
        raise ExportError("keys to ignore are those of a checkpoint's config.json, and a model in memory has none")
    return _Source(Checkpoint(source.eval()) if isinstance(source, Encoder) else source)


def _check_target(out: Path, name: str, force: bool, source: _Source) -> None:
    """Raises ExportError if `out` must not be written, or the name cannot be a model's."""
    if not is_model_name(name):
        raise ExportError(
            f"{name!r} cannot be a model's name: letters, digits, '.', '_' and '-' can; choose one with --name"
        )
    if not out.exists():
        return
    if isinstance(source.model, Path) and source.model.resolve().is_relative_to(out):
        raise ExportError(f"{out} {'is' if source.model.resolve() == out else 'holds'} the source; choose another OUT")
    if why := _not_a_bundle(out):
        raise ExportError(f"{out} exists and {why}; --force replaces bundles only, so choose another OUT or move it")
    if not force:
        raise ExportError(f"{out} exists; --force replaces it")


def _not_a_bundle(path: Path) -> str:
    """Why a path is no bundle, with nothing but a bundle's files in it; empty if it is one, or an empty folder."""
    if not path.is_dir():
        return "is no folder"
    names = {each.name for each in path.iterdir()}
    if names and MANIFEST not in names:
        return "is no bundle"
    try:
        others = sorted(names - bundle_files(path)) if names else []
    except BundleError as error:
        return f"is no whole bundle ({error})"
    return f"holds {others[0]}, which is no file of the bundle" if others else ""


def _write_bundle(
    folder: Path, source: _Source, name: str, precisions: Collection[Precision], listener: _Listener
) -> tuple[Manifest, list[Case]]:
    """Writes every file of a bundle except for its report and its signature."""
    listener.step("loading the weights")
    checkpoint = source.load()
    for each in checkpoint.notes:
        listener.note(each)
    listener.step("computing the reference's answers in float64")
    cases = make_contract(checkpoint, listener.progress)
    _check_float32(cases, listener.note)
    write_contract(folder, cases)
    float32_layers: list[str] = []
    if "int8" in precisions:
        listener.step("trying which layers int8 can hold")
        float32_layers = layers_to_keep(checkpoint.encoder, cases, listener.progress)
    listener.step("writing the graphs")
    graphs = plan_graphs(checkpoint.encoder, precisions, unprovable(), float32_layers)
    write_graphs(checkpoint.encoder, graphs, folder)
    if checkpoint.tokenizer:
        (folder / TOKENIZER).write_bytes(checkpoint.tokenizer_json())
    manifest = make_manifest(checkpoint, name, graphs, source_digests(source.model, checkpoint))
    write_manifest(folder, manifest)
    write_digests(folder)
    if isinstance(source.model, Path):
        release_weights(checkpoint.encoder)
    return manifest, cases


def _check_float32(cases: list[Case], note: Step) -> None:
    """Tells of what float32 holds badly. Raises ExportError where its numbers are no answers any more."""
    for wide in wide_budgets(cases):
        if wide.limit > WIDEST:
            raise ExportError(
                f"{wide}; more than {WIDEST:.0e} is no answer any more. It is the weights: what PyTorch computes of "
                "them in float32 is as far off. Look for values far above the others' (norms and embeddings first), "
                "or for a damaged checkpoint; nothing was written"
            )
        note(str(wide))


def _prove_bundle(folder: Path, source: _Source, listener: _Listener) -> Report:
    """Raises ExportError if an answer is not the reference's; the message says in which layer the error begins."""
    listener.step("comparing the graphs with the reference")
    report = prove(folder, listener.progress)
    if not report.holds:
        listener.step("looking where it begins")
        where = explain(folder, source.load(), report.worst)
        raise ExportError(f"the graph does not answer as the reference: {report.worst}; {where}; nothing was written")
    return report


def own_model(reference: str) -> Checkpoint:
    """The model that `package.module:factory` makes. The module is looked for in the current folder, too.

    Raises:
        ExportError: it cannot be imported, raises, or makes something else. What code of yours raised comes with the
            lines that led there.
    """
    module_name, _, factory_name = reference.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ExportError(f"{module_name} cannot be imported: {_told(error)}") from error
    finally:
        sys.path.pop(0)
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        raise ExportError(f"{module_name} has no function {factory_name!r}")
    try:
        model = factory()
    except Exception as error:
        raise ExportError(f"{reference} raised {_told(error)}") from error
    if isinstance(model, Encoder):
        return Checkpoint(model.eval())
    if isinstance(model, Checkpoint):
        return model
    raise ExportError(
        f"{reference} made {type(model).__name__}, expected a heed.model.Encoder or a heed.model.Checkpoint"
    )


def _told(error: Exception) -> str:
    """What somebody's code raised, and where: without the frames of heed and of importing around it."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename not in (__file__, importlib.__file__) and not frame.filename.startswith("<frozen importlib")
    ]
    what = "".join(traceback.format_exception_only(error)).strip()
    return f"{what}\n{''.join(traceback.format_list(frames))}".rstrip()
