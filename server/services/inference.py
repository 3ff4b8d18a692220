"""The Open Inference Protocol: the tensor door."""

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from importlib.metadata import version
from typing import Any

import grpc

from bundle import Manifest
from protos import open_inference_pb2 as pb
from protos.open_inference_pb2_grpc import GRPCInferenceServiceServicer
from server.asked import Asked, Call, Observers
from server.errors import InvalidArgument
from server.model import Model
from server.registry import Registry, State
from server.requests import Request
from server.scheduler import Answered
from server.services.guard import describe, guarded
from server.services.tensors import check_response_size, decode_inputs, encode_outputs
from server.serving import Serving

Context = grpc.aio.ServicerContext[Any, Any]
Parameters = Mapping[str, pb.InferParameter]
SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name

# How many requests of one stream are in the server at a time; the next ones wait in the connection.
STREAM_REQUESTS = 256


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


class InferenceService(GRPCInferenceServiceServicer):
    def __init__(self, registry: Registry, max_message: int, observers: Observers) -> None:
        """
        Args:
            max_message: the largest that can be sent, in bytes.
            observers: are told of every request.
        """
        self._registry = registry
        self._observers = observers
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
        await self._infer(Call(SERVICE, "ModelInfer", context), request, response, context.time_remaining())
        return response

    async def ModelStreamInfer(self, requests: AsyncIterator[pb.ModelInferRequest], context: Context) -> None:
        """An error is an answer, too: it ends nothing. Requests are computed together, and answered in their order."""
        call = Call(SERVICE, "ModelStreamInfer", context)
        answers: asyncio.Queue[asyncio.Task[pb.ModelStreamInferResponse] | None] = asyncio.Queue()
        room = asyncio.Semaphore(STREAM_REQUESTS)

        async def read() -> None:
            with suppress(asyncio.CancelledError):  # of `end_streams`
                async for request in requests:
                    await room.acquire()
                    answers.put_nowait(group.create_task(self._answer_one_of_many(call, request)))
            answers.put_nowait(None)

        async with asyncio.TaskGroup() as group:  # if the caller goes, all of it is cancelled
            reading = group.create_task(read())
            self._reading.add(reading)
            reading.add_done_callback(self._reading.discard)
            while (answer := await answers.get()) is not None:
                await context.write(await answer)
                room.release()

    def end_streams(self) -> None:
        """Streams read nothing more and end when what they have read is answered."""
        for reading in self._reading:
            reading.cancel()

    async def _answer_one_of_many(self, call: Call, request: pb.ModelInferRequest) -> pb.ModelStreamInferResponse:
        answer = pb.ModelStreamInferResponse()
        try:
            await self._infer(call, request, answer.infer_response, None)
        except Exception as error:
            code, message = describe(error)
            answer = pb.ModelStreamInferResponse(error_message=message)
            answer.infer_response.id = request.id
            answer.infer_response.parameters["status"].string_param = code.name
        return answer

    async def _infer(
        self, call: Call, request: pb.ModelInferRequest, response: pb.ModelInferResponse, remaining: float | None
    ) -> None:
        """Fills the response. `remaining` are the seconds until the call's own deadline."""
        with (
            self._observers.asked(call, request.id) as asked,
            self._registry.use(request.model_name, request.model_version) as serving,
        ):
            asked.of(serving.model)
            await self._infer_with(serving, asked, request, response, remaining)

    async def _infer_with(
        self,
        serving: Serving,
        asked: Asked,
        request: pb.ModelInferRequest,
        response: pb.ModelInferResponse,
        remaining: float | None,
    ) -> None:
        response.id = request.id
        manifest = serving.model.manifest
        deadline = _deadline(remaining, request.parameters)
        if all(output.name != "attentions" for output in request.outputs):  # they have a queue of their own
            serving.scheduler.check_time(deadline)
        outputs = [output.name for output in request.outputs]
        prepared = await serving.prepare(decode_inputs(manifest, request), outputs, _truncate(request.parameters))
        check_response_size(manifest, prepared, self._max_message)
        asked.prepared(prepared)
        answered = await serving.answer(prepared, deadline)
        asked.answered(answered)
        if prepared.kind == "answers":
            _fill(response, serving.model, prepared, answered)
        else:  # they are large: putting them together here would make all others wait
            await asyncio.to_thread(_fill, response, serving.model, prepared, answered)
