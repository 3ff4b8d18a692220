"""A server whose contract no longer holds: what it says of itself, and what its callers get.

In this process, so that a test can spoil what a card or a memory would.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from heed.bundle.sequence_packing import Arrays
from heed.protos import open_inference_pb2 as pb
from heed.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from heed.server.lifecycle import Ready, Server
from heed.server.settings import Settings
from tests.server.support import ids_request

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class Spoiled:
    """What a session computes, with an error while it is told to make one."""

    def __init__(self, run: Callable[..., Arrays]) -> None:
        self._run = run
        self.by = 0.0

    def __call__(self, feeds: Arrays, outputs: Collection[str] = ()) -> Arrays:
        return {name: values + np.float32(self.by) for name, values in self._run(feeds, outputs).items()}


class Watched:
    """A server, its calls, and its model's session."""

    def __init__(self, server: Server, channel: grpc.aio.Channel) -> None:
        (version,) = server._registry.all()
        assert version.served
        session: Any = version.served.model.session
        self.session = session.run = Spoiled(session.run)
        self._inference: Any = GRPCInferenceServiceStub(channel)
        self._health: Any = health_pb2_grpc.HealthStub(channel)
        self._server = server

    async def health(self) -> int:
        answer = await self._health.Check(health_pb2.HealthCheckRequest())
        return int(answer.status)

    async def ready(self) -> tuple[bool, bool]:
        """Of the server, and of the model."""
        server = await self._inference.ServerReady(pb.ServerReadyRequest())
        model = await self._inference.ModelReady(pb.ModelReadyRequest(name="tiny"))
        return server.ready, model.ready

    async def infer(self) -> tuple[grpc.StatusCode, str, str]:
        try:
            await self._inference.ModelInfer(ids_request([[2, 5, 3]]))
        except grpc.aio.AioRpcError as error:
            return error.code(), str(dict(error.trailing_metadata()).get("heed-reason")), error.details() or ""
        return grpc.StatusCode.OK, "", ""

    async def checked(self, result: str) -> None:
        """Returns when a case was repeated once more with this result."""

        def count() -> float:
            labels = {"model": "tiny", "version": "1", "result": result}
            return self._server._metrics.registry.get_sample_value("heed_contract_checks_total", labels) or 0

        before = count()
        while count() < before + 1:
            await asyncio.sleep(0.01)


@asynccontextmanager
async def serving(bundle: Path, **settings: Any) -> AsyncIterator[Watched]:
    ready: list[Ready] = []
    fixed = {"device": "cpu", "port": 0, "metrics_port": -1, "linger_seconds": 0, "recheck_seconds": 0.02, "threads": 1}
    server = Server(Settings(bundle=bundle, **{**fixed, **settings}), ready.append)
    try:
        async with asyncio.timeout(120):
            await server.startup()
            async with grpc.aio.insecure_channel(ready[0].address) as channel:
                yield Watched(server, channel)
    finally:
        await server.shutdown()


async def test_a_server_that_drifts_says_not_serving_and_refuses_until_it_holds_again(tiny_bundle: Path) -> None:
    async with serving(tiny_bundle) as watched:
        assert (await watched.health(), await watched.ready()) == (SERVING, (True, True))
        assert (await watched.infer())[0] is grpc.StatusCode.OK
        watched.session.by = 1e-3
        await watched.checked("broken")
        assert (await watched.health(), await watched.ready()) == (NOT_SERVING, (False, False))
        code, reason, message = await watched.infer()
        assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "drifted")
        assert message.startswith("model 'tiny' is not served here for now: it no longer answers as its reference: ")
        assert message.endswith("; call another server")
        watched.session.by = 0.0
        await watched.checked("holds")
        assert (await watched.health(), await watched.ready()) == (SERVING, (True, True))
        assert (await watched.infer())[0] is grpc.StatusCode.OK


async def test_who_prefers_wrong_answers_to_none_may_say_so(
    tiny_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tiny_bundle, on_drift="serve") as watched:
        watched.session.by = 1e-3
        await watched.checked("broken")
        assert (await watched.health(), await watched.ready()) == (SERVING, (True, True))
        assert (await watched.infer())[0] is grpc.StatusCode.OK
    assert "tiny no longer answers as its reference" in caplog.text
    assert "it goes on answering (--on-drift)" in caplog.text
