"""The Open Inference Protocol: `inference.GRPCInferenceService`, whose requests are tensors or texts."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import grpc

from heed.protos import open_inference_pb2 as pb
from heed.protos.open_inference_pb2_grpc import GRPCInferenceServiceServicer
from heed.server.engine.model import Model
from heed.server.errors import Exhausted, reason_of
from heed.server.protocols.open_inference.classification import put_classes
from heed.server.protocols.open_inference.headers import HeaderCache
from heed.server.protocols.open_inference.metadata_calls import MetadataCalls
from heed.server.protocols.open_inference.repository_calls import RepositoryCalls
from heed.server.protocols.open_inference.tensors import check_response_size, encode_outputs
from heed.server.protocols.open_inference.unimplemented import UnimplementedCalls
from heed.server.protocols.streams import Stream, Streams, Ticket
from heed.server.repository.model_repository import ModelRepository
from heed.server.repository.registry import ModelRegistry, ServedModel
from heed.server.requests.preprocess import Request
from heed.server.scheduling.scheduler import ADMITTED_SHARE, RequestResult
from heed.server.settings import Settings
from heed.server.telemetry.request_trace import Call, Observers, RequestTrace
from heed.server.transport.interceptors import ConcurrencyLimit
from heed.server.transport.status import describe, retry_after_ms

# On a stream the caller decides when the time is up, and that clock began earlier than ours, by a little.
EARLY = 0.05  # of the time
INLINE_BYTES = 2**20  # of an answer that is assembled on the event loop: a thread costs more than that

Context = grpc.aio.ServicerContext[Any, Any]
Classes = dict[str, int]
UNCOUNTED = nullcontext()  # for a unary call: it counts since it came
SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name


class Arrival(NamedTuple):
    """How a request came."""

    call: Call
    seconds_left: float | None  # until the call's own deadline, if it has one
    ticket: Ticket | None = None  # of a request on a stream
    waited: float = 0.0  # seconds on its way, before it was read


def _fill(
    response: pb.ModelInferResponse, model: Model, request: Request, result: RequestResult, classes: Classes
) -> None:
    """The answer, and what produced it."""
    response.model_name, response.model_version = model.manifest.name, str(model.manifest.version)
    arrays = request.assemble(result.answers)
    if classes:
        put_classes(model.manifest, arrays, classes)
    encode_outputs(response, arrays)
    parameters = response.parameters
    parameters["digest"].string_param = model.digest
    parameters["provider"].string_param = model.session.provider
    parameters["precision"].string_param = model.precision
    parameters["queue_ns"].int64_param = int(result.queue_seconds * 1e9)
    parameters["compute_ns"].int64_param = int(result.compute_seconds * 1e9)


def _error_answer(request: pb.ModelInferRequest, error: Exception) -> pb.ModelStreamInferResponse:
    code, message = describe(error)
    answer = pb.ModelStreamInferResponse(error_message=message)
    answer.infer_response.id = request.id
    answer.infer_response.parameters["status"].string_param = code.name
    answer.infer_response.parameters["reason"].string_param = reason_of(error)
    if (milliseconds := retry_after_ms(error)) is not None:
        answer.infer_response.parameters["retry_after_ms"].int64_param = milliseconds
    return answer


class InferenceService(MetadataCalls, RepositoryCalls, UnimplementedCalls, GRPCInferenceServiceServicer):
    """Every call of the service; those that compute are here."""

    def __init__(
        self,
        registry: ModelRegistry,
        repository: ModelRepository,
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
        MetadataCalls.__init__(self, registry)
        RepositoryCalls.__init__(self, repository)
        self._max_message = settings.max_message_mib * 2**20
        self._observers = observers
        self._concurrency = concurrency
        self._streams = streams
        self._headers: WeakKeyDictionary[ServedModel, HeaderCache] = WeakKeyDictionary()

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        response = pb.ModelInferResponse()
        arrival = Arrival(Call(SERVICE, "ModelInfer", context), context.time_remaining())
        await self._infer(arrival, request, response)
        return response

    async def ModelStreamInfer(self, requests: AsyncIterator[pb.ModelInferRequest], context: Context) -> None:
        """An error is an answer, too: it ends nothing."""
        call = Call(SERVICE, "ModelStreamInfer", context)

        async def write(answers: list[pb.ModelStreamInferResponse]) -> None:
            for answer in answers:
                await context.write(answer)

        stream = Stream(partial(self.answer_stream_request, call), write, pb.ModelInferRequest.ByteSize)
        await self._streams.serve(stream, requests)

    async def answer_stream_request(
        self, call: Call, request: pb.ModelInferRequest, ticket: Ticket, waited: float = 0.0
    ) -> pb.ModelStreamInferResponse:
        """The answer to one request on a stream, which has `waited` for so many seconds before it was read. An error is
        an answer, too."""
        answer = pb.ModelStreamInferResponse()
        try:
            await self._infer(Arrival(call, None, ticket, waited), request, answer.infer_response)
        except Exception as error:
            answer = _error_answer(request, error)
        if "triton_enable_empty_final_response" in request.parameters:  # the caller waits for it: every answer is final
            answer.infer_response.parameters["triton_final_response"].bool_param = True
        return answer

    def refuse_late_request(
        self, call: Call, request: pb.ModelInferRequest, waited: float
    ) -> pb.ModelStreamInferResponse | None:
        """The refusal of a request that has `waited` for most of its time before it was read; None if it has not.

        When more arrives than can be read, all of it waits. If every request were then tried in turn, each would be too
        late; a refusal here costs little, and leaves time for others.
        """
        seconds = request.parameters["timeout"].int64_param / 1e6 if "timeout" in request.parameters else 0.0
        if not seconds or waited <= ADMITTED_SHARE * seconds:
            return None
        error = Exhausted(
            f"too much is on its way: the request had waited {waited:.2f} s of {seconds:.2f} s when it was read",
            math.inf,
            "no_time",
        )
        with suppress(Exhausted), self._observers.trace(call, request.id):
            raise error
        return _error_answer(request, error)

    async def _infer(self, arrival: Arrival, request: pb.ModelInferRequest, response: pb.ModelInferResponse) -> None:
        """Fills the response."""
        with (
            self._observers.trace(arrival.call, request.id) as trace,
            self._concurrency if arrival.ticket else UNCOUNTED,
            self._registry.use(request.model_name, request.model_version) as served,
        ):
            manifest = served.model.manifest
            trace.model_found(manifest.name, str(manifest.version), served.metrics.request_ended)
            await self._compute(served, trace, arrival, request, response)

    async def _compute(
        self,
        served: ServedModel,
        trace: RequestTrace,
        arrival: Arrival,
        request: pb.ModelInferRequest,
        response: pb.ModelInferResponse,
    ) -> None:
        """Admits the request, prepares its rows, computes them and fills the response."""
        response.id = request.id
        header, raws = self._headers_of(served).split(request)
        options, spec = header.options, header.spec
        deadline = _set_deadline(trace, arrival, options.seconds)
        scheduler = served.scheduler if spec.kind == "answers" else await served.attention_scheduler()
        admission = scheduler.admit(deadline, options.priority)
        prepared = await served.preprocessor.prepare_async(spec, header.read(request, raws), options.truncate)
        room = self._max_message - len(request.id.encode())  # the id is sent back
        size = check_response_size(served.model.manifest, prepared, room)
        if arrival.ticket:
            with self._concurrency.paused:
                await arrival.ticket.admit(size)
        trace.rows_prepared(len(prepared.rows), prepared.tokens)
        result = await admission.submit(prepared.rows, spec.computed)
        trace.rows_computed(result.queue_seconds, result.compute_seconds)
        if size <= INLINE_BYTES:
            _fill(response, served.model, prepared, result, header.classes)
        else:  # to assemble it here would delay other requests
            await asyncio.to_thread(_fill, response, served.model, prepared, result, header.classes)

    def _headers_of(self, served: ServedModel) -> HeaderCache:
        headers = self._headers.get(served)
        if headers is None:
            headers = HeaderCache(served.model.manifest, served.preprocessor)
            self._headers[served] = headers
        return headers


def _set_deadline(trace: RequestTrace, arrival: Arrival, seconds: float) -> float:
    """The request's deadline, from its own time and the call's, on time.monotonic's clock."""
    if arrival.seconds_left is not None:
        seconds = min(seconds, arrival.seconds_left)
    began = trace.arrived - arrival.waited
    trace.due = began + (1 - EARLY) * seconds
    return began + seconds
