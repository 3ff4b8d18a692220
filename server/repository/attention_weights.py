"""The attention weights of one model: a graph and a queue of their own, so that they never delay other requests."""

import asyncio
import logging

from heed.bundle import BundleError
from heed.bundle.contract import Report
from heed.server.engine.model import Model
from heed.server.errors import DeviceError, FailedPrecondition
from heed.server.scheduling.batching import OneByOne
from heed.server.scheduling.scheduler import Scheduler
from heed.server.scheduling.workers import Workers
from heed.server.telemetry.metrics import Statistics

log = logging.getLogger("heed.attentions")


def _verify(model: Model) -> Report:
    """Loads the graph and compares it with the reference. The contract may have been altered since then.

    Raises:
        FailedPrecondition: it cannot be used, or its answers are too far from the reference's.
    """
    try:
        report = Report(list(model.check_attentions()))
    except (BundleError, DeviceError) as error:
        raise FailedPrecondition(f"the attention weights of {model.manifest.name} cannot be served: {error}") from None
    if not report.holds:
        raise FailedPrecondition(
            f"the attention weights of {model.manifest.name} are not its reference's: {report.worst}; "
            "`heed verify` on the bundle shows every case"
        )
    return report


class Attentions:
    """Loaded and verified at the first request for them, while other requests are served."""

    def __init__(self, model: Model, max_tokens: int, statistics: Statistics) -> None:
        """`max_tokens` tokens may wait."""
        self._model = model
        self._statistics = statistics
        self._max_tokens = max_tokens
        self._workers = Workers(1)
        self._loading: asyncio.Task[tuple[Scheduler, Report]] | None = None

    async def loaded(self) -> tuple[Scheduler, Report]:
        """The scheduler, and the report of the verification. The first caller starts that, and all wait for it.

        Raises:
            FailedPrecondition: see `_verify`; the same to every caller.
        """
        if self._loading is None:
            self._loading = asyncio.create_task(self._load())
        return await asyncio.shield(self._loading)  # it goes on for the others if this caller leaves

    async def _load(self) -> tuple[Scheduler, Report]:
        try:
            report = await asyncio.to_thread(_verify, self._model)
        except FailedPrecondition as error:
            log.error("%s", error)
            raise
        log.info("attention weights of %s: equal to the reference", self._model.manifest.name)
        scheduler = Scheduler(
            self._model.attention_graphs.run, OneByOne(), self._workers, self._max_tokens, [self._statistics]
        )
        return scheduler, report

    async def close(self) -> None:
        """Returns when every admitted request is answered."""
        if self._loading is None:
            return
        await asyncio.wait({self._loading})
        if self._loading.exception() is None:
            scheduler, _ = self._loading.result()
            await scheduler.close()
        self._workers.close()
