import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import numpy as np

from heed.client.answers import CLASSIFY, EMBED, RANK, TAG, Label, Rank, Tag, read_labels, read_ranks, read_tags
from heed.client.batches import OneBundle, batches, cut, joined, of_rows
from heed.client.config import Common
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


class Door:
    """A channel to one server."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.stub: Any = GRPCInferenceServiceStub(channel)


class Client(Common[Door]):
    """Calls one model. Safe to use from several threads.

    Every method takes a `timeout` of its own, in seconds for each request. Raised are

        CallError: the server refused, or did not answer in time.
        TypeError, ValueError: an input cannot be sent.
    """

    def infer(
        self, inputs: Inputs, outputs: Iterable[str] = (), truncate: bool = False, timeout: float | None = None
    ) -> Answer:
        """Tensors or texts by name to outputs by name; all cheap outputs unless some are named.

        A batch of many rows goes in several requests at a time. The answer is as of one, and from one bundle: where
        another takes over meanwhile, CallError says ABORTED.
        """
        arrays, outputs = as_arrays(inputs), list(outputs)
        parts = cut(arrays, self._request_rows)
        if len(parts) == 1:
            return self._infer(arrays, outputs, truncate, timeout)

        def ask(rows: slice) -> Answer:
            try:
                part = {name: array[rows] for name, array in arrays.items()}
                return self._infer(part, outputs, truncate, timeout)
            except CallError as error:
                raise of_rows(error, rows) from None

        return joined(list(_in_order(ask, parts, self._requests_at_once)))

    def infer_each(
        self,
        requests: Iterable[Inputs],
        outputs: Iterable[str] = (),
        truncate: bool = False,
        timeout: float | None = None,
    ) -> Iterator[Answer]:
        """An answer for each of many requests, in their order, as they come.

        A few requests are under way at a time; no more are held than those.
        """
        outputs = list(outputs)
        return _in_order(
            lambda inputs: self._infer(inputs, outputs, truncate, timeout), requests, self._requests_at_once
        )

    def embed(self, texts: Iterable[str], truncate: bool = False, timeout: float | None = None) -> np.ndarray:
        """One vector for each text: `[B, D]`."""
        return self.infer(texts_and_pairs(texts, None), EMBED, truncate, timeout)["sentence_embedding"]

    def embed_each(
        self, texts: Iterable[str], truncate: bool = False, timeout: float | None = None
    ) -> Iterator[np.ndarray]:
        """The vector of each of any number of texts, `[D]`, in their order, as they come.

        The texts are taken a few requests ahead of what was answered. All vectors come from one bundle; see `infer`.
        """
        bundle = OneBundle()
        requests = ({"text": batch} for batch in batches(several(texts), self._request_rows, len))
        for answer in self.infer_each(requests, EMBED, truncate, timeout):
            yield from bundle.check(answer)["sentence_embedding"]

    def classify(
        self,
        texts: Iterable[str],
        pairs: Iterable[str] | None = None,
        truncate: bool = False,
        timeout: float | None = None,
    ) -> list[Label]:
        """The label that each text, or pair of texts, most likely has; for models that label whole texts."""
        return read_labels(self.infer(texts_and_pairs(texts, pairs), CLASSIFY, truncate, timeout))

    def tag(self, texts: Iterable[str], truncate: bool = False, timeout: float | None = None) -> list[list[Tag]]:
        """The pieces of each text that are something: names, places; for models that label tokens."""
        texts = list(several(texts))
        return read_tags(self.infer({"text": texts}, TAG, truncate, timeout), texts)

    def rank(
        self, query: str, texts: Iterable[str], truncate: bool = False, timeout: float | None = None
    ) -> list[Rank]:
        """The texts by how well they answer the query, the best first; for rerankers."""
        texts = list(several(texts))
        inputs = texts_and_pairs([query] * len(texts), texts)
        return read_ranks(self.infer(inputs, RANK, truncate, timeout), texts)

    def info(self, timeout: float | None = None) -> ModelInfo:
        """What the model takes and gives."""
        return read_model_info(self._call("ModelMetadata", self._info_request(), timeout))

    def close(self) -> None:
        for server in self._servers.each:
            server.door.channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, address: str) -> Door:
        tls, options = self._connection.tls, self._connection.options(address)
        if tls:
            return Door(grpc.secure_channel(address, tls.credentials(), options))
        return Door(grpc.insecure_channel(address, options))

    def _infer(self, inputs: Inputs, outputs: Iterable[str], truncate: bool, timeout: float | None) -> Answer:
        return read_answer(self._call("ModelInfer", self._infer_request(inputs, outputs, truncate), timeout))

    def _call(self, method: str, request: Any, timeout: float | None) -> Any:
        turn = self._turn(timeout)
        while True:
            call = getattr(turn.door.stub, method)
            try:
                return call(request, timeout=turn.left, metadata=self._connection.metadata())
            except grpc.RpcError as error:
                wait = turn.wait_after(call_error(error))
            time.sleep(wait)


def _in_order(function: Callable[[Item], Result], items: Iterable[Item], at_once: int) -> Iterator[Result]:
    """The result for each item, in their order. `items` is read up to `at_once` ahead."""
    threads = ThreadPoolExecutor(at_once, "heed-client")
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(threads.submit(function, item))
            while waiting and (len(waiting) == at_once or waiting[0].done()):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # those who leave early do not wait for the rest
        threads.shutdown(wait=False, cancel_futures=True)
