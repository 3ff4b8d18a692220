"""`grpc.health.v1`, with streams that end.

grpc_health's own servicer writes to a watcher while it holds the lock that a change of status needs: one watcher that
does not read would keep a server from stopping, and one that leaves takes the lock of the others along.
"""

import asyncio
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from heed.server.errors import Unavailable

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVING = health_pb2.HealthCheckResponse.SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

Request = health_pb2.HealthCheckRequest
Response = health_pb2.HealthCheckResponse
Context = grpc.aio.ServicerContext[Any, Any]


class Health(health_pb2_grpc.HealthServicer):
    """Reports NOT_SERVING until `report` is called. It ends its `Watch` streams when the server stops: left open they
    would hold it for the whole grace period."""

    def __init__(self, services: list[str]) -> None:
        self._services = {"", *services}  # "" is the server
        self._status: int = NOT_SERVING
        self._changed = asyncio.Event()  # each change has its own
        self._ended = False

    def report(self, status: int) -> None:
        """The same status for the server and each of its services."""
        self._status = status
        self._wake_watchers()

    def end_watches(self) -> None:
        self._ended = True
        self._wake_watchers()

    def _wake_watchers(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: Request, context: Context) -> Response:
        if request.service not in self._services:
            known = ", ".join(sorted(self._services - {""}))
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no such service; there are {known}")
        return Response(status=self._status)

    async def Watch(self, request: Request, context: Context) -> None:
        reported = None
        while True:
            changed, ended = self._changed, self._ended
            status = self._status if request.service in self._services else UNKNOWN
            if status != reported:
                await context.write(Response(status=status))
                reported = status
            elif ended:
                raise Unavailable("the server is shutting down; ask another one", "draining")
            else:
                await changed.wait()
