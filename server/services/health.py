"""`grpc.health.v1`, with streams that end."""

import asyncio
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVING = health_pb2.HealthCheckResponse.SERVING


class Health(health.aio.HealthServicer):
    """Says NOT_SERVING until told otherwise, and ends its `Watch` streams when the server stops: left open they would
    hold it for the whole grace period."""

    def __init__(self, services: list[str]) -> None:
        super().__init__()
        self._stopped = asyncio.Event()
        self._server_status = dict.fromkeys(["", *services], NOT_SERVING)  # the library's own default is SERVING

    async def report(self, status: int) -> None:
        """The same status for the server and each of its services."""
        for name in list(self._server_status):
            await self.set(name, status)

    def end_watches(self) -> None:
        self._stopped.set()

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        watch = asyncio.ensure_future(super().Watch(request, context))
        stopped = asyncio.ensure_future(self._stopped.wait())
        try:
            await asyncio.wait({watch, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            watch.cancel()
            stopped.cancel()
