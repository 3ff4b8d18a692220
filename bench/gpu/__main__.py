"""Proves and measures CUDA: `python -m bench.gpu`."""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import onnxruntime
import torch
import typer
from rich.console import Console

from bench.gpu import exporting, prove, rates, rows, serve, speed, subjects, ways
from bench.gpu.rows import Row, attempted
from bench.gpu.speed import Plan, Subject
from heed.bundle.manifest import Device
from heed.server.engine.session import without_driver


class Part(StrEnum):
    """What is measured."""

    rates = "rates"
    contract = "contract"
    serve = "serve"
    speed = "speed"
    trials = "trials"


PLANS: dict[str, Plan] = {
    "cuda": Plan("cuda", {"sentences": 2048, "documents": 256}, (2048, 8192, 32768), (32, 128, 512), rounds=5),
    "cpu": Plan("cpu", {"sentences": 24, "documents": 4}, (64, 256), (4,), rounds=1),
}
LOADS = {"cuda": serve.Loads(), "cpu": serve.Loads((2, 4), 4, seconds=0.2, requests=8, processes=2)}
MODELS = {"cuda": ["bert-base", "bert-large"], "cpu": ["tiny"]}
LARGEST = {"cuda": 8192, "cpu": 256}  # rows and columns of the largest product


def machine(device: Device) -> Row:
    """What it runs on.

    Raises:
        RuntimeError: there is no CUDA here.
    """
    if device == "cuda" and (reason := without_driver()):
        raise RuntimeError(reason)
    name = torch.cuda.get_device_name() if device == "cuda" else "the CPU: what needs CUDA is skipped"
    found = f"{name}, onnxruntime {onnxruntime.__version__}, torch {torch.__version__}, CUDA {torch.version.cuda}"
    return Row("machine", device, found, True)


def _rates(started: list[Subject], plan: Plan) -> Iterator[Row]:
    widths = {subject.name: subject.encoder.config.width for subject in started}
    measure = partial(rates.matrix_rates, widths, LARGEST[plan.device], plan.tokens[1], plan.device, plan.rounds)
    yield from attempted("rates", "matrix products", measure)


def _contract(subject: Subject, plan: Plan) -> Iterator[Row]:
    for precision in exporting.PRECISIONS:
        for look in (prove.contract, prove.placement):
            what = f"{precision}, {look.__name__}"
            yield from attempted(subject.name, what, partial(look, subject, precision), must=True)


def _serve(subject: Subject, plan: Plan) -> Iterator[Row]:
    measure = partial(serve.answers_and_speed, subject, LOADS[plan.device])
    yield from attempted(subject.name, "served", measure, must=True)


def _speed(subject: Subject, plan: Plan) -> Iterator[Row]:
    yield from _contests(subject, [*speed.WAYS, *([speed.COMPILED] if plan.compiled else [])], plan)
    yield from _kernels(subject, plan, "heed", subject.own_graph)


def _trials(subject: Subject, plan: Plan) -> Iterator[Row]:
    yield from _contests(subject, speed.TRIALS, plan)
    yield from attempted(subject.name, "one group", partial(speed.one_group, subject, plan))
    yield from _kernels(subject, plan, speed.TRIALS[1].name, partial(subject.own_graph, fused=False))


OF_SUBJECT = {Part.contract: _contract, Part.serve: _serve, Part.speed: _speed}


def _contests(subject: Subject, entered: list[speed.Way], plan: Plan) -> Iterator[Row]:
    for workload in plan.requests:
        compete = partial(speed.contest, subject, workload, entered, plan)
        yield from attempted(f"{subject.name}, {workload}", "all ways", compete, must=True)


def _kernels(subject: Subject, plan: Plan, what: str, graph: Callable[[], Path]) -> Iterator[Row]:
    def rows() -> Iterator[Row]:
        speed.only_on_cuda(subject)
        requests = speed.asked(subject, "sentences", plan.requests["sentences"])
        feeds = ways.feeds_of(requests.members[next(requests.groups(plan.tokens[1]))])
        run = ways.fetch(subject.runtime(graph()))
        return rates.kernels(subject.name, f"kernels of {what}", lambda: run(feeds))

    yield from attempted(subject.name, f"kernels of {what}", rows)


def all_rows(parts: list[Part], started: list[Subject], plan: Plan) -> Iterator[Row]:
    """One model after the other, in the order in which their graphs get ready; what may break the device comes last."""
    if Part.rates in parts:
        yield from _rates(started, plan)
    for subject in started:
        served = [Part.serve] * (subject is started[0])  # one model tells what the serving costs
        for part in (Part.contract, *served, Part.speed):
            yield from OF_SUBJECT[part](subject, plan) if part in parts else ()
        subject.close()
    for subject in started if Part.trials in parts else []:
        yield from _trials(subject, plan)
        subject.close()


def measured(names: list[str], parts: list[Part], plan: Plan, folder: Path) -> Iterator[Row]:
    """All rows; none but the first where there is no such device."""
    (row,) = attempted("machine", plan.device, lambda: [machine(plan.device)], must=True)
    yield row
    if not row.holds:
        return
    if plan.device == "cuda":  # a stream that onnxruntime can be told of
        torch.cuda.set_stream(torch.cuda.Stream())  # type: ignore[no-untyped-call]
    started: list[Subject] = []
    try:
        started += [start(name, plan.device, folder / str(number)) for number, name in enumerate(names)]
        yield from all_rows(parts, started, plan)
    finally:
        for subject in started:
            subject.stop()


def main(
    source: Annotated[Path | None, typer.Argument(help="A checkpoint folder, measured beside the models.")] = None,
    device: Annotated[str, typer.Option(help="cpu tries the script itself, with a tiny model.")] = "cuda",
    part: Annotated[list[Part] | None, typer.Option(help="Measure this part; may be repeated. All by default.")] = None,
    model: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(subjects.CONFIGS)}; may be repeated.")] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Try torch.compile, too: it takes minutes.")] = False,
    as_json: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")] = None,
) -> None:
    """Prove and measure CUDA on this machine."""
    if device not in PLANS:
        raise typer.BadParameter(f"--device {device}: give one of {', '.join(PLANS)}")
    plan = replace(PLANS[device], compiled=compiled)
    names = [*(model or MODELS[device]), *([str(source)] if source else [])]
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for row in measured(names, part or list(Part), plan, Path(folder)):
            found.append(row)
            print(f"{row.part}: {row.what}: {row.found}", file=sys.stderr, flush=True)
            if as_json:  # whatever comes next, this is known
                as_json.write_text(json.dumps(rows.as_json(found), indent=1))
    out = Console(width=160, highlight=False)
    for shown in (rows.table(found), rows.summary(found)):
        out.print(shown, "")
    raise typer.Exit(0 if rows.holds(found) else 1)


def start(name: str, device: Device, folder: Path) -> Subject:
    """Makes a model, and begins to export it."""
    return Subject(name, subjects.checkpoint(name).encoder, device, folder, exporting.start(name, folder))


if __name__ == "__main__":
    typer.run(main)
