"""From a text to the answer about it: what the services of the text door share."""

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
from heed.protos import tei_pb2 as pb
from heed.server.errors import InvalidArgument, Unavailable
from heed.server.protocols.open_inference.tensors import check_response_size
from heed.server.protocols.streams import Streams, Ticket, WeightedSemaphore
from heed.server.repository.registry import ModelRegistry
from heed.server.repository.served_model import ServedModel
from heed.server.requests.limits import Limits
from heed.server.requests.tokenizer import Side
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
    """WeightedSemaphore for many, in the order of their arrival."""

    def __init__(self, size: int) -> None:
        self._room = WeightedSemaphore(size)
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def taken(self, size: int) -> AsyncIterator[None]:
        async with self._turn:
            size = await self._room.enter(size)
        try:
            yield
        finally:
            self._room.leave(size)


@dataclass(frozen=True)
class TextRequest:
    """One request's way to the model."""

    serving: ServedModel
    record: RequestTrace
    deadline: float  # on time.monotonic's clock, as all times
    room: SharedSemaphore
    max_message: int
    slots: ConcurrencyLimit
    place: Ticket | None  # of a request on a stream

    @property
    def manifest(self) -> Manifest:
        return self.serving.model.manifest

    async def about(
        self, texts: list[str], pairs: list[str] | None, output: str, truncate: Side | None, characters: int
    ) -> tuple[np.ndarray, pb.Metadata]:
        """One output about these texts, `[B, ...]`, and what it took.

        Raises:
            HeedError: see `ServedModel.prepare` and `ServedModel.answer`.
        """
        serving = self.serving
        serving.scheduler.check_time(self.deadline)
        began = time.monotonic()
        inputs = {"text": np.array(texts, object)}
        if pairs is not None:
            inputs["text_pair"] = np.array(pairs, object)
        request = await serving.prepare(inputs, [output], truncate)
        tokenized = time.monotonic()
        self.record.prepared(request)
        size = check_response_size(self.manifest, request, self.max_message)
        if self.place:
            with self.slots.given_back:
                await self.place.admit(size)
        async with self.room.taken(request.tokens):
            queued = time.monotonic() - tokenized
            answered = await serving.answer(request, self.deadline)
        self.record.answered(answered)
        values = serving.model.assemble(request, answered.answers)[output]
        return values, pb.Metadata(
            compute_chars=characters,
            compute_tokens=request.tokens,
            total_time_ns=nanoseconds(time.monotonic() - self.record.arrived),
            tokenization_time_ns=nanoseconds(tokenized - began),
            queue_time_ns=nanoseconds(queued + answered.queue_seconds),
            inference_time_ns=nanoseconds(answered.compute_seconds),
        )


def nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


Handler = Callable[[TextRequest, Message], Awaitable[Answer]]


class TextEndpoint:
    """The one model of this door, and how its services ask it."""

    def __init__(
        self, registry: ModelRegistry, settings: Settings, observers: Observers, slots: ConcurrencyLimit
    ) -> None:
        self.streams = Streams()
        self.limits = Limits.of(settings)
        self._registry = registry
        self._observers = observers
        self._slots = slots
        self._max_message = settings.max_message_mib * 2**20
        self._unlimited = SharedSemaphore(2**62)
        # The queue refuses what finds no room, and a stream would end with that. So streams wait here, and leave the
        # other half of the queue to calls.
        self._of_streams = SharedSemaphore(max(1, settings.max_queue_tokens // 2))

    async def answer(self, call: Call, handler: Handler[Message, Answer], request: Message) -> Answer:
        """The answer to a call of its own."""
        remaining = call.context.time_remaining()
        deadline = math.inf if remaining is None else time.monotonic() + remaining
        return await self._answer(call, handler, request, deadline, self._unlimited)

    async def answer_all(
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
        whole = False

        async def numbered() -> AsyncIterator[tuple[int, Message]]:
            nonlocal whole
            index = 0
            async for request in requests:
                yield index, request
                index += 1
            whole = True

        async def answer(item: tuple[int, Message], place: Ticket) -> Answer:
            index, request = item
            try:
                with self._slots:
                    return await self._answer(call, handler, request, math.inf, self._of_streams, place)
            except Exception as error:
                raise ItemError(index, error) from error

        await self.streams.serve(numbered(), lambda item: item[1].ByteSize(), answer, write)
        if not whole:
            raise Unavailable("the server is shutting down; what it had read is answered, send the rest to another one")

    async def _answer(
        self,
        call: Call,
        handler: Handler[Message, Answer],
        request: Message,
        deadline: float,
        room: SharedSemaphore,
        place: Ticket | None = None,
    ) -> Answer:
        with self._observers.record(call) as record, self._registry.use("") as serving:
            record.of(serving.model, serving.statistics.ended)
            return await handler(
                TextRequest(serving, record, deadline, room, self._max_message, self._slots, place), request
            )
