"""A bundle compared with its contract by the server's own runtime, which is what will answer."""

from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory

from heed.bundle import Manifest, read_manifest
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
from heed.bundle.manifest import Device, Graph, Precision
from heed.bundle.sequence_packing import TokenSequence, pack
from heed.export.errors import ExportError
from heed.export.layer_errors import layer_errors, write_states_graph
from heed.export.progress import Progress, Work, no_progress
from heed.model import Checkpoint
from heed.server.engine.model import Model
from heed.server.engine.session import Session, without_driver
from heed.server.errors import DeviceError


def unprovable() -> dict[Precision, str]:
    """The precisions for which this machine has no device, and why."""
    reason = without_driver()
    return {"fp16": f"fp16 is for CUDA: {reason}"} if reason else {}


def prove(folder: Path, progress: Progress = no_progress) -> Report:
    """Compares every graph of a bundle with its contract, as a server would run it.

    Raises:
        ExportError: the device that a precision is for cannot be used.
    """
    report = Report()
    manifest = read_manifest(folder)
    work = Work(progress, len(manifest.precisions) * len(read_contract(folder)))
    try:
        for precision in manifest.precisions:
            if manifest.is_proven(precision):
                device: Device = "auto" if precision == "fp16" else "cpu"
                # Without heed's own kernels, as any machine computes it: a server that has them compares them itself.
                model = Model(folder, device, precision, kernels=False)
                report.findings.extend(_told(model.check_contract(everything=True), work))
            else:
                trial = try_on_cpu(folder, precision)
                report.findings.extend(one for one in trial.findings if not one.holds and not one.reason)
                report.unproven[precision] = f"{unprovable()[precision]}. {_outcome(trial)}"
    except DeviceError as error:
        raise ExportError(str(error)) from error
    return report


def _told(findings: Iterable[Finding], work: Work) -> Iterator[Finding]:
    """The findings; the work of a case is done when the next one's begin."""
    for _, of_case in groupby(findings, key=attrgetter("case")):
        yield from of_case
        work.done()


def try_on_cpu(folder: Path, precision: Precision) -> Report:
    """Compares a precision that is for CUDA on the CPU, by CUDA's budgets. It proves nothing for CUDA, but what is
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
    """In which layer the error of a finding begins, in words."""
    precision = finding.precision
    model = Model(folder, "cpu", precision, anywhere=True)
    case = next(case for case in read_contract(folder) if finding.case in (case.name, f"{case.name} with attentions"))
    sequences = model.preprocessor.preprocess(case.inputs).rows
    graph = _graph_for(sequences, model.manifest, precision)
    feeds = pack(sequences, model.manifest.aligned, first_real=model.manifest.first_token == "real")
    budget = BUDGETS[precision, CUDA if precision == "fp16" else CPU].vectors
    with TemporaryDirectory() as scratch:
        path = write_states_graph(checkpoint.encoder, graph, Path(scratch))
        answers = Session(path, "cpu", kernels=False).run(feeds)
    return str(layer_errors(checkpoint.encoder, graph, feeds, answers, budget))


def _graph_for(sequences: list[TokenSequence], manifest: Manifest, precision: str) -> Graph:
    """The graph that computes all of these sequences."""
    span = max(sequence.span(manifest.aligned) for sequence in sequences)
    graphs = manifest.graphs_of(precision)
    return next(graph for graph in graphs if not graph.fused and span <= (graph.longest or span))
