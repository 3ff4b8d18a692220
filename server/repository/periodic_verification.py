"""Verifies a model again while it is served: one case of its contract at a time.

What held at the start can end: memory goes bad, a driver or a host is changed under a running server.
"""

import asyncio
import logging
from collections.abc import Sequence
from itertools import cycle

from heed.bundle import BundleError
from heed.bundle.contract import Case, Finding, Report, check, plain_cases
from heed.bundle.sequence_packing import Arrays
from heed.server.engine.model import Model
from heed.server.scheduling.scheduler import Scheduler
from heed.server.telemetry.metrics import ContractMetrics

log = logging.getLogger("heed.contract")


class Recheck:
    """Repeats the cases of a start in turn, through the session and the queue that serve callers."""

    def __init__(
        self, model: Model, scheduler: Scheduler, cases: Sequence[Case], metrics: ContractMetrics, seconds: float
    ) -> None:
        """
        Args:
            cases: those that a server checks before it is ready. Of those with attention weights the plain answers.
            seconds: between one case and the next.
        """
        self._model = model
        self._scheduler = scheduler
        self._cases = cases
        self._metrics = metrics
        self._seconds = seconds

    async def run(self) -> None:
        """Goes on until it is cancelled."""
        for index in cycle(range(len(self._cases))):
            await asyncio.sleep(self._seconds)
            try:
                case = await asyncio.to_thread(self._cases.__getitem__, index)
            except BundleError as error:  # the disk may be unavailable for a while
                log.warning("%s, so nothing proves its answers now", error)
            else:
                await self.repeat(case)

    async def repeat(self, case: Case) -> None:
        """Compares one case, and reports the result to metrics and log."""
        (case,) = plain_cases([case])
        findings = await self._findings(case)
        self._metrics.repeated(findings)
        report = Report(findings)
        if not report.holds:
            log.warning(
                "%s no longer answers as its reference: %s; restart it, and see docs/operations.md if it goes on",
                self._model.manifest.name,
                report.worst,
            )

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
