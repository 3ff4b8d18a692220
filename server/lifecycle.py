"""Starts a server, says when it is ready, and stops it without losing a request."""

import asyncio
import logging
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2_grpc

from heed.protos.heed_pb2_grpc import add_InferenceServicer_to_server
from heed.protos.open_inference_pb2 import DESCRIPTOR as OPEN_INFERENCE
from heed.protos.open_inference_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from heed.server.engine.host import (
    SWITCH_SECONDS,
    give_freed_memory_back,
    settle_memory,
    usable_cpus,
    usable_memory,
)
from heed.server.engine.session import CUDA
from heed.server.protocols.health import NOT_SERVING, SERVING, Health
from heed.server.protocols.heed_v1 import SERVICE as HEED_V1
from heed.server.protocols.heed_v1 import HeedV1Service
from heed.server.protocols.open_inference.service import InferenceService
from heed.server.protocols.streams import Streams
from heed.server.protocols.tei import TEXT_SERVICES, TeiServices
from heed.server.repository.model_repository import IndexEntry, ModelRepository
from heed.server.repository.registry import ModelRegistry, ModelVersion, State
from heed.server.settings import Settings
from heed.server.telemetry.metrics import Metrics
from heed.server.telemetry.metrics_endpoint import serve_metrics
from heed.server.telemetry.observers import observers_for, start_tracing
from heed.server.transport.accept_loop import accepted_until_stopped
from heed.server.transport.grpc_server import enable_reflection, encryption, new_server, open_port
from heed.server.transport.interceptors import ConcurrencyLimit

log = logging.getLogger("heed.server")

SERVICES = [OPEN_INFERENCE.services_by_name["GRPCInferenceService"].full_name, HEED_V1, *TEXT_SERVICES]


def warn_of_threads(threads: int, cpus: int) -> None:
    """Those of --threads, and the CPUs that this process may use."""
    if threads > cpus:
        log.warning(
            "--threads %d is more than the %d that this process may use at a time (CPUs of the machine, its affinity "
            "mask, quotas of its cgroups): batches wait for each other, and answers come later; leave --threads out",
            *(threads, cpus),
        )


@dataclass(frozen=True)
class Ready:
    """What the server reports when it is ready."""

    address: str
    encryption: str
    metrics: str  # the address of the metrics; empty: there are none
    served: list[ModelVersion]
    others: list[IndexEntry]  # versions that are not served, and why


class Server:
    """One process that serves a bundle or a repository. `serve` does everything; its steps are `startup` and
    `shutdown`."""

    def __init__(self, settings: Settings, on_ready: Callable[[Ready], None] = lambda _: None) -> None:
        self._settings = settings
        self._on_ready = on_ready
        self._registry = ModelRegistry(settings.default_model, self._report_health)
        self._health = Health(SERVICES)
        self._metrics = Metrics(settings.max_queue_tokens, usable_memory())
        self._tracing = start_tracing() if settings.traces else None
        self._repository = ModelRepository(settings, self._registry, self._metrics)
        self._concurrency = ConcurrencyLimit(settings.max_concurrent_requests, self._metrics.refused)
        self._streams = Streams()
        observers = observers_for(settings, self._metrics, self._tracing)
        self._inference = InferenceService(
            self._registry, self._repository, settings, observers, self._concurrency, self._streams
        )
        self._heed_v1 = HeedV1Service(
            self._inference.answer_stream_request, self._inference.refuse_late_request, self._streams
        )
        self._tei = TeiServices(self._registry, settings, observers, self._concurrency, self._streams)
        self._grpc: grpc.aio.Server | None = None
        self._listening = asyncio.Event()
        self._stopping = False

    async def serve(self) -> None:
        """Serves until SIGTERM or SIGINT, then finishes what is in flight.

        Raises:
            BundleError, DeviceError, StartError: it cannot start; the message says why.
            ServerFailure: it can no longer serve. What is in flight was finished.
        """
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        run = asyncio.create_task(self._run())
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({run, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if run.done():
                run.result()  # raises why
        finally:
            run.cancel()
            stopped.cancel()
            await self.shutdown()

    async def _run(self) -> None:
        """Starts, and then ends only with an error. Calls must be accepted while models load, too."""
        starting, accepting = asyncio.create_task(self.startup()), asyncio.create_task(self._accept())
        try:
            for first in (await asyncio.wait({starting, accepting}, return_when=asyncio.FIRST_COMPLETED))[0]:
                first.result()  # raises why
            await accepting
        finally:
            starting.cancel()
            accepting.cancel()

    async def _accept(self) -> None:
        """Ends only with an error, or when the server is stopped."""
        await self._listening.wait()
        assert self._grpc
        await accepted_until_stopped(self._grpc)

    async def startup(self) -> None:
        """Listens at once and answers UNAVAILABLE; is ready when the models are verified and warm."""
        ready = await self._prepare()
        self._registry.ready = True
        self._report_health()
        self._on_ready(ready)

    def _report_health(self) -> None:
        ready = self._registry.is_ready and not self._stopping
        self._health.report(SERVING if ready else NOT_SERVING)

    async def check(self) -> None:
        """Does what a start does, reports it, and ends without having been ready.

        Raises:
            BundleError, DeviceError, StartError: it could not start; the message says why.
        """
        try:
            self._on_ready(await self._prepare())
        finally:
            await self.shutdown()

    async def _prepare(self) -> Ready:
        give_freed_memory_back()
        sys.setswitchinterval(SWITCH_SECONDS)
        address = await self._listen()
        metrics_address = self._listen_for_metrics()
        await self._repository.start()
        settle_memory()
        others = [entry for entry in await self._repository.index() if entry.state is not State.READY]
        served = sorted(self._registry.all(), key=lambda one: one.name)
        if any(one.verified and one.verified.model.session.provider != CUDA for one in served):
            warn_of_threads(self._settings.threads, usable_cpus())
        return Ready(address, encryption(self._settings), metrics_address, served, others)

    async def shutdown(self) -> None:
        """NOT_SERVING, a while for load balancers to notice it, then no new calls, then the end of those in flight."""
        if self._grpc is None:
            return
        self._stopping = True
        self._report_health()
        if self._registry.ready:
            await asyncio.sleep(self._settings.linger_seconds)
        self._registry.ready = False
        self._health.end_watches()
        self._streams.end()
        await self._grpc.stop(self._settings.grace_seconds)
        await self._repository.close()
        if self._tracing:
            await asyncio.to_thread(self._tracing.close)

    def _listen_for_metrics(self) -> str:
        """Opens the port of the metrics and returns its address; empty if the settings say that there is none."""
        host, port = self._settings.metrics_host or self._settings.host, self._settings.metrics_port
        return serve_metrics(self._metrics.registry, host, port) if port >= 0 else ""

    async def _listen(self) -> str:
        """Opens the port and returns the address."""
        server = new_server(self._settings, self._concurrency, self._metrics.refused)
        add_GRPCInferenceServiceServicer_to_server(self._inference, server)
        add_InferenceServicer_to_server(self._heed_v1, server)
        self._tei.add_to(server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        enable_reflection(server, SERVICES)
        address = open_port(server, self._settings)
        await server.start()
        self._grpc = server
        self._listening.set()
        return address
