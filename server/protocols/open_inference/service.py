"""The Open Inference Protocol: the tensor door."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import grpc

from heed.protos import open_inference_pb2 as pb
from heed.protos.open_inference_pb2_grpc import GRPCInferenceServiceServicer
from heed.server.engine.model import Model
from heed.server.errors import Exhausted
from heed.server.protocols.open_inference.classification import put_classes
from heed.server.protocols.open_inference.headers import HeaderCache
from heed.server.protocols.open_inference.models import ModelCalls
from heed.server.protocols.open_inference.repository import RepositoryCalls
from heed.server.protocols.open_inference.tensors import check_response_size, encode_outputs
from heed.server.protocols.open_inference.unimplemented import UnimplementedCalls
from heed.server.protocols.streams import Streams, Ticket
from heed.server.repository.model_repository import ModelRepository
from heed.server.repository.registry import ModelRegistry
from heed.server.repository.served_model import ServedModel
from heed.server.requests.preprocess import Request
from heed.server.scheduling.scheduler import SAFE, RequestResult
from heed.server.telemetry.request_trace import Call, Observers, RequestTrace
from heed.server.transport.interceptors import ConcurrencyLimit
from heed.server.transport.status import describe, errors_to_status, retry_after_ms

# On a stream it is the caller who says that his time is up. His clock began earlier than ours, by a little.
EARLY = 0.05  # of the time
INLINE_BYTES = 2**20  # of an answer that is put together at once: a thread costs more than that

Context = grpc.aio.ServicerContext[Any, Any]
Classes = dict[str, int]
NO_SLOT = nullcontext()  # for a call: it has one since it came
SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name


def _fill(
    response: pb.ModelInferResponse, model: Model, prepared: Request, answered: RequestResult, classes: Classes
) -> None:
    """The answer, and what produced it."""
    response.model_name, response.model_version = model.manifest.name, str(model.manifest.version)
    arrays = model.assemble(prepared, answered.answers)
    put_classes(model.manifest, arrays, classes)
    encode_outputs(response, arrays)
    response.parameters["digest"].string_param = model.digest
    response.parameters["provider"].string_param = model.session.provider
    response.parameters["precision"].string_param = model.precision
    response.parameters["queue_ns"].int64_param = int(answered.queue_seconds * 1e9)
    response.parameters["compute_ns"].int64_param = int(answered.compute_seconds * 1e9)


def _error_answer(request: pb.ModelInferRequest, error: Exception) -> pb.ModelStreamInferResponse:
    code, message = describe(error)
    answer = pb.ModelStreamInferResponse(error_message=message)
    answer.infer_response.id = request.id
    answer.infer_response.parameters["status"].string_param = code.name
    if (milliseconds := retry_after_ms(error)) is not None:
        answer.infer_response.parameters["retry_after_ms"].int64_param = milliseconds
    return answer


class InferenceService(ModelCalls, RepositoryCalls, UnimplementedCalls, GRPCInferenceServiceServicer):
    """Every call of the service; those that compute are here."""

    def __init__(
        self,
        registry: ModelRegistry,
        repository: ModelRepository,
        max_message: int,
        observers: Observers,
        slots: ConcurrencyLimit,
    ) -> None:
        """
        Args:
            max_message: the largest that can be sent, in bytes.
            observers: are told of every request.
            slots: count requests on streams.
        """
        ModelCalls.__init__(self, registry)
        RepositoryCalls.__init__(self, repository)
        self._observers = observers
        self._slots = slots
        self._max_message = max_message
        self._streams = Streams()
        self._headers: WeakKeyDictionary[ServedModel, HeaderCache] = WeakKeyDictionary()

    @errors_to_status
    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        response = pb.ModelInferResponse()
        await self._infer(Call(SERVICE, "ModelInfer", context), request, response, context.time_remaining())
        return response

    async def ModelStreamInfer(self, requests: AsyncIterator[pb.ModelInferRequest], context: Context) -> None:
        """An error is an answer, too: it ends nothing."""
        call = Call(SERVICE, "ModelStreamInfer", context)
        size = pb.ModelInferRequest.ByteSize
        await self._streams.serve(requests, size, partial(self.answer_stream_request, call), context.write)

    def end_streams(self) -> None:
        """Streams read nothing more and end when what they have read is answered."""
        self._streams.end()

    async def answer_stream_request(
        self, call: Call, request: pb.ModelInferRequest, place: Ticket, waited: float = 0.0
    ) -> pb.ModelStreamInferResponse:
        """The answer to one request on a stream, which has `waited` for so many seconds before it was read. What is
        wrong with it is an answer, too."""
        answer = pb.ModelStreamInferResponse()
        try:
            await self._infer(call, request, answer.infer_response, None, place, waited)
        except Exception as error:
            answer = _error_answer(request, error)
        if "triton_enable_empty_final_response" in request.parameters:  # its caller waits to be told: all are final
            answer.infer_response.parameters["triton_final_response"].bool_param = True
        return answer

    def refuse_late_request(
        self, call: Call, request: pb.ModelInferRequest, waited: float
    ) -> pb.ModelStreamInferResponse | None:
        """The refusal of a request that has `waited` for most of its time before it was read; None if it has not.

        When more comes than can be read, all of it waits. If all were then tried in turn, each would be too late; those
        that are refused here cost little, and leave time for others.
        """
        seconds = request.parameters["timeout"].int64_param / 1e6 if "timeout" in request.parameters else 0.0
        if not seconds or waited <= SAFE * seconds:
            return None
        error = Exhausted(
            f"too much is on its way: the request had waited {waited:.2f} s of {seconds:.2f} s when it was read",
            math.inf,
            "no_time",
        )
        with suppress(Exhausted), self._observers.record(call, request.id):
            raise error
        return _error_answer(request, error)

    async def _infer(
        self,
        call: Call,
        request: pb.ModelInferRequest,
        response: pb.ModelInferResponse,
        remaining: float | None,
        place: Ticket | None = None,
        waited: float = 0.0,
    ) -> None:
        """Fills the response.

        Args:
            remaining: seconds until the call's own deadline.
            place: of a request on a stream.
            waited: seconds of its time that are over.
        """
        with (
            self._observers.record(call, request.id) as record,
            self._slots if place else NO_SLOT,
            self._registry.use(request.model_name, request.model_version) as serving,
        ):
            record.of(serving.model, serving.statistics.ended)
            await self._infer_with(serving, record, request, response, remaining, place, waited)

    async def _infer_with(
        self,
        serving: ServedModel,
        record: RequestTrace,
        request: pb.ModelInferRequest,
        response: pb.ModelInferResponse,
        remaining: float | None,
        place: Ticket | None,
        waited: float,
    ) -> None:
        response.id = request.id
        header, raws = self._headers_of(serving).take(request)
        options, form = header.options, header.form
        seconds = options.seconds if remaining is None else min(options.seconds, remaining)
        arrived = time.monotonic() - waited
        deadline, record.due = arrived + seconds, arrived + (1 - EARLY) * seconds
        if form.kind == "answers":  # the others have a queue of their own
            serving.scheduler.check_time(deadline, options.priority)
        prepared = await serving.read(form, header.read(request, raws), options.truncate)
        room = self._max_message - len(request.id.encode())  # the id is sent back
        size = check_response_size(serving.model.manifest, prepared, room)
        if place:
            with self._slots.given_back:
                await place.admit(size)
        record.prepared(prepared)
        answered = await serving.answer(prepared, deadline, options.priority)
        record.answered(answered)
        if size <= INLINE_BYTES:
            _fill(response, serving.model, prepared, answered, header.classes)
        else:  # putting them together here would make all others wait
            await asyncio.to_thread(_fill, response, serving.model, prepared, answered, header.classes)

    def _headers_of(self, serving: ServedModel) -> HeaderCache:
        headers = self._headers.get(serving)
        if headers is None:
            headers = self._headers[serving] = HeaderCache(serving.model.manifest, serving.limits.max_batch)
        return headers
