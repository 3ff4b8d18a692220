"""How many sequences per second each way answers, once its answers are known to be right."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

from bench.gpu import subjects, ways
from bench.gpu.bound import Bound, open_session
from bench.gpu.exporting import Writing
from bench.gpu.rows import Row, Skipped, attempted
from bench.gpu.ways import EMBEDDING, Asked, Make, Work
from heed.bundle import Manifest, read_manifest
from heed.bundle.contract import BUDGETS, CUDA
from heed.bundle.manifest import Device
from heed.bundle.sequence_packing import Arrays
from heed.model import Encoder
from heed.server.engine.model import Model
from heed.server.engine.session import FLASH_FROM, FLASH_FROM_NAME, Session

REFERENCE_ROWS = 32
POOL = ThreadPoolExecutor(2)  # hands groups to a GPU: one thread packs while the other's group is computed


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    device: Device
    requests: dict[str, int]  # of each workload
    tokens: tuple[int, ...]  # sizes of groups
    rows: tuple[int, ...]  # sizes of padded batches
    rounds: int
    compiled: bool = False  # with torch.compile, too


class Subject:
    """A model, and the graphs that are being made of it."""

    def __init__(self, name: str, encoder: Encoder, device: Device, folder: Path, writing: dict[str, Writing]) -> None:
        self.name, self.encoder, self.device = name, encoder, device
        self._folder, self._writing = folder, writing
        self._runtimes: dict[Path, Session] = {}

    def file(self, kind: str) -> Path:
        """Waits until it is written.

        Raises:
            RuntimeError: it was not.
        """
        self._writing[kind].wait()
        return self._folder / ("bundle" if kind == "bundle" else f"{kind}.fp16.onnx")

    @property
    def manifest(self) -> Manifest:
        return read_manifest(self.file("bundle"))

    def own_graph(self, precision: str = "fp16", fused: bool = True) -> Path:
        """The graph that serves requests as the workloads have them. `fused`: as on CUDA, if there is one."""
        graphs = self.manifest.graphs_of(precision)
        graph = graphs[0] if fused and self.device == "cuda" else next(each for each in graphs if not each.fused)
        return self.file("bundle") / graph.file

    def runtime(self, graph: Path) -> Session:
        if graph not in self._runtimes:
            self._runtimes[graph] = Session(graph, self.device)
        return self._runtimes[graph]

    def model(self, precision: str) -> Model:
        return Model(self.file("bundle"), self.device, precision, anywhere=True)

    def close(self) -> None:
        """Lets go of the device's memory."""
        self._runtimes.clear()

    def stop(self) -> None:
        """Ends what is still being written."""
        for each in self._writing.values():
            each.process.kill()
            each.process.wait()


def only_on_cuda(subject: Subject) -> None:
    if subject.device != "cuda":
        raise Skipped("for CUDA only")


# --- The ways --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """How to answer, and by what its sizes count."""

    name: str
    make: Callable[[Subject], Make]
    unit: str = "tokens"
    precision: str = "fp16"
    must: bool = False  # be right


def _run(subject: Subject, precision: str = "fp16") -> Make:
    return ways.one_by_one(ways.fetch(subject.runtime(subject.own_graph(precision))))


def _run_plain(subject: Subject) -> Make:
    return ways.one_by_one(ways.fetch(subject.runtime(subject.own_graph(fused=False))))


def _run_otherwise(subject: Subject, flash_from: int = FLASH_FROM, **options: str) -> Make:
    """As the server does, but for these options of onnxruntime's provider for CUDA."""
    only_on_cuda(subject)
    os.environ[FLASH_FROM_NAME] = str(flash_from)
    try:
        session = open_session(subject.own_graph(), subject.device, **options)
    finally:
        os.environ[FLASH_FROM_NAME] = str(FLASH_FROM)
    names = [node.name for node in session.get_inputs()]
    return ways.one_by_one(lambda feeds: session.run([EMBEDDING], {name: feeds[name] for name in names})[0])


