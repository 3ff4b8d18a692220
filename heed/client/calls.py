"""The calls of a model, implemented once for both clients."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import TypeVar

import numpy as np

from heed.client.answers import CLASSIFY, EMBED, RANK, TAG, Label, Rank, Tag, read_labels, read_ranks, read_tags
from heed.client.batches import joined, split, with_rows
from heed.client.concurrency import in_order
from heed.client.config import ClientConfig
from heed.client.connection import Connection
from heed.client.servers import Servers
from heed.client.transports import Transport, client_closed
from heed.client.wire import (
    Answer,
    CallError,
    Inputs,
    ModelInfo,
    as_arrays,
    infer_request,
    read_answer,
    read_model_info,
    several,
    texts_and_pairs,
)
from heed.protos import open_inference_pb2 as pb

Result = TypeVar("Result")


class ModelCalls:
    """Retries, splits batches and reads answers, over a transport for each server."""

    def __init__(
        self, config: ClientConfig, servers: Servers, open_transport: Callable[[str, Connection], Transport]
    ) -> None:
        """`servers` has as many as the config has addresses."""
        connection = config.connection
        self._config, self._servers = config, servers
        self._transports = [open_transport(address, connection) for address in connection.addresses]
        self._closed = False

    async def infer(
        self, inputs: Inputs, outputs: Iterable[str] = (), truncate: bool = False, timeout: float | None = None
    ) -> Answer:
        """See `Client.infer`."""
        arrays, outputs = as_arrays(inputs), list(outputs)
        parts = split(arrays, self._config.request_rows)
        if len(parts) == 1:
            return await self._infer_request(arrays, outputs, truncate, timeout)
        return await self._infer_parts(arrays, parts, outputs, truncate, timeout)

    async def embed(self, texts: Iterable[str], truncate: bool = False, timeout: float | None = None) -> np.ndarray:
        """See `Client.embed`."""
        texts = list(several(texts))
        if not texts:
            return await self._no_embeddings(timeout)
        return (await self.infer(texts_and_pairs(texts, None), EMBED, truncate, timeout))["sentence_embedding"]

    async def _no_embeddings(self, timeout: float | None) -> np.ndarray:
        """`[0, D]`: a server takes no request without a row, but says how long its vectors are."""
        info = await self.info(timeout)
        if "sentence_embedding" not in info.outputs:
            raise ValueError(f"{info.name} gives no sentence_embedding, only {', '.join(info.outputs)}")
        return np.empty((0, info.outputs["sentence_embedding"][1][-1]), np.float32)

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
        request = pb.ModelMetadataRequest(name=self._config.model, version=self._config.version)

        async def call(transport: Transport, seconds: float) -> ModelInfo:
            return read_model_info(await transport.model_metadata(request, seconds))

        return await self._with_retries(call, timeout)

    async def close(self) -> None:
        """Calls in flight end with CallError, CANCELLED, as do those that are made later."""
        self.refuse_calls()
        await self.close_transports()

    def refuse_calls(self) -> None:
        self._closed = True

    async def close_transports(self) -> None:
        for transport in self._transports:
            await transport.close()

    async def _infer_request(
        self, inputs: Inputs, outputs: Iterable[str], truncate: bool, timeout: float | None
    ) -> Answer:
        """`infer` in one request, however many rows there are."""
        request = infer_request(self._config.model, self._config.version, inputs, outputs, truncate)

        async def call(transport: Transport, seconds: float) -> Answer:
            return read_answer(await transport.infer(request, seconds))

        return await self._with_retries(call, timeout)

    async def _infer_parts(
        self,
        arrays: dict[str, np.ndarray],
        parts: Sequence[slice],
        outputs: Sequence[str],
        truncate: bool,
        timeout: float | None,
    ) -> Answer:
        """`infer` in a request for each slice of the rows, some at a time."""

        async def infer_rows(rows: slice) -> Answer:
            try:
                part = {name: array[rows] for name, array in arrays.items()}
                return await self._infer_request(part, outputs, truncate, timeout)
            except CallError as error:
                raise with_rows(error, rows) from None

        async with aclosing(in_order(infer_rows, parts, self._config.requests_at_once)) as answers:
            return joined([answer async for answer in answers])

    async def _with_retries(
        self, call: Callable[[Transport, float], Awaitable[Result]], timeout: float | None
    ) -> Result:
        """`call` gets the transport of an attempt and the seconds that are left for it."""
        attempts = self._servers.attempts(self._config.timeout if timeout is None else timeout)
        while True:
            if self._closed:
                raise client_closed()
            transport = self._transports[attempts.server]
            try:
                return await call(transport, attempts.seconds_left)
            except CallError as error:
                wait = attempts.wait_after(error)
            await transport.sleep(wait)
