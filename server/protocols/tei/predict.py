"""Labels of texts and of pairs."""

from collections.abc import AsyncIterator

from heed.protos import tei_pb2 as pb
from heed.protos.tei_pb2_grpc import PredictServicer
from heed.server.errors import InvalidArgument
from heed.server.protocols.tei.capabilities import check_can
from heed.server.protocols.tei.scores import best_first, scores
from heed.server.protocols.tei.service import Asked, Context, Door, side_of
from heed.server.telemetry.request_trace import Call
from heed.server.transport.status import guarded

SERVICE = "tei.v1.Predict"


class PredictService(PredictServicer):
    def __init__(self, door: Door) -> None:
        self._door = door

    @guarded
    async def Predict(self, request: pb.PredictRequest, context: Context) -> pb.PredictResponse:
        return await self._door.answer(Call(SERVICE, "Predict", context), _predict, request)

    @guarded
    async def PredictStream(self, requests: AsyncIterator[pb.PredictRequest], context: Context) -> None:
        await self._door.answer_all(Call(SERVICE, "PredictStream", context), _predict, requests, context.write)

    @guarded
    async def PredictPair(self, request: pb.PredictPairRequest, context: Context) -> pb.PredictResponse:
        return await self._door.answer(Call(SERVICE, "PredictPair", context), _predict_pair, request)

    @guarded
    async def PredictPairStream(self, requests: AsyncIterator[pb.PredictPairRequest], context: Context) -> None:
        await self._door.answer_all(Call(SERVICE, "PredictPairStream", context), _predict_pair, requests, context.write)


async def _predict(asked: Asked, request: pb.PredictRequest) -> pb.PredictResponse:
    check_can(asked.manifest, "Predict")
    return await _labelled(asked, request, [request.inputs])


async def _predict_pair(asked: Asked, request: pb.PredictPairRequest) -> pb.PredictResponse:
    check_can(asked.manifest, "PredictPair")
    if len(request.inputs) not in (1, 2):
        raise InvalidArgument(f"inputs has {len(request.inputs)} texts, expected one, or the two of a pair")
    return await _labelled(asked, request, list(request.inputs))


async def _labelled(
    asked: Asked, request: pb.PredictRequest | pb.PredictPairRequest, texts: list[str]
) -> pb.PredictResponse:
    """`texts` are one, or the two of a pair."""
    if not any(texts):
        raise InvalidArgument("inputs is empty, expected a text")
    characters = sum(map(len, texts))
    logits_BC, metadata = await asked.about(texts[:1], texts[1:] or None, "logits", side_of(request), characters)
    (scores_C,) = scores(logits_BC, request.raw_scores)
    labels = asked.manifest.labels
    predictions = [pb.Prediction(score=scores_C[place], label=labels[place]) for place in best_first(scores_C)]
    return pb.PredictResponse(predictions=predictions, metadata=metadata)
