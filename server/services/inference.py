"""The Open Inference Protocol: the tensor door."""

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from importlib.metadata import version
from typing import Any

import grpc

from bundle import Manifest
from protos import open_inference_pb2 as pb
from protos.open_inference_pb2_grpc import GRPCInferenceServiceServicer
from server.errors import Exhausted, InvalidArgument, status_of
from server.model import Model
from server.registry import Registry, State
from server.requests import Request
from server.scheduler import Answered
from server.security.calls import Slots
from server.services.guard import describe, guarded
from server.services.tensors import check_response_size, decode_inputs, encode_outputs
from server.serving import Serving

Context = grpc.aio.ServicerContext[Any, Any]
Parameters = Mapping[str, pb.InferParameter]
Ended = Callable[[str, str, float], None]

# How many requests of one stream are in the server at a time; the next ones wait in the connection. A request counts
# as one for each 512 bytes it has: rows take many times what they have on the wire.
STREAM_REQUESTS, STREAM_BYTES = 256, 512
LARGE_ANSWER = 2**17  # bytes; on a stream it is computed when those before it are written


def _truncate(parameters: Parameters) -> bool:
    if "truncate" not in parameters:
        return False
    if parameters["truncate"].WhichOneof("parameter_choice") != "bool_param":
        raise InvalidArgument("parameter truncate must be a bool")
    return parameters["truncate"].bool_param


def _deadline(remaining: float | None, parameters: Parameters) -> float:
    """The earlier of the call's deadline and the parameter `timeout` (microseconds in the queue), on time.monotonic's
    clock."""
    seconds = [math.inf if remaining is None else remaining]
    if "timeout" in parameters:
        if parameters["timeout"].WhichOneof("parameter_choice") not in ("int64_param", "uint64_param"):
            raise InvalidArgument("parameter timeout must be an integer, in microseconds")
        microseconds = parameters["timeout"].int64_param or parameters["timeout"].uint64_param
        if microseconds > 0:
            seconds.append(microseconds / 1e6)
    return time.monotonic() + min(seconds)


def _fill(response: pb.ModelInferResponse, model: Model, prepared: Request, answered: Answered) -> None:
    """The answer, and what produced it."""
    response.model_name, response.model_version = model.manifest.name, str(model.manifest.version)
    encode_outputs(response, model.assemble(prepared, answered.answers))
    response.parameters["digest"].string_param = model.digest
    response.parameters["provider"].string_param = model.runtime.provider
    response.parameters["precision"].string_param = model.precision
    response.parameters["queue_ns"].int64_param = int(answered.queue_seconds * 1e9)
    response.parameters["compute_ns"].int64_param = int(answered.compute_seconds * 1e9)


def _properties(manifest: Manifest) -> dict[str, str]:
    """What a model's metadata say of it beside its tensors; lists are JSON."""
    properties: dict[str, str] = {"task": manifest.task}
    if manifest.labels:
        properties["labels"] = json.dumps(manifest.labels, ensure_ascii=False)
    return properties


