"""Verifies a model again while it is served: one case of its contract at a time.

What held at the start can end: memory goes bad, a driver or a host is changed under a running server.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from heed.bundle import BundleError
from heed.bundle.contract import Case, Finding, Report, check, plain_cases
from heed.bundle.sequence_packing import Arrays
from heed.server.engine.model import Model
from heed.server.scheduling.scheduler import Scheduler
from heed.server.telemetry.metrics import ContractMetrics

log = logging.getLogger("heed.contract")


class Recheck:
    """Repeats the cases of a start in turn, through the session and the queue that serve callers.

    A case that no longer holds is repeated until it does: the model drifts for as long.
    """

    def __init__(
        self,
        model: Model,
        scheduler: Scheduler,
        cases: Sequence[Case],
        metrics: ContractMetrics,
        seconds: float,
        on_drift: Callable[[str], None] | None = None,
    ) -> None:
        """
        Args:
            cases: those that a server checks before it is ready. Of those with attention weights the plain answers.
            seconds: between one case and the next.
            on_drift: is told why the model drifts, and "" when it no longer does. None: the model goes on answering.
        """
        self._model = model
        self._scheduler = scheduler
        self._cases = cases
        self._metrics = metrics
        self._seconds = seconds
        self._on_drift = on_drift
        self._drifts = False

    async def run(self) -> None:
        """Goes on until it is cancelled."""
        index = 0
        while True:
            await asyncio.sleep(self._seconds)
            try:
                case = await asyncio.to_thread(self._cases.__getitem__, index)
            except BundleError as error:  # the disk may be unavailable for a while: that is no drift
                log.warning("%s, so nothing proves its answers now", error)
            else:
                await self.repeat(case)
            if not self._drifts:
                index = (index + 1) % len(self._cases)

    async def repeat(self, case: Case) -> None:
        """Compares one case, and reports the result to metrics and log, and to who asked to be told of drift."""
        (case,) = plain_cases([case])
        findings = await self._findings(case)
        self._metrics.repeated(findings)
        report = Report(findings)
        if report.holds:
            if self._drifts:
                log.warning("%s answers as its reference again", self._model.manifest.name)
                self._tell("")
        else:
            now = "it goes on answering (--on-drift)" if self._on_drift is None else "its requests are refused"
            log.error(
                "%s no longer answers as its reference: %s; %s; restart it, and see docs/operations.md if it goes on",
                *(self._model.manifest.name, report.worst, now),
            )
            self._tell(f"it no longer answers as its reference: {report.worst}")
        self._drifts = not report.holds

    def _tell(self, reason: str) -> None:
        if self._on_drift:
            self._on_drift(reason)

    async def _findings(self, case: Case) -> list[Finding]:
        try:
            answers: Arrays | Exception = await self._answers(case)
        except Exception as error:  # no answer is a finding, too
            answers = error

        def answer(inputs: Arrays, outputs: list[str]) -> Arrays:
            if isinstance(answers, Exception):
                raise answers
            return answers

        findings = check([case], answer, self._model.precision, self._model.session.provider)
        return await asyncio.to_thread(list, findings)

    async def _answers(self, case: Case) -> Arrays:
        """Row by row, so that a caller who comes meanwhile waits for one row at most."""
        preprocess = self._model.preprocessor.preprocess
        request = await asyncio.to_thread(preprocess, case.inputs, list(case.outputs))
        answers = [await self._scheduler.submit_background(row) for row in request.rows]
        return await asyncio.to_thread(request.assemble, answers)
