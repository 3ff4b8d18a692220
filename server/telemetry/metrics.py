"""What Prometheus may ask a server over HTTP. docs/operations.md tells what each number means, and what to do about it.

Labels come from the server's own names alone, never from what callers send: there is a bounded number of series, and
those of a model that is served no longer go with it. On the way of a request nothing is looked up by name: the series
of a model are found when it is added.
"""

import platform
from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import Protocol, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)

from heed.bundle.contract import Finding
from heed.server.engine.host import usable_memory
from heed.server.engine.model import Model
from heed.server.errors import REASONS, StartError
from heed.server.telemetry.request_trace import RequestTrace

SECONDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
ROWS = (1, 2, 4, 8, 16, 32, 64)
TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
HOLDS, BROKEN = "holds", "broken"  # what came of repeating a case
LOADED, SWAPPED, FAILED = "loaded", "swapped", "failed"  # what came of a new version
NOBODY = ""  # the model of requests that are for none that is served

# Otherwise one more series for each would say when it began.
disable_created_metrics()  # type: ignore[no-untyped-call]

Key = TypeVar("Key")
Child = TypeVar("Child")


class Queue(Protocol):
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

    def __init__(self, max_queue_tokens: int = 0) -> None:
        """`max_queue_tokens` may wait for each model."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory, CPU time, open files
        self._define_server(max_queue_tokens)
        self._define_requests()
        self._define_versions()
        self._models: dict[str, RequestMetrics] = {}
        self._nobody = RequestMetrics(self, NOBODY)
        self._versions: dict[tuple[str, str], VersionMetrics] = {}

    def _define_server(self, max_queue_tokens: int) -> None:
        build = self._gauge("heed_build_info", "1: the software that runs.", "version", "python", "onnxruntime")
        build.labels(version("heed-serve"), platform.python_version(), _onnxruntime_version()).set(1)
        memory = self._gauge("heed_memory_limit_bytes", "Memory that this process may take: the container's, or all.")
        memory.set(usable_memory())
        self._threads = self._gauge("heed_threads", "Groups that are computed at a time.")
        self._in_flight = self._gauge("heed_requests_in_flight", "Requests that have come and not come to their end.")
        self._queue_limit = self._gauge("heed_queue_limit_tokens", "Tokens that may wait for each model.")
        self._queue_limit.set(max_queue_tokens)
        self._failed_versions = self._gauge("heed_failed_versions", "Versions in the repository that cannot be served.")
        self._loads = self._counter("heed_version_loads", "New versions, by what came of them.", "model", "result")

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
        self.group_rows = self._histogram("heed_group_rows", "Rows that were computed together.", ROWS, *of)
        self.group_tokens = self._histogram("heed_group_tokens", "Tokens that were computed together.", TOKENS, *of)
        self.group_seconds = self._histogram("heed_group_seconds", "Time that a thread took for a group.", SECONDS, *of)
        self.attention_slots = self._counter(
            "heed_attention_slots",
            "Rows of a group times its longest row: what attention computes, and a padded batch everywhere.",
            *of,
        )
        self.failed_groups = self._counter("heed_failed_groups", "Groups that could not be computed.", *of)
        self.error = self._gauge(
            "heed_contract_error",
            "How far answers are from the reference's: 1 is as far as the budget allows. The worst case counts.",
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

    # What others tell

    def ended(self, record: RequestTrace) -> None:
        """A request came to its end."""
        self._models.get(record.model, self._nobody).ended(record)

    def refused(self, reason: str) -> None:
        """A call was refused before anybody knew which model it is for. `reason` is one of `REASONS`."""
        self._nobody.refused[reason].inc()

    def failed(self, model: str) -> None:
        """A version of a model in the repository cannot be served."""
        self._loads.labels(model, FAILED).inc()

    def watch_requests(self, in_flight: Callable[[], int]) -> None:
        """How many have come and not come to their end; called from another thread."""
        self._in_flight.set_function(in_flight)

    def watch_failures(self, failures: Callable[[], int]) -> None:
        """How many versions cannot be served at the moment; called from another thread."""
        self._failed_versions.set_function(failures)

    # What is served

    def add(self, model: Model, threads: int = 1) -> "VersionMetrics":
        """A version from now on; if there was one of the same name and number, it is forgotten.

        Args:
            threads: that compute groups.
        """
        name, number = model.manifest.name, str(model.manifest.version)
        loads = {result: self._loads.labels(name, result) for result in (LOADED, SWAPPED, FAILED)}
        loads[SWAPPED if name in self._models else LOADED].inc()
        self._forget(name, number)
        if name not in self._models:
            self._models[name] = RequestMetrics(self, name)
        self._threads.set(threads)
        added = self._versions[name, number] = VersionMetrics(self, model)
        return added

    def remove(self, model: Model) -> None:
        """A model that is served no longer leaves nothing behind, if nothing has taken its place."""
        name, number = model.manifest.name, str(model.manifest.version)
        if (found := self._versions.get((name, number))) is None or found.model is not model:
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

    def listen(self, host: str, port: int) -> str:
        """Answers HTTP from now on until the process ends, and returns the address.

        Raises:
            StartError: the port is in use, or the address is not this machine's.
        """
        try:
            server, _ = start_http_server(port, host.strip("[]"), self.registry)
        except OSError as error:
            raise StartError(
                f"cannot listen on {host}:{port} for metrics: {error.strerror}; "
                "--metrics-port chooses another port, 0 a free one, -1 none"
            ) from None
        return f"{host}:{server.server_port}"


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

    def ended(self, record: RequestTrace) -> None:
        self._by_method_and_code[record.call.method, record.code].observe(record.seconds)
        for stage, begun, ended in record.stages():
            self._stages[stage].observe(ended - begun)
        if record.reason:
            self.refused[record.reason].inc()


class VersionMetrics:
    """One version of a model: its queue, its groups, and how well it still answers as its reference."""

    def __init__(self, metrics: Metrics, model: Model) -> None:
        self.model = model
        name, number = of = model.manifest.name, str(model.manifest.version)
        metrics.info.labels(*of, model.digest, model.precision, model.session.provider).set(1)
        self._waiting = metrics.waiting_rows.labels(*of), metrics.waiting_tokens.labels(*of)
        self._rows, self._tokens = metrics.group_rows.labels(*of), metrics.group_tokens.labels(*of)
        self._seconds, self._slots = metrics.group_seconds.labels(*of), metrics.attention_slots.labels(*of)
        self._failed = metrics.failed_groups.labels(*of)
        self.contract = ContractMetrics(
            lambda output: metrics.error.labels(name, number, output),
            {result: metrics.checks.labels(name, number, result) for result in (HOLDS, BROKEN)},
        )

    def watch(self, queue: Queue) -> None:
        """Shows what waits, whenever somebody looks; that is in another thread."""
        rows, tokens = self._waiting
        rows.set_function(lambda: queue.waiting_rows)
        tokens.set_function(lambda: queue.waiting_tokens)

    def computed(self, lengths: list[int], seconds: float) -> None:
        """See `Observer`. Safe in several threads."""
        self._rows.observe(len(lengths))
        self._tokens.observe(sum(lengths))
        self._slots.inc(len(lengths) * max(lengths))
        self._seconds.observe(seconds)

    def failed(self) -> None:
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