class Room:
    """What of one stream may be in the server."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._left = asyncio.Event()

    async def enter(self, size: int) -> None:
        """Waits until there is room. For one at a time."""
        while self._free < size:
            self._left.clear()
            await self._left.wait()
        self._free -= size

    def leave(self, size: int) -> None:
        self._free += size
        self._left.set()


class InferenceService(GRPCInferenceServiceServicer):
    def __init__(self, registry: Registry, max_message: int, slots: Slots, ended: Ended = lambda *_: None) -> None:
        """
        Args:
            max_message: the largest that can be sent, in bytes.
            slots: count requests on streams.
            ended: hears of every request's model, status and seconds.
        """
        self._registry = registry
        self._ended = ended
        self._slots = slots
        self._max_message = max_message
        self._reading: set[asyncio.Task[None]] = set()  # one for each open stream

    @guarded
    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    @guarded
    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._registry.ready)

    @guarded
    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        served = self._registry.find(request.name, request.version)
        return pb.ModelReadyResponse(ready=served.state is State.READY)

    @guarded
    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name="heed", version=version("heed"))

    @guarded
    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        manifest = self._registry.find(request.name, request.version).manifest
        response = pb.ModelMetadataResponse(
            name=manifest.name,
            versions=[str(manifest.version)],
            platform="onnxruntime_onnx",
            properties=_properties(manifest),
        )
        for spec in manifest.inputs:
            response.inputs.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
        for spec in manifest.outputs:
            response.outputs.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
        return response

    @guarded
    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        response = pb.ModelInferResponse()
        await self._infer(request, response, context.time_remaining())
        return response

    async def ModelStreamInfer(self, requests: AsyncIterator[pb.ModelInferRequest], context: Context) -> None:
        """An error is an answer, too: it ends nothing. Requests are computed together, and answered in their order.

        Who does not read holds up nobody but himself: his answers wait for him, not many of them and no large ones,
        and nothing more is read.
        """
        room = Room(STREAM_REQUESTS)

        async def answer(
            request: pb.ModelInferRequest, size: int, turn: asyncio.Event, next_turn: asyncio.Event
        ) -> None:
            with self._slots.one() as refusal:
                answered = await self._answer_one_of_many(request, turn, refusal)
                await turn.wait()
                await context.write(answered)
            next_turn.set()
            room.leave(size)

        async def read() -> None:
            turn = asyncio.Event()
            turn.set()
            with suppress(asyncio.CancelledError):  # of `end_streams`
                async for request in requests:
                    size = min(1 + request.ByteSize() // STREAM_BYTES, STREAM_REQUESTS)
                    await room.enter(size)
                    next_turn = asyncio.Event()
                    group.create_task(answer(request, size, turn, next_turn))
                    turn = next_turn

        async with asyncio.TaskGroup() as group:  # if the caller goes, all of it is cancelled
            reading = group.create_task(read())
            self._reading.add(reading)
            reading.add_done_callback(self._reading.discard)

    def end_streams(self) -> None:
        """Streams read nothing more and end when what they have read is answered."""
        for reading in self._reading:
            reading.cancel()

    async def _answer_one_of_many(
        self, request: pb.ModelInferRequest, turn: asyncio.Event, refusal: Exhausted | None
    ) -> pb.ModelStreamInferResponse:
        answer = pb.ModelStreamInferResponse()
        try:
            if refusal:
                raise refusal
            await self._infer(request, answer.infer_response, None, turn)
        except Exception as error:
            code, message = describe(error)
            answer = pb.ModelStreamInferResponse(error_message=message)
            answer.infer_response.id = request.id
            answer.infer_response.parameters["status"].string_param = code.name
        return answer

    async def _infer(
        self,
        request: pb.ModelInferRequest,
        response: pb.ModelInferResponse,
        remaining: float | None,
        turn: asyncio.Event | None = None,
    ) -> None:
        """Fills the response.

        Args:
            remaining: seconds until the call's own deadline.
            turn: of a request on a stream, when all answers before it are written.
        """
        arrived, model, code = time.monotonic(), "", "OK"
        try:
            with self._registry.use(request.model_name, request.model_version) as serving:
                model = request.model_name
                await self._infer_with(serving, request, response, remaining, turn)
        except asyncio.CancelledError:
            code = "CANCELLED"
            raise
        except Exception as error:
            code = status_of(error).name
            raise
        finally:
            self._ended(model, code, time.monotonic() - arrived)

    async def _infer_with(
        self,
        serving: Serving,
        request: pb.ModelInferRequest,
        response: pb.ModelInferResponse,
        remaining: float | None,
        turn: asyncio.Event | None,
    ) -> None:
        response.id = request.id
        manifest = serving.model.manifest
        deadline = _deadline(remaining, request.parameters)
        if all(output.name != "attentions" for output in request.outputs):  # they have a queue of their own
            serving.scheduler.check_time(deadline)
        outputs = [output.name for output in request.outputs]
        inputs = decode_inputs(manifest, request, serving.limits.max_batch)
        prepared = await serving.prepare(inputs, outputs, _truncate(request.parameters))
        room = self._max_message - len(request.id.encode())  # which is sent back
        if check_response_size(manifest, prepared, room) > LARGE_ANSWER and turn:
            await turn.wait()
        answered = await serving.answer(prepared, deadline)
        if prepared.kind == "answers":
            _fill(response, serving.model, prepared, answered)
        else:  # they are large: putting them together here would make all others wait
            await asyncio.to_thread(_fill, response, serving.model, prepared, answered)
