"""`heed.v1`: many requests on one stream, several to a message.

One stream carries the requests of all callers of a client. A short request costs less than the message around it, so
all answers that are ready when a message has been written go into the next one.
"""

import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, NamedTuple

import grpc

from heed.protos import heed_pb2 as pb
from heed.protos.heed_pb2_grpc import InferenceServicer
from heed.protos.open_inference_pb2 import ModelInferRequest, ModelStreamInferResponse
from heed.server.protocols.streams import Stream, Streams, Ticket
from heed.server.telemetry.request_trace import Call

MESSAGE_BYTES = 2**18  # of answers that are written together; a larger one is written alone
DRIFT = 2e-4  # how far the clocks of two machines may drift apart, as a share of the time
SERVICE = pb.DESCRIPTOR.services_by_name["Inference"].full_name

Context = grpc.aio.ServicerContext[Any, Any]
# An error is an answer, too. The last argument is how many seconds the request has waited before it was read.
Answer = Callable[[Call, ModelInferRequest, Ticket, float], Coroutine[Any, Any, ModelStreamInferResponse]]
Refuse = Callable[[Call, ModelInferRequest, float], ModelStreamInferResponse | None]


class OneWayDelay:
    """How long the messages of a stream waited in buffers before they were read.

    The difference between the clocks of the two machines is unknown. So the fastest message is taken to have waited for
    nothing, and the others for what they took longer, as congestion control measures one-way delay (RFC 6817).
    """

    def __init__(self) -> None:
        self._least = math.inf  # of the differences between both clocks
        self._last = 0.0  # when the last message was read

    def seconds(self, sent_us: int) -> float:
        """Of a message, or of the rest of it, until now. 0 if the client does not say when it sent it."""
        if not sent_us:
            return 0.0
        now = time.monotonic()
        difference = now - sent_us / 1e6
        self._least = min(self._least + DRIFT * (now - self._last), difference)
        self._last = now
        return difference - self._least


class SentRequest(NamedTuple):
    request: ModelInferRequest
    sent_us: int  # on the client's clock; 0 if unknown


class ClientStream:
    """The requests of one client, which come several to a message."""

    def __init__(
        self,
        answer: Callable[[ModelInferRequest, Ticket, float], Coroutine[Any, Any, ModelStreamInferResponse]],
        refuse: Callable[[ModelInferRequest, float], ModelStreamInferResponse | None],
        write: Callable[[pb.Answers], Awaitable[None]],
    ) -> None:
        """See `HeedV1Service`."""
        self._answer, self._refuse, self._write = answer, refuse, write
        self._delay = OneWayDelay()
        self.stream = Stream[SentRequest, ModelStreamInferResponse](
            self._answer_or_refuse,
            self._write_together,
            size_of=lambda sent: sent.request.ByteSize(),
            key_of=lambda sent: sent.request.id,
            message_bytes=MESSAGE_BYTES,
        )

    async def requests(self, messages: AsyncIterator[pb.Requests]) -> AsyncIterator[SentRequest]:
        """The requests of the messages; those that a message cancels are cancelled."""
        async for message in messages:
            for id in message.cancelled:
                self.stream.cancel(id)
            for request in message.requests:
                yield SentRequest(request, message.sent_us)

    async def _answer_or_refuse(self, sent: SentRequest, ticket: Ticket) -> ModelStreamInferResponse:
        waited = self._delay.seconds(sent.sent_us)  # for room in the stream, too
        if waited and (refusal := self._refuse(sent.request, waited)):
            return refusal
        return await self._answer(sent.request, ticket, waited)

    async def _write_together(self, answers: list[ModelStreamInferResponse]) -> None:
        await self._write(pb.Answers(answers=answers))


class HeedV1Service(InferenceServicer):
    """The service."""

    def __init__(self, answer: Answer, refuse: Refuse, streams: Streams) -> None:
        """`refuse` is called before anything is done for a request that has waited; it returns the refusal if the
        answer would come too late."""
        self._answer, self._refuse, self._streams = answer, refuse, streams

    async def InferMany(self, messages: AsyncIterator[pb.Requests], context: Context) -> None:
        call = Call(SERVICE, "InferMany", context)
        client = ClientStream(partial(self._answer, call), partial(self._refuse, call), context.write)
        await self._streams.serve(client.stream, client.requests(messages))
