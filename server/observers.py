"""Who is told of requests, by the settings."""

import logging
from typing import TYPE_CHECKING

from server.errors import StartError
from server.logs import RequestLog, log
from server.metrics import Metrics
from server.record import Listener, Observers
from server.settings import Settings

if TYPE_CHECKING:
    from server.tracing import Tracing


def start_tracing() -> "Tracing":
    """
    Raises:
        StartError: the extra `otel` is not installed, or its variables ask for what there is not.
    """
    try:
        from server.tracing import Tracing
    except ModuleNotFoundError as error:
        raise StartError(f"--traces needs a package that is missing ({error.name}): pip install 'heed[otel]'") from None
    return Tracing()


def observers_for(settings: Settings, metrics: Metrics, tracing: "Tracing | None") -> Observers:
    listeners: list[Listener] = [metrics.ended]
    if tracing:
        listeners.append(tracing.ended)  # before the log, which tells a trace's id
    level = logging.INFO if settings.log_requests else logging.DEBUG
    if log.isEnabledFor(level):
        listeners.append(RequestLog(level).ended)
    observers = Observers(*listeners)
    metrics.watch_requests(lambda: observers.in_flight)
    return observers
