"""gRPC's server with an accept loop that no caller can end.

grpc.aio decodes the name of a method that no service has in the loop that accepts calls, before an interceptor sees
it. A name that is not UTF-8 would end the loop: the process stays, and nobody is let in again. The methods that
services have are found by gRPC's core, by their bytes. So the calls of all others are taken here and answered without
a look at the name.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
from grpc import StatusCode

# gRPC offers no other way to see a call before its name is decoded. tests/server/transport/test_accept_loop.py tells
# when a newer version does this otherwise.
from grpc._cython.cygrpc import (  # type: ignore[import-not-found]
    AioServer,
    _handle_rpc,
    _schedule_rpc_coro,
    get_working_loop,
)
from grpc.aio._server import Server as GrpcServer
from grpc.aio._server import _augment_channel_arguments

from heed.server.errors import ServerFailure
from heed.server.transport.interceptors import CountRefusal, Refusal, refuse

UNKNOWN = "a method that no service has"
UNKNOWN_METHOD = Refusal(
    StatusCode.UNIMPLEMENTED, "no service of this server has such a method; reflection lists them", "unimplemented"
)
LOOK_SECONDS = 1.0


class _UnknownMethods:
    """Takes the place of gRPC's table of methods."""

    def __init__(self, count_refusal: CountRefusal) -> None:
        self._count_refusal = count_refusal

    def resolve_handler(self, details: grpc.HandlerCallDetails) -> Any:
        return refuse(UNKNOWN_METHOD, self._count_refusal)


class _AcceptLoop(AioServer):  # type: ignore[misc]  # it is Cython's
    """Calls of methods that no service has never reach gRPC's loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, interceptors: Any, options: Any, unknown: Any) -> None:
        super().__init__(loop, None, (), interceptors, options, None)
        self._event_loop = loop
        self._unknown = unknown
        self._calls: set[asyncio.Task[None]] = set()  # the event loop itself may forget them

    async def _request_call(self) -> Any:
        """Would return the next call of a method that is not registered. Ends with the server."""
        while True:
            self._refuse(await super()._request_call())

    def _refuse(self, call: Any) -> None:
        answer = _handle_rpc(UNKNOWN, self._unknown, (), call, self._event_loop, False)
        task = self._event_loop.create_task(_schedule_rpc_coro(answer, call, self._event_loop, UNKNOWN))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)


class AcceptingServer(GrpcServer, grpc.aio.Server):  # type: ignore[misc]  # grpc's own types know the second alone
    """`grpc.aio.server(...)`, and whatever callers send it accepts calls until it is stopped."""

    def __init__(
        self,
        interceptors: Sequence[grpc.aio.ServerInterceptor],
        options: dict[str, int],
        compression: grpc.Compression,
        count_refusal: CountRefusal,
    ) -> None:
        """`count_refusal` is called for each call of a method that no service has."""
        self._loop = get_working_loop()
        arguments = _augment_channel_arguments(list(options.items()), compression)
        self._server = _AcceptLoop(self._loop, interceptors, arguments, _UnknownMethods(count_refusal))


async def accepted_until_stopped(server: grpc.aio.Server) -> None:
    """Returns when the server is stopped.

    Raises:
        ServerFailure: it accepts no more calls though nobody stopped it.
    """
    try:
        while await server.wait_for_termination(LOOK_SECONDS):
            pass  # it runs; gRPC tells of its loop's end only to who asks
    except Exception as error:
        raise ServerFailure(f"gRPC accepts no more calls: {type(error).__name__}: {error}") from error
