"""Metrics for Prometheus. docs/operations.md says what each means, and what to do about it.

Labels come from the server's own names alone, never from what callers send: so the number of series is bounded, and
those of a model that is unloaded are removed. No request looks a series up by name: those of a model are found when
it is added.
"""

import platform
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from threading import Lock
from typing import NamedTuple, Protocol, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

from heed.bundle.contract import Finding
from heed.server.errors import REASONS
from heed.server.telemetry.request_trace import RequestTrace

SECONDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
ROWS = (1, 2, 4, 8, 16, 32, 64)
TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
HOLDS, BROKEN = "holds", "broken"  # results of repeating a case of the contract
LOADED, SWAPPED, FAILED = "loaded", "swapped", "failed"  # results of a new version
NOBODY = ""  # the model of requests that are for none that is served

# Otherwise one more series for each would say when it began.
disable_created_metrics()  # type: ignore[no-untyped-call]

Key = TypeVar("Key")
Child = TypeVar("Child")


class QueueLength(Protocol):
    """What waits for one model."""

    @property
    def waiting_rows(self) -> int: ...
    @property
    def waiting_tokens(self) -> int: ...


class _Children(dict[Key, Child]):
    """The series of one metric, each found once."""

    def __init__(self, find: Callable[[Key], Child]) -> None:
        self._find = find

    def __missing__(self, key: Key) -> Child:
        child = self[key] = self._find(key)
        return child


