"""How requests get to one server: by gRPC's asyncio API, over shared streams, or by a blocking call."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import grpc

from heed.client.connection import Connection
from heed.client.streams import Streams
from heed.client.wire import CallError, call_error
from heed.protos import open_inference_pb2 as pb
from heed.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub

Result = TypeVar("Result")


def client_closed() -> CallError:
    return CallError(grpc.StatusCode.CANCELLED, "the client is closed")


class Transport(ABC):
    """One server. Calls raise CallError; a timeout is in seconds.

    The methods are coroutines, so that one implementation of a client's calls runs on every transport.
    """

    def __init__(self, address: str, connection: Connection) -> None:
        self._address, self._connection = address, connection

    @abstractmethod
    async def infer(self, request: pb.ModelInferRequest, timeout: float) -> pb.ModelInferResponse: ...

    @abstractmethod
    async def model_metadata(self, request: pb.ModelMetadataRequest, timeout: float) -> pb.ModelMetadataResponse: ...

    @abstractmethod
    async def sleep(self, seconds: float) -> None: ...

    @abstractmethod
    async def close(self) -> None:
        """Ends what is in flight with CallError, CANCELLED."""


class AioChannel:
    """A grpc.aio channel, and the streams on it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.stub: Any = GRPCInferenceServiceStub(channel)
        self.streams = Streams(channel)
        self.closed = False

    async def close(self) -> None:
        """Lets go of gRPC's objects, too: what was raised from here has frames that refer to this one."""
        self.closed = True
        await self.streams.close()
        await self.channel.close()
        del self.channel, self.stub


class AioTransport(Transport):
    """grpc.aio; requests that are in flight at the same time share streams.

    The channel is opened by the first call, on its event loop, and again by the first call after `close`.
    """

    _opened: AioChannel | None = None

    async def infer(self, request: pb.ModelInferRequest, timeout: float) -> pb.ModelInferResponse:
        metadata = self._connection.metadata()
        return await self._call(lambda opened: opened.streams.infer(request, timeout, metadata))

    async def model_metadata(self, request: pb.ModelMetadataRequest, timeout: float) -> pb.ModelMetadataResponse:
        async def call(opened: AioChannel) -> pb.ModelMetadataResponse:
            try:
                response: pb.ModelMetadataResponse = await opened.stub.ModelMetadata(
                    request, timeout=timeout, metadata=self._connection.metadata()
                )
            except grpc.RpcError as error:
                raise call_error(error) from None
            return response

        return await self._call(call)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        opened, self._opened = self._opened, None
        if opened:
            await opened.close()

    async def _call(self, call: Callable[[AioChannel], Coroutine[Any, Any, Result]]) -> Result:
        opened = self._opened = self._opened or self._open()
        try:
            return await call(opened)
        except asyncio.CancelledError:  # grpc.aio raises it, too, in the calls of a channel that is closed
            task = asyncio.current_task()
            if not opened.closed or (task and task.cancelling()):
                raise
            raise client_closed() from None

    def _open(self) -> AioChannel:
        options = self._connection.channel_options(self._address)
        if self._connection.credentials:
            return AioChannel(grpc.aio.secure_channel(self._address, self._connection.credentials, options))
        return AioChannel(grpc.aio.insecure_channel(self._address, options))


class BlockingTransport(Transport):
    """Blocking calls in the caller's own thread: these coroutines never suspend. Safe to use from several threads."""

    def __init__(self, address: str, connection: Connection) -> None:
        super().__init__(address, connection)
        self._channel = self._open()
        self._stub: Any = GRPCInferenceServiceStub(self._channel)
        self._closed = False

    async def infer(self, request: pb.ModelInferRequest, timeout: float) -> pb.ModelInferResponse:
        response: pb.ModelInferResponse = self._call(self._stub.ModelInfer, request, timeout)
        return response

    async def model_metadata(self, request: pb.ModelMetadataRequest, timeout: float) -> pb.ModelMetadataResponse:
        response: pb.ModelMetadataResponse = self._call(self._stub.ModelMetadata, request, timeout)
        return response

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    async def close(self) -> None:
        self._closed = True
        self._channel.close()

    def _call(self, method: Callable[..., Any], request: Any, timeout: float) -> Any:
        try:
            return method(request, timeout=timeout, metadata=self._connection.metadata())
        except grpc.RpcError as error:
            raise call_error(error) from None
        except ValueError:  # gRPC's, for a channel that is closed
            if not self._closed:
                raise
            raise client_closed() from None

    def _open(self) -> grpc.Channel:
        options = self._connection.channel_options(self._address)
        if self._connection.credentials:
            return grpc.secure_channel(self._address, self._connection.credentials, options)
        return grpc.insecure_channel(self._address, options)
