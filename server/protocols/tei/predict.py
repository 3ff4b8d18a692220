"""Labels of texts and of pairs."""

from collections.abc import AsyncIterator

from heed.protos import tei_pb2 as pb
from heed.protos.tei_pb2_grpc import PredictServicer
from heed.server.errors import InvalidArgument
from heed.server.protocols.tei.capabilities import check_can
from heed.server.protocols.tei.service import Context, TextEndpoint, TextRequest, side_of
from heed.server.requests.scores import best_first, scores
from heed.server.telemetry.request_trace import Call

SERVICE = "tei.v1.Predict"


class PredictService(PredictServicer):
    def __init__(self, endpoint: TextEndpoint) -> None:
        self._endpoint = endpoint

    async def Predict(self, request: pb.PredictRequest, context: Context) -> pb.PredictResponse:
        return await self._endpoint.answer(Call(SERVICE, "Predict", context), _predict, request)

    async def PredictStream(self, requests: AsyncIterator[pb.PredictRequest], context: Context) -> None:
        await self._endpoint.answer_stream(Call(SERVICE, "PredictStream", context), _predict, requests, context.write)

    async def PredictPair(self, request: pb.PredictPairRequest, context: Context) -> pb.PredictResponse:
        return await self._endpoint.answer(Call(SERVICE, "PredictPair", context), _predict_pair, request)

    async def PredictPairStream(self, requests: AsyncIterator[pb.PredictPairRequest], context: Context) -> None:
        await self._endpoint.answer_stream(
            Call(SERVICE, "PredictPairStream", context), _predict_pair, requests, context.write
        )


async def _predict(text_request: TextRequest, request: pb.PredictRequest) -> pb.PredictResponse:
    check_can(text_request.manifest, "Predict")
    return await _labelled(text_request, request, [request.inputs])


async def _predict_pair(text_request: TextRequest, request: pb.PredictPairRequest) -> pb.PredictResponse:
    check_can(text_request.manifest, "PredictPair")
    if len(request.inputs) not in (1, 2):
        raise InvalidArgument(f"inputs has {len(request.inputs)} texts, expected one, or the two of a pair")
    return await _labelled(text_request, request, list(request.inputs))


async def _labelled(
    text_request: TextRequest, request: pb.PredictRequest | pb.PredictPairRequest, texts: list[str]
) -> pb.PredictResponse:
    """`texts` are one, or the two of a pair."""
    if not any(texts):
        raise InvalidArgument("inputs is empty, expected a text")
    characters = sum(map(len, texts))
    (logits_C,), metadata = await text_request.compute(
        texts[:1], texts[1:] or None, "logits", side_of(request), characters
    )
    manifest = text_request.manifest
    scores_C = scores(logits_C, "none" if request.raw_scores else manifest.label_activation)
    predictions = [pb.Prediction(score=scores_C[index], label=manifest.labels[index]) for index in best_first(logits_C)]
    return pb.PredictResponse(predictions=predictions, metadata=metadata)
