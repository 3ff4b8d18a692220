"""What Prometheus may ask a server over HTTP. docs/serving.md tells what each number means, and what to do about it."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, start_http_server

from bundle.contract import Finding
from server.errors import StartError
from server.model import Model

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
HOLDS, BROKEN = "holds", "broken"  # what came of repeating a case


class Metrics:
    """The numbers of one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory, CPU time, open files
        model = ["model", "version"]

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, [*model, *labels], registry=self.registry)

        self._info = gauge("heed_model_info", "1: a model that is ready.", "digest", "precision", "provider")
        self._waiting = gauge("heed_waiting_tokens", "Tokens that wait in the queue.")
        self._requests = Histogram(
            "heed_request_seconds",
            "Time from a request's arrival to its answer or refusal.",
            ["model", "code"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._error = gauge(
            "heed_contract_error",
            "How far answers are from the reference's: 1 is as far as the budget allows. The worst case counts.",
            "output",
        )
        self._checks = Counter(
            "heed_contract_checks",
            "Cases of the contract that were repeated while serving.",
            [*model, "result"],
            registry=self.registry,
        )

    def requested(self, model: str, code: str, seconds: float) -> None:
        """A request came to its end. `model` is one that is served, or empty: callers shall not invent labels."""
        self._requests.labels(model, code).observe(seconds)

    def add(self, model: Model, waiting_tokens: Callable[[], int]) -> "ContractMetrics":
        """A model that is ready."""
        name, version = model.manifest.name, str(model.manifest.version)
        self._info.labels(name, version, model.digest, model.precision, model.runtime.provider).set(1)
        self._waiting.labels(name, version).set_function(waiting_tokens)
        return ContractMetrics(
            lambda output: self._error.labels(name, version, output),
            {result: self._checks.labels(name, version, result) for result in (HOLDS, BROKEN)},
        )

    def remove(self, model: Model) -> None:
        """A model that is served no longer leaves nothing behind."""
        name, version = model.manifest.name, str(model.manifest.version)
        for metric in (self._info, self._waiting, self._error, self._checks):
            metric.remove_by_labels({"model": name, "version": version})

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
