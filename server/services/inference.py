"""The Open Inference Protocol: the tensor door."""

import asyncio
import json
import math
import time
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import grpc

from bundle import Manifest
from bundle.packing import Arrays
from protos import open_inference_pb2 as pb
from protos.open_inference_pb2_grpc import GRPCInferenceServiceServicer
from server.errors import InvalidArgument
from server.model import Model
from server.registry import Registry, Serving, State
from server.requests import Request
from server.scheduler import Answered
from server.services.guard import guarded
from server.services.tensors import check_response_size, decode_inputs, encode_outputs

Context = grpc.aio.ServicerContext[Any, Any]
Parameters = Mapping[str, pb.InferParameter]

# Shorter texts are tokenized at once: handing them to a thread would take longer than the work.
INLINE_CHARACTERS = 4096


def _truncate(parameters: Parameters) -> bool:
    if "truncate" not in parameters:
        return False
    if parameters["truncate"].WhichOneof("parameter_choice") != "bool_param":
        raise InvalidArgument("parameter truncate must be a bool")
    return parameters["truncate"].bool_param


def _deadline(context: Context, parameters: Parameters) -> float:
    """The earlier of the call's deadline and the parameter `timeout` (microseconds in the queue), on time.monotonic's
    clock."""
    seconds = [math.inf]
    if (remaining := context.time_remaining()) is not None:
        seconds.append(remaining)
    if "timeout" in parameters:
        if parameters["timeout"].WhichOneof("parameter_choice") not in ("int64_param", "uint64_param"):
            raise InvalidArgument("parameter timeout must be an integer, in microseconds")
        microseconds = parameters["timeout"].int64_param or parameters["timeout"].uint64_param
        if microseconds > 0:
            seconds.append(microseconds / 1e6)
    return time.monotonic() + min(seconds)


async def _prepare(model: Model, inputs: Arrays, request: pb.ModelInferRequest) -> Request:
    outputs = [output.name for output in request.outputs]
    truncate = _truncate(request.parameters)
    texts = [inputs[name] for name in ("text", "text_pair") if name in inputs]
    if sum(len(text) for array in texts for text in array.flat) > INLINE_CHARACTERS:
        return await asyncio.to_thread(model.prepare, inputs, outputs, truncate)
    return model.prepare(inputs, outputs, truncate)


def _response(
    request: pb.ModelInferRequest, model: Model, prepared: Request, answered: Answered
) -> pb.ModelInferResponse:
    """The answer, and what produced it."""
    response = pb.ModelInferResponse(
        model_name=model.manifest.name, model_version=str(model.manifest.version), id=request.id
    )
    encode_outputs(response, model.assemble(prepared, answered.answers))
    response.parameters["digest"].string_param = model.digest
    response.parameters["provider"].string_param = model.runtime.provider
    response.parameters["precision"].string_param = model.precision
    response.parameters["queue_ns"].int64_param = int(answered.queue_seconds * 1e9)
    response.parameters["compute_ns"].int64_param = int(answered.compute_seconds * 1e9)
    return response


async def _answer(
    serving: Serving, request: pb.ModelInferRequest, prepared: Request, deadline: float
) -> pb.ModelInferResponse:
    if prepared.kind == "answers":
        answered = await serving.scheduler.submit(prepared.sequences, deadline)
        return _response(request, serving.model, prepared, answered)
    scheduler, _ = await serving.attentions.loaded()
    answered = await scheduler.submit(prepared.sequences, deadline)
    # They are large: putting them together here would make all others wait.
    return await asyncio.to_thread(_response, request, serving.model, prepared, answered)


def _properties(manifest: Manifest) -> dict[str, str]:
    """What a model's metadata say of it beside its tensors; lists are JSON."""
    properties: dict[str, str] = {"task": manifest.task}
    if manifest.labels:
        properties["labels"] = json.dumps(manifest.labels, ensure_ascii=False)
    return properties


class InferenceService(GRPCInferenceServiceServicer):
    def __init__(self, registry: Registry, max_message: int) -> None:
        """`max_message` is the largest message that can be sent, in bytes."""
        self._registry = registry
        self._max_message = max_message

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
        serving = self._registry.find_ready(request.model_name, request.model_version)
        manifest = serving.model.manifest
        deadline = _deadline(context, request.parameters)
        prepared = await _prepare(serving.model, decode_inputs(manifest, request), request)
        check_response_size(manifest, prepared, self._max_message)
        return await _answer(serving, request, prepared, deadline)
