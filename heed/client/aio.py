import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Coroutine, Iterable
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import numpy as np

from heed.client.answers import CLASSIFY, EMBED, RANK, TAG, Label, Rank, Tag, read_labels, read_ranks, read_tags
from heed.client.batches import Filling, OneBundle, cut, joined, of_rows
from heed.client.config import Common
from heed.client.streams import Streams
from heed.client.wire import (
    Answer,
    CallError,
    Inputs,
    ModelInfo,
    as_arrays,
    call_error,
    read_answer,
    read_model_info,
    several,
    texts_and_pairs,
)
from heed.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub

Item = TypeVar("Item")
Result = TypeVar("Result")
Items = Iterable[Item] | AsyncIterable[Item]


class Door:
    """A channel to one server, and the streams on it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.stub: Any = GRPCInferenceServiceStub(channel)
        self.streams = Streams(channel)


class AsyncClient(Common[Door]):
    """`Client` for asyncio: the same methods, awaited. A cancelled call is cancelled on the server too."""

    _closed = False

    async def infer(
        self, inputs: Inputs, outputs: Iterable[str] = (), truncate: bool = False, timeout: float | None = None
    ) -> Answer:
        """See `Client.infer`."""
        arrays, outputs = as_arrays(inputs), list(outputs)
        parts = cut(arrays, self._request_rows)
        if len(parts) == 1:
            return await self._infer(arrays, outputs, truncate, timeout)

        async def ask(rows: slice) -> Answer:
            try:
                part = {name: array[rows] for name, array in arrays.items()}
                return await self._infer(part, outputs, truncate, timeout)
            except CallError as error:
                raise of_rows(error, rows) from None

        async with aclosing(_in_order(ask, parts, self._requests_at_once)) as answers:
            return joined([answer async for answer in answers])

    def infer_each(
        self,
        requests: Items[Inputs],
        outputs: Iterable[str] = (),
        truncate: bool = False,
        timeout: float | None = None,
    ) -> AsyncGenerator[Answer]:
        """See `Client.infer_each`."""
        outputs = list(outputs)
        return _in_order(
            lambda inputs: self._infer(inputs, outputs, truncate, timeout), requests, self._requests_at_once
        )

    async def embed(self, texts: Iterable[str], truncate: bool = False, timeout: float | None = None) -> np.ndarray:
        """See `Client.embed`."""
        return (await self.infer(texts_and_pairs(texts, None), EMBED, truncate, timeout))["sentence_embedding"]

    async def embed_each(
        self, texts: Items[str], truncate: bool = False, timeout: float | None = None
    ) -> AsyncGenerator[np.ndarray]:
        """See `Client.embed_each`."""
        bundle = OneBundle()
        requests = ({"text": batch} async for batch in _batches(several(texts), self._request_rows))
        async with aclosing(self.infer_each(requests, EMBED, truncate, timeout)) as answers:
            async for answer in answers:
                for vector in bundle.check(answer)["sentence_embedding"]:
                    yield vector

    async def classify(
        self,
        texts: Iterable[str],
        pairs: Iterable[str] | None = None,
        truncate: bool = False,
        timeout: float | None = None,
    ) -> list[Label]:
        """See `Client.classify`."""
        return read_labels(await self.infer(texts_and_pairs(texts, pairs), CLASSIFY, truncate, timeout))

    async def tag(self, texts: Iterable[str], truncate: bool = False, timeout: float | None = None) -> list[list[Tag]]:
        """See `Client.tag`."""
        texts = list(several(texts))
        return read_tags(await self.infer({"text": texts}, TAG, truncate, timeout), texts)

    async def rank(
        self, query: str, texts: Iterable[str], truncate: bool = False, timeout: float | None = None
    ) -> list[Rank]:
        """See `Client.rank`."""
        texts = list(several(texts))
        inputs = texts_and_pairs([query] * len(texts), texts)
        return read_ranks(await self.infer(inputs, RANK, truncate, timeout), texts)

    async def info(self, timeout: float | None = None) -> ModelInfo:
        """See `Client.info`."""

        async def ask(door: Door, seconds: float) -> ModelInfo:
            call = door.stub.ModelMetadata(self._info_request(), timeout=seconds, metadata=self._connection.metadata())
            try:
                return read_model_info(await call)
            except grpc.RpcError as error:
                raise call_error(error) from None

        return await self._ask(ask, timeout)

    async def close(self) -> None:
        """Calls under way end with CallError, CANCELLED, as those do that come later."""
        self._closed = True
        for server in self._servers.each:
            await server.door.streams.close()
            await server.door.channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _open(self, address: str) -> Door:
        tls, options = self._connection.tls, self._connection.options(address)
        if tls:
            return Door(grpc.aio.secure_channel(address, tls.credentials(), options))
        return Door(grpc.aio.insecure_channel(address, options))

    async def _infer(self, inputs: Inputs, outputs: Iterable[str], truncate: bool, timeout: float | None) -> Answer:
        request = self._infer_request(inputs, outputs, truncate)

        async def ask(door: Door, seconds: float) -> Answer:
            return read_answer(await door.streams.ask(request, seconds, self._connection.metadata()))

        return await self._ask(ask, timeout)

    async def _ask(self, ask: Callable[[Door, float], Awaitable[Result]], timeout: float | None) -> Result:
        turn = self._turn(timeout)
        while True:
            if self._closed:
                raise CallError(grpc.StatusCode.CANCELLED, "the client is closed")
            try:
                return await ask(turn.door, turn.left)
            except CallError as error:
                wait = turn.wait_after(error)
            except asyncio.CancelledError:  # gRPC ends what is under way on a channel that is closed as if it were left
                task = asyncio.current_task()
                if not self._closed or (task and task.cancelling()):
                    raise
                raise CallError(grpc.StatusCode.CANCELLED, "the client is closed") from None
            await asyncio.sleep(wait)


async def _in_order(
    function: Callable[[Item], Coroutine[Any, Any, Result]], items: Items[Item], at_once: int
) -> AsyncGenerator[Result]:
    """The result for each item, in their order, as soon as it is there: the next item may take long to come. `items` is
    read up to `at_once` ahead."""
    waiting: asyncio.Queue[asyncio.Task[Result] | None] = asyncio.Queue()
    room = asyncio.Semaphore(at_once - 1)

    async def start() -> None:
        try:
            async for item in _each(items):
                waiting.put_nowait(asyncio.create_task(function(item)))
                await room.acquire()
        finally:
            waiting.put_nowait(None)

    starting = asyncio.create_task(start())
    try:
        while task := await waiting.get():
            yield await task
            room.release()
        await starting  # raises what went wrong with the items
    finally:
        left: list[asyncio.Task[Any]] = [starting]
        while not waiting.empty():
            if task := waiting.get_nowait():
                left.append(task)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


async def _batches(texts: Items[str], most: int) -> AsyncGenerator[list[str]]:
    filling = Filling[str](most, len)
    async for text in _each(texts):
        if full := filling.add(text):
            yield full
    if filling.batch:
        yield filling.batch


async def _each(items: Items[Item]) -> AsyncGenerator[Item]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