class Metrics:
    """The numbers of one process."""

    def __init__(self, max_queue_tokens: int = 0, memory_limit: int = 0) -> None:
        """
        Args:
            max_queue_tokens: that may wait for each model.
            memory_limit: bytes that this process may take.
        """
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory, CPU time, open files
        self._define_server(max_queue_tokens, memory_limit)
        self._define_requests()
        self._define_versions()
        self._models: dict[str, RequestMetrics] = {}
        self._nobody = RequestMetrics(self, NOBODY)
        self._versions: dict[tuple[str, str], VersionMetrics] = {}

    def _define_server(self, max_queue_tokens: int, memory_limit: int) -> None:
        build = self._gauge("heed_build_info", "1: the software that runs.", "version", "python", "onnxruntime")
        build.labels(version("heed-serve"), platform.python_version(), _onnxruntime_version()).set(1)
        memory = self._gauge("heed_memory_limit_bytes", "Memory that this process may take: the container's, or all.")
        memory.set(memory_limit)
        self._threads = self._gauge("heed_threads", "Batches that are computed at a time.")
        self._in_flight = self._gauge("heed_requests_in_flight", "Requests that have arrived and not ended.")
        self._queue_limit = self._gauge("heed_queue_limit_tokens", "Tokens that may wait for each model.")
        self._queue_limit.set(max_queue_tokens)
        self._failed_versions = self._gauge("heed_failed_versions", "Versions in the repository that cannot be served.")
        self._loads = self._counter(
            "heed_version_loads", "New versions, by result (loaded, swapped, failed).", "model", "result"
        )

    def _define_requests(self) -> None:
        self.requests = self._histogram(
            "heed_request_seconds", "Time from a request's arrival to its end.", SECONDS, "model", "method", "code"
        )
        self.stages = self._histogram(
            "heed_stage_seconds", "Where the time of requests went.", SECONDS, "model", "stage"
        )
        self.refused_requests = self._counter("heed_refused", "Requests without an answer.", "model", "reason")

    def _define_versions(self) -> None:
        of = ("model", "version")
        self.info = self._gauge("heed_model_info", "1: a model that is ready.", *of, "digest", "precision", "provider")
        self.waiting_rows = self._gauge("heed_waiting_rows", "Rows of requests that wait in the queue.", *of)
        self.waiting_tokens = self._gauge("heed_waiting_tokens", "Tokens that wait in the queue.", *of)
        self.group_rows = self._histogram("heed_group_rows", "Rows of a batch.", ROWS, *of)
        self.group_tokens = self._histogram("heed_group_tokens", "Tokens of a batch.", TOKENS, *of)
        self.group_seconds = self._histogram("heed_group_seconds", "Time that a thread took for a batch.", SECONDS, *of)
        self.attention_slots = self._counter(
            "heed_attention_slots",
            "Rows of a batch times its longest row: what attention computes, and a padded batch everywhere.",
            *of,
        )
        self.failed_groups = self._counter("heed_failed_groups", "Batches that could not be computed.", *of)
        self.error = self._gauge(
            "heed_contract_error",
            "The largest error of an answer, as a share of its budget: 1 is the most that is allowed.",
            *of,
            "output",
        )
        self.checks = self._counter(
            "heed_contract_checks", "Cases of the contract that were repeated while serving.", *of, "result"
        )

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)

    # What is counted

    def request_ended(self, trace: RequestTrace) -> None:
        self._models.get(trace.model, self._nobody).request_ended(trace)

    def refused(self, reason: str) -> None:
        """A call was refused before anybody knew which model it is for. `reason` is one of `REASONS`."""
        self._nobody.refused[reason].inc()

    def load_failed(self, model: str) -> None:
        """A version of a model in the repository cannot be served."""
        self._loads.labels(model, FAILED).inc()

    def watch_requests(self, in_flight: Callable[[], int]) -> None:
        """How many have arrived and not ended; called from another thread."""
        self._in_flight.set_function(in_flight)

    def watch_failures(self, failures: Callable[[], int]) -> None:
        """How many versions cannot be served at the moment; called from another thread."""
        self._failed_versions.set_function(failures)

    # What is served

    def add(self, version: "ServedVersion", threads: int = 1) -> "VersionMetrics":
        """Begins the series of a version; those of another one of the same name and number are removed.

        Args:
            threads: that compute batches.
        """
        name, number = version.name, version.number
        loads = {result: self._loads.labels(name, result) for result in (LOADED, SWAPPED, FAILED)}
        loads[SWAPPED if name in self._models else LOADED].inc()
        self._forget(name, number)
        if name not in self._models:
            self._models[name] = RequestMetrics(self, name)
        self._threads.set(threads)
        added = self._versions[name, number] = VersionMetrics(self, version)
        return added

    def remove(self, version: "VersionMetrics") -> None:
        """Removes the series of a version that is unloaded, if no other one has taken its place."""
        name, number = version.labels
        if self._versions.get((name, number)) is not version:
            return
        self._forget(name, number)
        if all(other != name for other, _ in self._versions):
            del self._models[name]
            for metric in (self.requests, self.stages, self.refused_requests):
                metric.remove_by_labels({"model": name})

    def _forget(self, name: str, number: str) -> None:
        if self._versions.pop((name, number), None):
            for metric in (
                *(self.info, self.waiting_rows, self.waiting_tokens, self.group_rows, self.group_tokens),
                *(self.group_seconds, self.attention_slots, self.failed_groups, self.error, self.checks),
            ):
                metric.remove_by_labels({"model": name, "version": number})


def _onnxruntime_version() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)


class RequestMetrics:
    """Requests for one model, of whatever version."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._by_method_and_code = _Children[tuple[str, str], Histogram](
            lambda key: metrics.requests.labels(model, *key)
        )
        self._stages = _Children[str, Histogram](lambda stage: metrics.stages.labels(model, stage))
        # All from the beginning: a rate misses the step from no series to the first refusal.
        self.refused = {reason: metrics.refused_requests.labels(model, reason) for reason in REASONS}

    def request_ended(self, trace: RequestTrace) -> None:
        self._by_method_and_code[trace.call.method, trace.code].observe(trace.seconds)
        for stage in trace.stages:
            self._stages[stage.name].observe(stage.end - stage.begin)
        if trace.reason:
            self.refused[trace.reason].inc()


@dataclass
class Duration:
    """How often something was done, and for how long altogether."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds


