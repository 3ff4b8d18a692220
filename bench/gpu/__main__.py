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

import torch
import typer
from rich.console import Console

from bench.gpu import exporting, prove, rates, rows, serve, speed, subjects, ways
from bench.gpu.rows import Row, attempted
from bench.gpu.speed import Plan, Subject
from bundle.packing import pack
from server.settings import Device


class Part(StrEnum):
    """What is measured, in this order."""

    rates = "rates"
    contract = "contract"
    serve = "serve"
    speed = "speed"
    trials = "trials"


PLANS: dict[str, Plan] = {
    "cuda": Plan("cuda", {"sentences": 2048, "documents": 256}, (2048, 8192, 32768), (32, 128, 512), rounds=5),
    "cpu": Plan("cpu", {"sentences": 24, "documents": 4}, (64, 256), (4,), rounds=1),
}
LOADS = {"cuda": serve.Loads(), "cpu": serve.Loads((2, 4), 4, seconds=0.2, requests=8)}
MODELS = {"cuda": ["bert-base", "bert-large"], "cpu": ["tiny"]}
LARGEST = {"cuda": 8192, "cpu": 256}  # rows and columns of the largest product


def machine(device: Device) -> Row:
    """What it ran on."""
    import onnxruntime

    name = torch.cuda.get_device_name() if device == "cuda" else "the CPU: what needs CUDA is skipped"
    found = f"{name}, onnxruntime {onnxruntime.__version__}, torch {torch.__version__}, CUDA {torch.version.cuda}"
    return Row("machine", device, found)


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
    yield from _kernels(subject, plan, speed.TRIALS[1].name, partial(subject.file, "operator"))


OF_SUBJECT = {Part.contract: _contract, Part.serve: _serve, Part.speed: _speed, Part.trials: _trials}


def _contests(subject: Subject, entered: list[speed.Way], plan: Plan) -> Iterator[Row]:
    for workload in plan.requests:
        compete = partial(speed.contest, subject, workload, entered, plan)
        yield from attempted(f"{subject.name}, {workload}", "all ways", compete, must=True)


def _kernels(subject: Subject, plan: Plan, what: str, graph: Callable[[], Path]) -> Iterator[Row]:
    def rows() -> Iterator[Row]:
        speed.only_on_cuda(subject)
        requests = speed.asked(subject, "sentences", plan.requests["sentences"])
        feeds = pack(requests.members[next(requests.groups(plan.tokens[1]))])
        run = ways.fetch(subject.runtime(graph()))
        return rates.kernels(subject.name, f"kernels of {what}", lambda: run(feeds))

    yield from attempted(subject.name, f"kernels of {what}", rows)


def all_rows(parts: list[Part], started: list[Subject], plan: Plan) -> Iterator[Row]:
    """One part after the other, each for all models."""
    yield from attempted("machine", plan.device, lambda: [machine(plan.device)], must=True)
    if Part.rates in parts:
        yield from _rates(started, plan)
    for part, measure in OF_SUBJECT.items():
        for subject in started if part in parts else []:
            if part != Part.serve or subject is started[0]:  # one model tells what the serving costs
                yield from measure(subject, plan)
            subject.close()


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
    if device == "cuda" and torch.cuda.is_available():
        torch.cuda.set_stream(torch.cuda.Stream())  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory() as folder:
        started = [start(name, plan.device, Path(folder) / str(number)) for number, name in enumerate(names)]
        try:
            for row in all_rows(part or list(Part), started, plan):
                found.append(row)
                print(f"{row.part}: {row.what}: {row.found}", file=sys.stderr, flush=True)
        finally:
            for subject in started:
                subject.stop()
    if as_json:
        as_json.write_text(json.dumps(rows.as_json(found), indent=1))
    Console(width=160, highlight=False).print(rows.table(found))
    raise typer.Exit(0 if rows.holds(found) else 1)


def start(name: str, device: Device, folder: Path) -> Subject:
    """Makes a model, and begins to export it."""
    return Subject(name, subjects.checkpoint(name).encoder, device, folder, exporting.start(name, folder))


if __name__ == "__main__":
    typer.run(main)
