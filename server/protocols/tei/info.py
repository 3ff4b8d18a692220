"""The service `tei.v1.Info`: the model that is served."""

from importlib.metadata import version

from heed.bundle.manifest import Task
from heed.protos import tei_pb2 as pb
from heed.protos.tei_pb2_grpc import InfoServicer
from heed.server.protocols.tei.service import Context
from heed.server.repository.registry import ModelRegistry
from heed.server.settings import Settings

KINDS: dict[Task, pb.ModelType] = {
    "encoder": pb.MODEL_TYPE_EMBEDDING,
    "embedding": pb.MODEL_TYPE_EMBEDDING,
    "sequence_classification": pb.MODEL_TYPE_CLASSIFIER,
    "token_classification": pb.MODEL_TYPE_CLASSIFIER,
    "reranking": pb.MODEL_TYPE_RERANKER,
}
DTYPES = {"fp32": "float32", "fp16": "float16", "int8": "int8"}


class InfoService(InfoServicer):
    def __init__(self, registry: ModelRegistry, settings: Settings) -> None:
        self._registry = registry
        self._settings = settings

    async def Info(self, request: pb.InfoRequest, context: Context) -> pb.InfoResponse:
        with self._registry.use("") as served:
            model = served.model
            return pb.InfoResponse(
                version=version("heed-serve"),
                model_id=model.manifest.name,
                model_sha=model.digest or None,
                model_dtype=DTYPES[model.precision],
                model_type=KINDS[model.manifest.task],
                max_input_length=model.manifest.limits.text_length,
                max_concurrent_requests=self._settings.max_concurrent_requests,
                max_batch_tokens=self._settings.max_queue_tokens,
                max_client_batch_size=self._settings.max_batch,
                tokenization_workers=1,  # the event loop's own thread, but for long texts
            )
