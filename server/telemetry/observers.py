"""Who observes requests, by the settings."""

import logging
from typing import TYPE_CHECKING

from heed.extras import advice
from heed.server.errors import StartError
from heed.server.settings import Settings
from heed.server.telemetry.logs import RequestLog, log
from heed.server.telemetry.metrics import Metrics
from heed.server.telemetry.request_trace import Listener, Observers

if TYPE_CHECKING:
    from heed.server.telemetry.tracing import Tracing


def start_tracing() -> "Tracing":
    """
    Raises:
        StartError: the extra `otel` is not installed, or its variables ask for what there is not.
    """
    try:
        from heed.server.telemetry.tracing import Tracing
    except ModuleNotFoundError as error:
        raise StartError(f"--traces: {advice(error) or error}") from None
    return Tracing()


def observers_for(settings: Settings, metrics: Metrics, tracing: "Tracing | None") -> Observers:
    listeners: list[Listener] = [metrics.request_ended]
    if tracing:
        listeners.append(tracing.request_ended)  # before the log, which has the trace's id
    level = logging.INFO if settings.log_requests else logging.DEBUG
    if log.isEnabledFor(level):
        listeners.append(RequestLog(level).request_ended)
    observers = Observers(*listeners)
    metrics.watch_requests(lambda: observers.in_flight)
    return observers
