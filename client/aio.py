from collections.abc import Iterable
from types import TracebackType
from typing import Self

import grpc
import numpy as np

from client.streams import Streams
from client.wire import (
    DEFAULT_TIMEOUT,
    OPTIONS,
    Answer,
    Inputs,
    Label,
    ModelInfo,
    call_error,
    infer_request,
    read_answer,
    read_labels,
    read_model_info,
    texts_and_pairs,
)
from protos import open_inference_pb2 as pb
from protos.open_inference_pb2_grpc import GRPCInferenceServiceStub


class AsyncClient:
    """`Client` for asyncio: the same methods, awaited. A cancelled call is cancelled on the server too."""

    def __init__(self, address: str, model: str, version: str = "", timeout: float = DEFAULT_TIMEOUT) -> None:
        """See `Client`."""
        self._model, self._version, self._timeout = model, version, timeout
        self._channel = grpc.aio.insecure_channel(address, options=OPTIONS)
        self._stub = GRPCInferenceServiceStub(self._channel)
        self._streams = Streams(self._stub)

    async def infer(self, inputs: Inputs, outputs: Iterable[str] = (), truncate: bool = False) -> Answer:
        """See `Client.infer`."""
        request = infer_request(self._model, self._version, inputs, outputs, truncate)
        return read_answer(await self._streams.ask(request, self._timeout))

    async def embed(self, texts: Iterable[str], truncate: bool = False) -> np.ndarray:
        """See `Client.embed`."""
        return (await self.infer({"text": list(texts)}, ["sentence_embedding"], truncate))["sentence_embedding"]

    async def classify(
        self, texts: Iterable[str], pairs: Iterable[str] | None = None, truncate: bool = False
    ) -> list[Label]:
        """See `Client.classify`."""
        return read_labels(await self.infer(texts_and_pairs(texts, pairs), ["logits", "labels"], truncate))

    async def info(self) -> ModelInfo:
        """See `Client.info`."""
        request = pb.ModelMetadataRequest(name=self._model, version=self._version)
        try:
            return read_model_info(await self._stub.ModelMetadata(request, timeout=self._timeout))
        except grpc.RpcError as error:
            raise call_error(error) from None

    async def close(self) -> None:
        self._streams.close()
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
