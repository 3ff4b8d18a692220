"""Starts a server, says when it is ready, and stops it without losing a request."""

import asyncio
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2_grpc

from bundle import read_manifest
from bundle.contract import Report
from bundle.digests import check_digests
from bundle.signature import check_signature
from protos.open_inference_pb2 import DESCRIPTOR as OPEN_INFERENCE
from protos.open_inference_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from server.attentions import Attentions
from server.errors import StartError
from server.listening import enable_reflection, new_server, open_port
from server.machine import SWITCH_SECONDS, give_freed_memory_back, settle_memory, usable_cpus
from server.metrics import Metrics
from server.model import Model
from server.recheck import Recheck, cases_at_start
from server.registry import Registry, Served, State
from server.runtime import CUDA
from server.scheduler import Scheduler
from server.services.health import NOT_SERVING, SERVING, Health
from server.services.inference import InferenceService
from server.services.tei import TEXT_SERVICES, TextDoor
from server.serving import Serving
from server.settings import Settings
from server.warmup import Warmup, warm_up

SERVICE = OPEN_INFERENCE.services_by_name["GRPCInferenceService"].full_name


@dataclass(frozen=True)
class Ready:
    """What is served, and how well it was proven: what an operator wants to read at a start."""

    address: str
    model: Model
    report: Report
    warmup: Warmup
    threads: int
    metrics: str  # their address; empty: there are none


def verified(folder: Path, settings: Settings) -> tuple[Model, Report]:
    """Loads a bundle and proves it: first its signature, if one is asked for, and its digests, then its numbers, on the
    provider that will serve.

    Raises:
        BundleError: a file is missing, additional or altered, or the bundle is not signed as it must be.
        StartError: an answer is too far from the reference's, or the bundle has not what the settings ask for.
        DeviceError: the device cannot be used.
    """
    if settings.require_signature:
        check_signature(folder, settings.require_signature)
    else:
        check_digests(folder)
    if settings.attentions and not read_manifest(folder).gives_attentions:
        raise StartError(f"{folder} has no attention weights to serve; leave out --attentions")
    model = Model(folder, settings.device, settings.precision)
    report = Report(list(model.check_contract(everything=False)))
    if not report.holds:
        raise StartError(
            f"{folder} does not answer as its reference: {report.worst}; `heed verify {folder}` shows every case"
        )
    return model, report


def default_threads(model: Model) -> int:
    """How many groups to compute at a time: one on each CPU, or one on a GPU while the next is prepared."""
    return 2 if model.runtime.provider == CUDA else usable_cpus()


class Server:
    """One process that serves one bundle. `serve` does everything; its steps are `startup` and `shutdown`."""

    def __init__(self, settings: Settings, on_ready: Callable[[Ready], None] = lambda _: None) -> None:
        self._settings = settings
        self._on_ready = on_ready
        self._served = Served(read_manifest(settings.bundle))
        self._registry = Registry([self._served])
        self._health = Health([SERVICE, *TEXT_SERVICES])
        self._metrics = Metrics()
        self._inference = InferenceService(self._registry, settings.max_message_mib * 2**20, self._metrics.requested)
        self._texts = TextDoor(self._registry, settings, self._metrics.requested)
        self._recheck: asyncio.Task[None] | None = None
        self._grpc: grpc.aio.Server | None = None

    async def serve(self) -> None:
        """Serves until SIGTERM or SIGINT, then finishes what is in flight.

        Raises:
            BundleError, DeviceError, StartError: it cannot start; the message says why.
        """
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        start = asyncio.create_task(self.startup())
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({start, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if start.done():
                start.result()  # raises what the start raised
                await stopped
        finally:
            start.cancel()
            stopped.cancel()
            await self.shutdown()

    async def startup(self) -> None:
        """Listens at once and answers UNAVAILABLE; is ready when the bundle is verified and warm."""
        give_freed_memory_back()
        sys.setswitchinterval(SWITCH_SECONDS)
        address = await self._listen()
        metrics_address = self._listen_for_metrics()
        model, report = await asyncio.to_thread(verified, self._settings.bundle, self._settings)
        threads = self._settings.threads or default_threads(model)
        warmup = await asyncio.to_thread(warm_up, model, threads)
        tokens = self._settings.max_queue_tokens
        scheduler = Scheduler(model.run, warmup.strategy, workers=threads, max_tokens=tokens)
        attentions = Attentions(model, max_tokens=tokens)
        self._served.serving = Serving(model, scheduler, attentions)
        if self._settings.attentions:
            _, proof = await attentions.loaded()
            report = Report(report.findings + proof.findings)
        await self._go_on_proving(model, scheduler, report)
        settle_memory()
        self._served.state = State.READY
        await self._health.report(SERVING)
        self._on_ready(Ready(address, model, report, warmup, threads, metrics_address))

    async def _go_on_proving(self, model: Model, scheduler: Scheduler, report: Report) -> None:
        """Shows the errors of the start, and repeats its cases from now on."""
        metrics = self._metrics.add(model, lambda: scheduler.waiting_tokens)
        metrics.compared(report.findings)
        if self._settings.recheck_seconds:
            cases = await asyncio.to_thread(cases_at_start, model.folder)
            recheck = Recheck(model, scheduler, cases, metrics, self._settings.recheck_seconds)
            self._recheck = asyncio.create_task(recheck.run())

    async def shutdown(self) -> None:
        """NOT_SERVING, a while for load balancers to notice, then no new calls, then the end of those in flight."""
        if self._grpc is None:
            return
        if self._recheck:
            self._recheck.cancel()
        await self._health.report(NOT_SERVING)
        if self._served.state is State.READY:
            await asyncio.sleep(self._settings.linger_seconds)
        self._served.state = State.DRAINING
        self._health.end_watches()
        self._inference.end_streams()
        self._texts.end_streams()
        await self._grpc.stop(self._settings.grace_seconds)
        if self._served.serving:
            await self._served.serving.close()

    def _listen_for_metrics(self) -> str:
        """Opens their port and returns the address; empty if there shall be none."""
        port = self._settings.metrics_port
        return self._metrics.listen(self._settings.host, port) if port >= 0 else ""

    async def _listen(self) -> str:
        """Opens the port and returns the address."""
        server = new_server(self._settings)
        add_GRPCInferenceServiceServicer_to_server(self._inference, server)
        self._texts.add_to(server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        enable_reflection(server, [SERVICE, *TEXT_SERVICES])
        address = open_port(server, self._settings)
        await server.start()
        self._grpc = server
        return address
