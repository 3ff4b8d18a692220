"""From a text to the answer about it: what the services of `tei.v1` share."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import grpc
import numpy as np
from google.protobuf.message import Message as ProtobufMessage

from heed.bundle import Manifest
from heed.bundle.sequence_packing import Arrays
from heed.protos import tei_pb2 as pb
from heed.server.errors import InvalidArgument
from heed.server.protocols.open_inference.tensors import check_response_size
from heed.server.protocols.streams import Stream, Streams, Ticket, WeightedSemaphore
from heed.server.repository.registry import ModelRegistry, ServedModel
from heed.server.requests.limits import RequestLimits
from heed.server.requests.preprocess import Request
from heed.server.requests.tokenizer import Side
from heed.server.scheduling.scheduler import RequestResult
from heed.server.settings import Settings
from heed.server.telemetry.request_trace import Call, Observers, RequestTrace
from heed.server.transport.interceptors import ConcurrencyLimit
from heed.server.transport.status import ItemError

Context = grpc.aio.ServicerContext[Any, Any]

Message = TypeVar("Message", bound=ProtobufMessage)
Answer = TypeVar("Answer")

SIDES: dict[int, Side] = {pb.TRUNCATION_DIRECTION_RIGHT: "right", pb.TRUNCATION_DIRECTION_LEFT: "left"}


class Truncating(Protocol):
    """A request that says how to cut its texts."""

    @property
    def truncate(self) -> bool: ...

    @property
    def truncation_direction(self) -> Any: ...


def side_of(request: Truncating) -> Side | None:
    """The end at which to cut; None: not at all.

    Raises:
        InvalidArgument: there is no such direction.
    """
    if request.truncation_direction not in SIDES:
        raise InvalidArgument(f"truncation_direction is {request.truncation_direction}, expected 0 (right) or 1 (left)")
    return SIDES[request.truncation_direction] if request.truncate else None


def prompted(manifest: Manifest, request: pb.EmbedRequest | pb.EmbedAllRequest | pb.EncodeRequest) -> str:
    """The text behind the prompt that the request names, or the model's default one.

    Raises:
        InvalidArgument: there is no text, or no such prompt.
    """
    if not request.inputs:
        raise InvalidArgument("inputs is empty, expected a text")
    name = request.prompt_name if request.HasField("prompt_name") else manifest.default_prompt_name
    if name is None:
        return request.inputs
    if name not in manifest.prompts:
        known = ", ".join(manifest.prompts) or "none"
        raise InvalidArgument(f"prompt_name {name!r} is unknown; the prompts of {manifest.name} are: {known}")
    return manifest.prompts[name] + request.inputs


class SharedSemaphore:
    """A weighted semaphore for many tasks, in the order of their arrival."""

    def __init__(self, size: int) -> None:
        self._semaphore = WeightedSemaphore(size)
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def held(self, weight: int) -> AsyncIterator[None]:
        async with self._turn:
            weight = await self._semaphore.acquire(weight)
        try:
            yield
        finally:
            self._semaphore.release(weight)


@dataclass(frozen=True)
class TextRequest:
    """One request on its way to the model."""

    served: ServedModel
    trace: RequestTrace
    deadline: float  # on time.monotonic's clock
    max_message: int
    concurrency: ConcurrencyLimit
    ticket: Ticket | None = None  # of a request on a stream
    stream_tokens: SharedSemaphore | None = None  # the same

    @property
    def manifest(self) -> Manifest:
        return self.served.model.manifest

    @property
    def limits(self) -> RequestLimits:
        return self.served.preprocessor.limits

    async def compute(
        self, texts: list[str], pairs: list[str] | None, output: str, truncate: Side | None, characters: int
    ) -> tuple[np.ndarray, pb.Metadata]:
        """One output for these texts, `[B, ...]`, and what it took.

        Raises:
            HeedError: see `Scheduler.admit`, `Preprocessor.prepare` and `Admission.submit`.
        """
        served, trace = self.served, self.trace
        admission = served.scheduler.admit(self.deadline)
        inputs: Arrays = {"text": np.array(texts, object)}
        if pairs is not None:
            inputs["text_pair"] = np.array(pairs, object)
        spec = served.preprocessor.validate(inputs, [output])
        request = await served.preprocessor.prepare_async(spec, inputs, truncate)
        trace.rows_prepared(len(request.rows), request.tokens)
        size = check_response_size(served.model.manifest, request, self.max_message)
        if self.ticket and self.stream_tokens:
            with self.concurrency.paused:
                await self.ticket.admit(size)
            async with self.stream_tokens.held(request.tokens):
                result = await admission.submit(request.rows, spec.computed)
        else:
            result = await admission.submit(request.rows, spec.computed)
        trace.rows_computed(result.queue_seconds, result.compute_seconds)
        return request.assemble(result.answers)[output], self._metadata(request, result, characters)

    def _metadata(self, request: Request, result: RequestResult, characters: int) -> pb.Metadata:
        trace = self.trace
        return pb.Metadata(
            compute_chars=characters,
            compute_tokens=request.tokens,
            total_time_ns=nanoseconds(time.monotonic() - trace.arrived),
            tokenization_time_ns=nanoseconds(trace.prepared - trace.arrived),
            queue_time_ns=nanoseconds(trace.computed - trace.prepared - result.compute_seconds),
            inference_time_ns=nanoseconds(result.compute_seconds),
        )


def nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


Handler = Callable[[TextRequest, Message], Awaitable[Answer]]


class TextEndpoint:
    """The model of `tei.v1` (the API knows one alone), and the way to it."""

    def __init__(
        self,
        registry: ModelRegistry,
        settings: Settings,
        observers: Observers,
        concurrency: ConcurrencyLimit,
        streams: Streams,
    ) -> None:
        """
        Args:
            observers: are called when a request ends.
            concurrency: counts requests on streams.
        """
        self.limits = RequestLimits.of(settings)
        self._registry = registry
        self._observers = observers
        self._concurrency = concurrency
        self._streams = streams
        self._max_message = settings.max_message_mib * 2**20
        # A request that finds no room in the queue is refused, and that would end its stream. So requests on streams
        # wait here for room, and leave the other half of the queue to unary calls.
        self._stream_tokens = SharedSemaphore(max(1, settings.max_queue_tokens // 2))

    async def answer(self, call: Call, handler: Handler[Message, Answer], request: Message) -> Answer:
        """The answer to a unary call."""
        seconds_left = call.context.time_remaining()
        with self._observers.trace(call) as trace, self._registry.use("") as served:
            manifest = served.model.manifest
            trace.model_found(manifest.name, str(manifest.version), served.metrics.request_ended)
            deadline = math.inf if seconds_left is None else trace.arrived + seconds_left
            return await handler(TextRequest(served, trace, deadline, self._max_message, self._concurrency), request)

    async def answer_stream(
        self,
        call: Call,
        handler: Handler[Message, Answer],
        requests: AsyncIterator[Message],
        write: Callable[[Answer], Awaitable[None]],
    ) -> None:
        """Answers the requests of a stream: computed together, written in their order.

        Raises:
            ItemError: one cannot be answered; those before it were written.
            Unavailable: the server shuts down, and did not read the stream to its end.
        """

        async def numbered() -> AsyncIterator[tuple[int, Message]]:
            index = 0
            async for request in requests:
                yield index, request
                index += 1

        async def answer(item: tuple[int, Message], ticket: Ticket) -> Answer:
            index, request = item
            try:
                with self._concurrency:
                    return await self._answer_item(call, handler, request, ticket)
            except Exception as error:
                raise ItemError(index, error) from error

        async def write_all(answers: list[Answer]) -> None:
            for each in answers:
                await write(each)

        await self._streams.serve(Stream(answer, write_all, lambda item: item[1].ByteSize()), numbered())

    async def _answer_item(
        self, call: Call, handler: Handler[Message, Answer], request: Message, ticket: Ticket
    ) -> Answer:
        with self._observers.trace(call) as trace, self._registry.use("") as served:
            manifest = served.model.manifest
            trace.model_found(manifest.name, str(manifest.version), served.metrics.request_ended)
            text_request = TextRequest(
                served, trace, math.inf, self._max_message, self._concurrency, ticket, self._stream_tokens
            )
            return await handler(text_request, request)
