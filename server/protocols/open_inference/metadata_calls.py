"""The calls about the server and its models: liveness, readiness, metadata, configuration, statistics."""

import json
from importlib.metadata import version
from typing import Any

import grpc

from heed.bundle import Manifest
from heed.bundle.manifest import TensorSpec
from heed.protos import open_inference_pb2 as pb
from heed.server.repository.registry import ModelRegistry, ModelVersion, State
from heed.server.telemetry.metrics import Duration, Statistics

Context = grpc.aio.ServicerContext[Any, Any]

PLATFORM, BACKEND = "onnxruntime_onnx", "onnxruntime"
# By the names that Triton's documents give them.
EXTENSIONS = ["classification", "model_configuration", "model_repository", "schedule_policy", "statistics"]

TYPES = {"BOOL": pb.TYPE_BOOL, "INT64": pb.TYPE_INT64, "FP32": pb.TYPE_FP32, "BYTES": pb.TYPE_STRING}


def _properties(manifest: Manifest) -> dict[str, str]:
    """What a model's metadata say of it beside its tensors; lists are JSON."""
    properties: dict[str, str] = {"task": manifest.task, "max_length": str(manifest.limits.length)}
    if manifest.labels:
        properties["labels"] = json.dumps(manifest.labels, ensure_ascii=False)
    return properties


def metadata_of(manifest: Manifest, versions: list[str]) -> pb.ModelMetadataResponse:
    def tensor(spec: TensorSpec) -> pb.ModelMetadataResponse.TensorMetadata:
        return pb.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=spec.datatype, shape=spec.shape)

    return pb.ModelMetadataResponse(
        name=manifest.name,
        versions=versions,
        platform=PLATFORM,
        inputs=map(tensor, manifest.inputs),
        outputs=map(tensor, manifest.outputs),
        properties=_properties(manifest),
    )


def config_of(manifest: Manifest, versions: list[str]) -> pb.ModelConfig:
    """The same as Triton's configuration files say it.

    There `max_batch_size` 0 means that shapes are whole, the batch included. Any other number would mean that they are
    those of one row, and a text has none: its shape is [batch].
    """

    def takes(spec: TensorSpec) -> pb.ModelInput:
        kind = TYPES[spec.datatype]
        return pb.ModelInput(name=spec.name, data_type=kind, dims=spec.shape, optional=spec.optional)

    def gives(spec: TensorSpec) -> pb.ModelOutput:
        return pb.ModelOutput(name=spec.name, data_type=TYPES[spec.datatype], dims=spec.shape)

    policy = pb.ModelVersionPolicy(specific=pb.ModelVersionPolicy.Specific(versions=map(int, versions)))
    return pb.ModelConfig(
        name=manifest.name,
        platform=PLATFORM,
        backend=BACKEND,
        version_policy=policy,
        max_batch_size=0,
        input=map(takes, manifest.inputs),
        output=map(gives, manifest.outputs),
        model_transaction_policy=pb.ModelTransactionPolicy(decoupled=False),
    )


def _duration(duration: Duration) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=duration.count, ns=round(duration.seconds * 1e9))


def statistics_of(name: str, version: str, seen: Statistics) -> pb.ModelStatistics:
    batches = seen.batches
    return pb.ModelStatistics(
        name=name,
        version=version,
        last_inference=int(seen.last_arrival * 1e3),
        inference_count=seen.rows,
        execution_count=sum(batch.count for batch in batches.values()),
        inference_stats=pb.InferStatistics(
            success=_duration(seen.success),
            fail=_duration(seen.fail),
            queue=_duration(seen.stages["queue"]),
            compute_input=_duration(seen.stages["prepare"]),
            compute_infer=_duration(seen.stages["compute"]),
            compute_output=_duration(seen.stages["encode"]),
        ),
        # Before and after a batch is computed, each request is processed by itself.
        batch_stats=[
            pb.InferBatchStatistics(batch_size=rows, compute_infer=_duration(batch)) for rows, batch in batches.items()
        ],
    )


class MetadataCalls:
    """The calls that compute nothing."""

    def __init__(self, registry: ModelRegistry) -> None:
        self._registry = registry

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._registry.is_ready)

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        found = self._registry.find(request.name, request.version)
        return pb.ModelReadyResponse(ready=found.state is State.READY and not found.drift)

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name="heed", version=version("heed-serve"), extensions=EXTENSIONS)

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        found = self._registry.find(request.name, request.version)
        return metadata_of(found.manifest, self._versions(found.name))

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Context) -> pb.ModelConfigResponse:
        found = self._registry.find(request.name, request.version)
        return pb.ModelConfigResponse(config=config_of(found.manifest, self._versions(found.name)))

    async def ModelStatistics(self, request: pb.ModelStatisticsRequest, context: Context) -> pb.ModelStatisticsResponse:
        """Of one version, of a model's versions, or of all models. A version that is not ready has empty statistics."""
        seen = (
            statistics_of(one.name, str(one.version), one.served.metrics.statistics if one.served else Statistics())
            for one in self._asked_about(request.name, request.version)
        )
        return pb.ModelStatisticsResponse(model_stats=seen)

    def _asked_about(self, name: str, version: str) -> list[ModelVersion]:
        if version:
            return [self._registry.find(name, version)]
        if name:
            self._registry.find(name)  # raises what is to be said of a name that is unknown
        return self._registry.all(name)

    def _versions(self, name: str) -> list[str]:
        """Those that may be requested, the oldest first; while none is ready, those that are loading."""
        known = self._registry.all(name)
        ready = [one.version for one in known if one.state is State.READY]
        return [str(version) for version in sorted(set(ready or [one.version for one in known]))]