@dataclass
class Statistics:
    """Counts and durations of the requests for one version, as Triton's ModelStatistics has them.

    All but `batches` belong to the event loop's thread.
    """

    success: Duration = field(default_factory=Duration)  # from arrival to answer
    fail: Duration = field(default_factory=Duration)  # refused, failed, or given up by the caller
    stages: defaultdict[str, Duration] = field(default_factory=lambda: defaultdict(Duration))  # of what was answered
    rows: int = 0  # that were answered
    last_arrival: float = 0.0  # seconds since 1970; 0: no request has arrived yet
    _batches: dict[int, Duration] = field(default_factory=dict)  # by rows
    _lock: Lock = field(default_factory=Lock)

    def request_ended(self, trace: RequestTrace) -> None:
        if trace.code == "OK" and not trace.rows:
            return  # it needed the tokenizer alone
        self.last_arrival = time.time() - trace.seconds
        if trace.code != "OK":
            return self.fail.add(trace.seconds)
        self.success.add(trace.seconds)
        for stage in trace.stages:
            self.stages[stage.name].add(stage.end - stage.begin)
        self.rows += trace.rows

    def batch_computed(self, lengths: list[int], seconds: float) -> None:
        """See `BatchObserver`."""
        with self._lock:
            self._batches.setdefault(len(lengths), Duration()).add(seconds)

    def batch_failed(self) -> None:
        """A batch that failed is split; its requests count when they end."""

    @property
    def batches(self) -> dict[int, Duration]:
        """The batches that were computed, by how many rows they had."""
        with self._lock:
            return {rows: Duration(one.count, one.seconds) for rows, one in sorted(self._batches.items())}


class ServedVersion(NamedTuple):
    """What the series of one version of a model are labelled with."""

    name: str
    number: str
    digest: str
    precision: str
    provider: str


class VersionMetrics:
    """One version of a model: its queue, its batches, and how well it still answers as its reference."""

    def __init__(self, metrics: Metrics, version: ServedVersion) -> None:
        name, number = self.labels = of = version.name, version.number
        self.statistics = Statistics()
        metrics.info.labels(*version).set(1)
        self._waiting = metrics.waiting_rows.labels(*of), metrics.waiting_tokens.labels(*of)
        self._rows, self._tokens = metrics.group_rows.labels(*of), metrics.group_tokens.labels(*of)
        self._seconds, self._slots = metrics.group_seconds.labels(*of), metrics.attention_slots.labels(*of)
        self._failed = metrics.failed_groups.labels(*of)
        self.contract = ContractMetrics(
            lambda output: metrics.error.labels(name, number, output),
            {result: metrics.checks.labels(name, number, result) for result in (HOLDS, BROKEN)},
        )

    def request_ended(self, trace: RequestTrace) -> None:
        self.statistics.request_ended(trace)

    def watch(self, queue: QueueLength) -> None:
        """Shows what waits at each scrape, which is in another thread."""
        rows, tokens = self._waiting
        rows.set_function(lambda: queue.waiting_rows)
        tokens.set_function(lambda: queue.waiting_tokens)

    def batch_computed(self, lengths: list[int], seconds: float) -> None:
        """See `BatchObserver`. Safe in several threads."""
        self.statistics.batch_computed(lengths, seconds)
        self._rows.observe(len(lengths))
        self._tokens.observe(sum(lengths))
        self._slots.inc(len(lengths) * max(lengths))
        self._seconds.observe(seconds)

    def batch_failed(self) -> None:
        """Its batch is split; its requests count when they end."""
        self._failed.inc()


class ContractMetrics:
    """How well one model still answers as its reference."""

    def __init__(self, gauge_of: Callable[[str], Gauge], checks: dict[str, Counter]) -> None:
        """`gauge_of` has the gauge of an output, `checks` the counter of each result."""
        self._gauge_of = gauge_of
        self._checks = checks
        self._latest: dict[str, dict[str, float]] = {}  # by output and case, in units of the budget

    def compared(self, findings: Iterable[Finding]) -> None:
        """Shows the worst of the latest findings of all cases: a broken case is seen until it holds again."""
        for finding in findings:
            cases = self._latest.setdefault(finding.output, {})
            cases[finding.case] = finding.error / finding.budget
            self._gauge_of(finding.output).set(max(cases.values()))

    def repeated(self, findings: list[Finding]) -> None:
        """The same, of a case that was repeated."""
        self.compared(findings)
        self._checks[HOLDS if all(finding.holds for finding in findings) else BROKEN].inc()
