"""The synchronous client."""

import threading
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np

from heed.client.answers import EMBED, Label, Rank, Tag
from heed.client.background import BACKGROUND, BackgroundCall
from heed.client.batches import BundleCheck, batches
from heed.client.calls import ModelCalls
from heed.client.config import ClientBase, ClientConfig
from heed.client.servers import Servers
from heed.client.transports import AioTransport, BlockingTransport
from heed.client.wire import Answer, Inputs, ModelInfo, as_arrays, several

Item = TypeVar("Item")
Result = TypeVar("Result")


class Client(ClientBase):
    """Calls one model. Safe to use from several threads.

    A call on its own is made in the caller's thread. Calls that other threads make meanwhile, the requests of a large
    batch and those of `infer_each` run on an event loop in the background and share streams, as `AsyncClient`'s do.

    Every method takes a `timeout` of its own, in seconds for each request. Raised are

        CallError: the server refused, or did not answer in time.
        TypeError, ValueError: an input cannot be sent.
    """

    def _configure(self, config: ClientConfig) -> None:
        servers = Servers(len(config.connection.addresses))
        self._config = config
        self._concurrent = ModelCalls(config, servers, AioTransport)  # runs on the background loop
        self._blocking = _BlockingCalls(config, servers, self._concurrent)  # runs in the caller's thread
        self._blocking_call = threading.Lock()  # held by the call that is on its caller's thread
        BACKGROUND.add_user(self._concurrent)
        self._finalizer = weakref.finalize(self, BACKGROUND.close_soon, self._concurrent)
        self._finalizer.atexit = False  # the loop closes everything then

    def infer(
        self, inputs: Inputs, outputs: Iterable[str] = (), truncate: bool = False, timeout: float | None = None
    ) -> Answer:
        """Tensors or texts by name to outputs by name; all cheap outputs unless some are named.

        A large batch is split into several requests, some of them in flight at a time. The answer is as of one request,
        and from one bundle: if another bundle takes over meanwhile, CallError says ABORTED.
        """
        arrays, outputs = as_arrays(inputs), list(outputs)
        return self._run(lambda calls: calls.infer(arrays, outputs, truncate, timeout))

    def infer_each(
        self,
        requests: Iterable[Inputs],
        outputs: Iterable[str] = (),
        truncate: bool = False,
        timeout: float | None = None,
    ) -> Iterator[Answer]:
        """An answer for each of many requests, in their order, as they arrive.

        A few requests are in flight at a time, and no more than those are held.
        """
        outputs = list(outputs)
        return _in_order(
            lambda inputs: self._start(inputs, outputs, truncate, timeout), requests, self._config.requests_at_once
        )

    def embed(self, texts: Iterable[str], truncate: bool = False, timeout: float | None = None) -> np.ndarray:
        """One vector for each text: `[B, D]`; `[0, D]` for none."""
        texts = list(several(texts))
        return self._run(lambda calls: calls.embed(texts, truncate, timeout))

    def embed_each(
        self, texts: Iterable[str], truncate: bool = False, timeout: float | None = None
    ) -> Iterator[np.ndarray]:
        """The vector of each of any number of texts, `[D]`, in their order, as they arrive.

        The texts are read a few requests ahead of the answers. All vectors come from one bundle; see `infer`.
        """
        bundle = BundleCheck()
        requests = ({"text": batch} for batch in batches(several(texts), self._config.request_rows, len))
        for answer in self.infer_each(requests, EMBED, truncate, timeout):
            yield from bundle.check(answer)["sentence_embedding"]

    def classify(
        self,
        texts: Iterable[str],
        pairs: Iterable[str] | None = None,
        truncate: bool = False,
        timeout: float | None = None,
    ) -> list[Label]:
        """The most likely label of each text, or pair of texts, with its score; for models that classify sequences.

        A model with a single label gives all texts that one, each with a score: of regression, any number.
        """
        texts, pairs = list(several(texts)), pairs if pairs is None else list(several(pairs))
        return self._run(lambda calls: calls.classify(texts, pairs, truncate, timeout))

    def tag(self, texts: Iterable[str], truncate: bool = False, timeout: float | None = None) -> list[list[Tag]]:
        """The labelled spans of each text, names or places say; for models that classify tokens."""
        texts = list(several(texts))
        return self._run(lambda calls: calls.tag(texts, truncate, timeout))

    def rank(
        self, query: str, texts: Iterable[str], truncate: bool = False, timeout: float | None = None
    ) -> list[Rank]:
        """The texts by their relevance to the query, the best first; for rerankers."""
        texts = list(several(texts))
        return self._run(lambda calls: calls.rank(query, texts, truncate, timeout))

    def info(self, timeout: float | None = None) -> ModelInfo:
        """The model's inputs, outputs and labels."""
        return self._run(lambda calls: calls.info(timeout))

    def close(self) -> None:
        """Calls in flight end with CallError, CANCELLED, as do those that are made later."""
        self._finalizer.detach()
        _run_blocking(self._blocking.close())
        self._concurrent.refuse_calls()
        BACKGROUND.close(self._concurrent)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, call: Callable[[ModelCalls], Coroutine[Any, Any, Result]]) -> Result:
        """In this thread, unless another call is in flight in its own: handing over to the loop takes time, too."""
        if not self._blocking_call.acquire(blocking=False):
            return BACKGROUND.run(lambda: call(self._concurrent))
        try:
            return _run_blocking(call(self._blocking))
        finally:
            self._blocking_call.release()

    def _start(
        self, inputs: Inputs, outputs: list[str], truncate: bool, timeout: float | None
    ) -> "BackgroundCall[Answer] | Future[Answer]":
        """One request. What is wrong with the inputs is raised by the result."""
        try:
            arrays = as_arrays(inputs)
        except Exception as error:
            failed = Future[Answer]()
            failed.set_exception(error)
            return failed
        return BackgroundCall(BACKGROUND, lambda: self._concurrent._infer_request(arrays, outputs, truncate, timeout))


class _BlockingCalls(ModelCalls):
    """Calls whose coroutines never suspend."""

    def __init__(self, config: ClientConfig, servers: Servers, concurrent: ModelCalls) -> None:
        super().__init__(config, servers, BlockingTransport)
        self._concurrent = concurrent

    async def _infer_parts(
        self,
        arrays: dict[str, np.ndarray],
        parts: Sequence[slice],
        outputs: Sequence[str],
        truncate: bool,
        timeout: float | None,
    ) -> Answer:
        return BACKGROUND.run(lambda: self._concurrent._infer_parts(arrays, parts, outputs, truncate, timeout))


def _run_blocking(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """The result of a coroutine that never suspends. It needs no event loop, and may run inside one."""
    try:
        coroutine.send(None)
    except StopIteration as returned:
        result: Result = returned.value
        return result
    coroutine.close()
    raise RuntimeError("a blocking call was suspended")


def _in_order(
    start: Callable[[Item], BackgroundCall[Result] | Future[Result]], items: Iterable[Item], at_once: int
) -> Iterator[Result]:
    """The result of each item's call, in the items' order. `items` is read by the caller's thread, up to `at_once`
    ahead."""
    calls: deque[BackgroundCall[Result] | Future[Result]] = deque()
    try:
        for item in items:
            calls.append(start(item))
            while calls and (len(calls) == at_once or calls[0].done()):
                yield calls[0].result()
                calls.popleft()
        while calls:
            yield calls[0].result()
            calls.popleft()
    finally:  # cancels what is in flight if the caller leaves early
        for call in calls:
            call.cancel()
