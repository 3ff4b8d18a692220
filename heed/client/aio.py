"""The client for asyncio."""

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from types import TracebackType
from typing import Self

import numpy as np

from heed.client.answers import EMBED
from heed.client.batches import BatchBuilder, BundleCheck
from heed.client.calls import ModelCalls
from heed.client.concurrency import Items, each_of, in_order
from heed.client.config import ClientBase, ClientConfig
from heed.client.servers import Servers
from heed.client.transports import AioTransport
from heed.client.wire import Answer, Inputs, several


class AsyncClient(ClientBase, ModelCalls):
    """`Client` for asyncio: the same methods, awaited. A cancelled call is cancelled on the server too."""

    def _configure(self, config: ClientConfig) -> None:
        ModelCalls.__init__(self, config, Servers(len(config.connection.addresses)), AioTransport)

    def infer_each(
        self,
        requests: Items[Inputs],
        outputs: Iterable[str] = (),
        truncate: bool = False,
        timeout: float | None = None,
    ) -> AsyncGenerator[Answer]:
        """See `Client.infer_each`."""
        outputs = list(outputs)
        return in_order(
            lambda inputs: self._infer_request(inputs, outputs, truncate, timeout),
            requests,
            self._config.requests_at_once,
        )

    async def embed_each(
        self, texts: Items[str], truncate: bool = False, timeout: float | None = None
    ) -> AsyncGenerator[np.ndarray]:
        """See `Client.embed_each`."""
        bundle = BundleCheck()
        requests = ({"text": batch} async for batch in _batches(several(texts), self._config.request_rows))
        async with aclosing(self.infer_each(requests, EMBED, truncate, timeout)) as answers:
            async for answer in answers:
                for vector in bundle.check(answer)["sentence_embedding"]:
                    yield vector

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def _batches(texts: Items[str], max_rows: int) -> AsyncGenerator[list[str]]:
    builder = BatchBuilder[str](max_rows, len)
    async for text in each_of(texts):
        if full := builder.add(text):
            yield full
    if builder.batch:
        yield builder.batch
