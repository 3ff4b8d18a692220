"""Exporting from Python: what `heed export` does, for checkpoint folders and for models of one's own."""

import importlib
import sys
from collections.abc import Callable, Collection
from pathlib import Path

from heed.bundle import read_manifest
from heed.bundle.contract import (
    BUDGETS,
    CPU,
    CUDA,
    Finding,
    Report,
    attention_cases,
    check,
    plain_cases,
    read_contract,
)
from heed.bundle.manifest import Device, Precision
from heed.bundle.packing import pack
from heed.export.bundle import ExportError, write_bundle
from heed.export.drift import drift
from heed.model import Checkpoint, Encoder
from heed.server.engine.model import Model
from heed.server.engine.session import Session, without_driver
from heed.server.errors import DeviceError


def unprovable() -> dict[Precision, str]:
    """The precisions for which this machine has no device, and why."""
    reason = without_driver()
    return {"fp16": f"fp16 is for CUDA: {reason}"} if reason else {}


def prove(folder: Path) -> Report:
    """Compares every graph of a bundle with its contract, as a server would run it.

    Raises:
        ExportError: the device that a precision is for cannot be used.
    """
    findings: list[Finding] = []
    unproven: dict[str, str] = {}
    manifest = read_manifest(folder)
    try:
        for precision in manifest.precisions:
            if manifest.is_proven(precision):
                device: Device = "auto" if precision == "fp16" else "cpu"
                # As any machine computes it: where kernels serve, the server proves them itself, or does without.
                findings += Model(folder, device, precision, kernels=False).check_contract(everything=True)
            else:
                trial = try_on_cpu(folder, precision)
                findings += [finding for finding in trial.findings if not finding.holds and not finding.reason]
                unproven[precision] = f"{unprovable()[precision]}. {_outcome(trial)}"
    except DeviceError as error:
        raise ExportError(str(error)) from error
    return Report(findings, unproven)


def try_on_cpu(folder: Path, precision: Precision) -> Report:
    """What a precision that is for CUDA answers on the CPU, by its own budgets. It proves nothing for CUDA, but what is
    wrong here is likely wrong there."""
    model = Model(folder, "cpu", precision, anywhere=True)
    cases = read_contract(folder)
    return Report(list(check([*plain_cases(cases), *attention_cases(cases)], model.answer, precision, CUDA)))


def _outcome(trial: Report) -> str:
    if trial.worst.reason:
        return f"It could not be tried on the CPU either ({trial.worst.reason})"
    where = f"{trial.worst.output} in {trial.worst.case}"
    return f"Tried on the CPU, which proves nothing for CUDA: {trial.worst.error:.1e} at worst, {where}"


def explain(folder: Path, checkpoint: Checkpoint, finding: Finding) -> str:
    """Where a finding's error begins, from layer to layer."""
    precision = finding.precision
    model = Model(folder, "cpu", precision, anywhere=True)
    case = next(case for case in read_contract(folder) if finding.case in (case.name, f"{case.name} with attentions"))
    sequences = model.preprocessor.preprocess(case.inputs).rows
    span = max(member.span(model.manifest.aligned) for member in sequences)
    graphs = model.manifest.graphs_of(precision)
    graph = next(graph for graph in graphs if not graph.fused and span <= (graph.longest or span))
    budget = BUDGETS[precision, CUDA if precision == "fp16" else CPU].vectors
    feeds = pack(sequences, model.manifest.aligned)
    return f"; {drift(checkpoint.encoder, graph, feeds, budget, lambda path, feeds: Session(path, 'cpu').run(feeds))}"


def export_bundle(
    source: Path | str | Encoder | Checkpoint,
    out: Path | str,
    name: str | None = None,
    force: bool = False,
    step: Callable[[str], None] = lambda _: None,
    key: Path | None = None,
    precisions: Collection[Precision] = (),
) -> Report:
    """Writes a model to the bundle folder `out`, proven equal to the reference.

    Args:
        source: a checkpoint folder, an encoder of one's own, or `Checkpoint(encoder, tokenizer=...)` for one that
            takes texts.
        name: the model's name for callers; that of the folder `out` by default.
        force: replace `out` if it exists.
        step: is told what happens next.
        key: an Ed25519 private key in PEM to sign the bundle with.
        precisions: what to write beside float32. Those that this machine has no device for are written unproven, and
            the report says why.

    Raises:
        CheckpointError, ExportError, BundleError: see `write_bundle`; nothing is written then.
    """
    if isinstance(source, Encoder):
        source = Checkpoint(source.eval())
    elif isinstance(source, str):
        source = Path(source)
    return write_bundle(source, Path(out), prove, name, force, step, key, precisions, unprovable(), explain)


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
    made = factory()
    if isinstance(made, Encoder):
        return Checkpoint(made.eval())
    if isinstance(made, Checkpoint):
        return made
    raise ExportError(
        f"{reference} made {type(made).__name__}, expected a heed.model.Encoder or a heed.model.Checkpoint"
    )
