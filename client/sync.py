from collections.abc import Iterable
from types import TracebackType
from typing import Self

import grpc
import numpy as np

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


class Client:
    """Calls one model. Safe to use from several threads."""

    def __init__(self, address: str, model: str, version: str = "", timeout: float = DEFAULT_TIMEOUT) -> None:
        """
        Args:
            address: `host:port`; a name with several addresses is called in turn.
            version: empty for the newest that is ready.
            timeout: seconds for each call, retries included.
        """
        self._model, self._version, self._timeout = model, version, timeout
        self._channel = grpc.insecure_channel(address, options=OPTIONS)
        self._stub = GRPCInferenceServiceStub(self._channel)

    def infer(self, inputs: Inputs, outputs: Iterable[str] = (), truncate: bool = False) -> Answer:
        """Tensors or texts by name to outputs by name; all cheap outputs unless some are named.

        Raises:
            CallError: the server refused, or did not answer in time.
            TypeError, ValueError: an input cannot be sent.
        """
        request = infer_request(self._model, self._version, inputs, outputs, truncate)
        try:
            return read_answer(self._stub.ModelInfer(request, timeout=self._timeout))
        except grpc.RpcError as error:
            raise call_error(error) from None

    def embed(self, texts: Iterable[str], truncate: bool = False) -> np.ndarray:
        """One vector for each text: `[B, D]`. Raises CallError."""
        return self.infer({"text": list(texts)}, ["sentence_embedding"], truncate)["sentence_embedding"]

    def classify(self, texts: Iterable[str], pairs: Iterable[str] | None = None, truncate: bool = False) -> list[Label]:
        """The label that each text, or pair of texts, most likely has; for models that label whole texts.

        Raises CallError.
        """
        return read_labels(self.infer(texts_and_pairs(texts, pairs), ["logits", "labels"], truncate))

    def info(self) -> ModelInfo:
        """What the model takes and gives. Raises CallError."""
        request = pb.ModelMetadataRequest(name=self._model, version=self._version)
        try:
            return read_model_info(self._stub.ModelMetadata(request, timeout=self._timeout))
        except grpc.RpcError as error:
            raise call_error(error) from None

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