def _run_for_all(subject: Subject) -> Make:
    return ways.one_by_one(ways.fetch_all(subject.runtime(subject.own_graph())))


def _run_in_threads(subject: Subject) -> Make:
    return ways.in_threads(ways.fetch(subject.runtime(subject.own_graph())), POOL)


def _bound(subject: Subject) -> Make:
    return ways.one_by_one(ways.bound(subject.own_graph(), subject.device, subject.encoder.config.width))


def _served(subject: Subject) -> Make:
    return ways.with_packing(subject.model("fp16").graphs, POOL)


def _padded(subject: Subject) -> Make:
    return ways.padded_graph(subject.file("padded"), subject.device, subject.encoder.config.position_rule.padding_id)


def _sdpa(subject: Subject, compiled: bool = False) -> Make:
    return ways.torch_padded(subject.encoder, subject.device, compiled)


def _varlen(subject: Subject) -> Make:
    only_on_cuda(subject)
    return ways.torch_end_to_end(subject.encoder, subject.device)


WAYS = [
    Way("onnxruntime, padded", _padded, "rows"),
    Way("torch, padded, SDPA", _sdpa, "rows"),
    Way("torch, end to end, varlen_attn", _varlen),
    Way("heed, fp32", partial(_run, precision="fp32"), precision="fp32", must=True),
    Way("heed", _run, must=True),
    Way("heed, all outputs", _run_for_all, must=True),
    Way("heed, two threads", _run_in_threads, must=True),
    Way("heed, bound", _bound),
    Way("heed, as served: packs and splits", _served, must=True),
]
COMPILED = Way("torch, padded, SDPA, compiled", partial(_sdpa, compiled=True), "rows")
# Apart from the others, for an error in a kernel leaves the device unusable for the rest of a process.
TRIALS = [
    Way("heed, once more", _run, must=True),
    Way("heed, its graph for rows with holes", _run_plain, must=True),
    Way("heed, flash attention for all lengths", partial(_run_otherwise, flash_from=0)),
    Way("heed, flash attention for long rows only", partial(_run_otherwise, flash_from=513)),
    Way("heed, norms' sums in float16", partial(_run_otherwise, enable_skip_layer_norm_strict_mode="0")),
]


# --- The contest -----------------------------------------------------------------------------------------------------


@dataclass
class Timed:
    """A way at one size, ready to run."""

    way: Way
    size: int
    work: Work
    seconds: list[float] = field(default_factory=list)


def asked(subject: Subject, workload: str, count: int) -> Asked:
    """Requests in the order of their lengths, as a server has them among those that wait."""
    made = subjects.requests(subject.encoder.config, workload, count)
    made.sort(key=lambda request: len(request["input_ids"]))
    manifest = subject.manifest
    return Asked(made, [subjects.member(manifest, request) for request in made])


def contest(subject: Subject, workload: str, entered: list[Way], plan: Plan) -> Iterator[Row]:
    """What is wrong with a way, or how fast it is at its best size. The ways take turns."""
    part = f"{subject.name}, {workload}"
    requests = asked(subject, workload, plan.requests[workload])
    reference = ways.reference(subject.encoder, plan.device)(requests, REFERENCE_ROWS)()
    ready: list[Timed] = []
    for way in entered:
        prepare = partial(_prepare, subject, way, requests, reference, plan, part, ready)
        yield from attempted(part, way.name, prepare, way.must)
    for _ in range(plan.rounds):
        for each in ready:
            started = perf_counter()
            each.work()
            each.seconds.append(perf_counter() - started)
    work = subjects.work(subject.encoder).of(requests.lengths)
    yield from _speeds(part, ready, len(requests.members), work)


def _prepare(
    subject: Subject, way: Way, requests: Asked, reference: np.ndarray, plan: Plan, part: str, ready: list[Timed]
) -> Iterator[Row]:
    """Adds the way at each of its sizes, if its answers are right; else a row says how far off they are."""
    make = way.make(subject)
    budget = BUDGETS[way.precision, CUDA].of(EMBEDDING, reference)
    for size in plan.tokens if way.unit == "tokens" else plan.rows:
        work = make(requests, size)
        error = budget.used(work(), reference)
        if not error <= budget.limit:
            found = f"off by {error:.1e} at {size} {way.unit}, {budget.limit:.0e} allowed"
            yield Row(part, way.name, found, False if way.must else None)
        else:
            ready.append(Timed(way, size, work))


def _speeds(part: str, ready: list[Timed], count: int, work: float) -> Iterator[Row]:
    """Each way at its best size; its figures have all sizes."""
    ready = sorted(ready, key=lambda each: median(each.seconds))
    for name in dict.fromkeys(each.way.name for each in ready):
        sizes = [each for each in ready if each.way.name == name]
        best, seconds = sizes[0], median(sizes[0].seconds)
        share = median(ready[0].seconds) / seconds
        speed = f"{share:.2f} of the fastest, {count / seconds:,.0f} sequences/s, {work / seconds / 1e12:.2f} TFLOP/s"
        figures = {f"{each.size} {each.way.unit}": count / median(each.seconds) for each in sizes}
        figures |= {"sequences/s": count / seconds, "FLOP/s": work / seconds}
        yield Row(part, name, f"{speed} at {best.size} {best.way.unit}", best.way.must or None, figures)


# --- One group, over and over ----------------------------------------------------------------------------------------


def one_group(subject: Subject, plan: Plan) -> Iterator[Row]:
    """What the host costs: a lone request and the smallest group by `run`, bound, and as a CUDA graph."""
    requests = asked(subject, "sentences", plan.requests["sentences"])
    middle = len(requests.members) // 2
    for what, group in (("one request", [requests.members[middle]]), ("one group", requests.members[:64])):
        yield from _one_group(subject, f"{subject.name}, {what}", ways.feeds_of(group), plan)


def _one_group(subject: Subject, part: str, feeds: Arrays, plan: Plan) -> Iterator[Row]:
    own, device, width = subject.own_graph(), subject.device, subject.encoder.config.width

    def shapes(feeds: Arrays) -> dict[str, tuple[int, ...]]:
        vector = (len(feeds["slots"]), width)
        return {"last_hidden_state": (len(feeds["rows"]), width), EMBEDDING: vector, "unnormalized_embedding": vector}

    def captured() -> Callable[[Arrays], np.ndarray]:
        only_on_cuda(subject)
        session = Bound(own, device, shapes, enable_cuda_graph="1")
        return lambda feeds: session.run(feeds)[EMBEDDING]

    plain = ways.fetch(subject.runtime(own))
    expected = plain(feeds)
    trials = {
        "run()": lambda: plain,
        "its graph for rows with holes": lambda: ways.fetch(subject.runtime(subject.own_graph(fused=False))),
        "bound": lambda: ways.bound(own, device, width),
        "CUDA graph": captured,
    }
    for name, make in trials.items():
        yield from attempted(part, name, partial(_repeated, part, name, make, feeds, expected, plan.rounds))


def _repeated(
    part: str,
    name: str,
    make: Callable[[], Callable[[Arrays], np.ndarray]],
    feeds: Arrays,
    expected: np.ndarray,
    rounds: int,
) -> Iterator[Row]:
    """Runs are repeated before they count: a graph is captured in one of the first."""
    run = make()
    budget = BUDGETS["fp16", CUDA].of(EMBEDDING, expected)
    error = max(budget.used(run(feeds), expected) for _ in range(5))
    seconds = []
    for _ in range(20 * rounds):
        started = perf_counter()
        run(feeds)
        seconds.append(perf_counter() - started)
    found = f"{1e6 * median(seconds):,.0f} µs, {error:.1e} from run()"
    right = None if error <= budget.limit else False
    yield Row(part, name, f"{found} with {len(feeds['rows'])} tokens", right, {"seconds": median(seconds)})
