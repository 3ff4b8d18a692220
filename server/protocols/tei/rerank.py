"""Texts in the order of how well they fit a query."""

import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, replace

import numpy as np

from heed.bundle.sequence_packing import Floats
from heed.protos import tei_pb2 as pb
from heed.protos.tei_pb2_grpc import RerankServicer
from heed.server.errors import InvalidArgument
from heed.server.protocols.tei.capabilities import check_can
from heed.server.protocols.tei.service import Context, TextEndpoint, TextRequest, nanoseconds, side_of
from heed.server.requests.scores import best_first, scores
from heed.server.telemetry.request_trace import Call


@dataclass(frozen=True)
class _Scored:
    """One text of a stream."""

    request: pb.RerankStreamRequest  # its text only if that is to be returned
    logit: float
    score: float
    metadata: pb.Metadata


SERVICE = "tei.v1.Rerank"


class RerankService(RerankServicer):
    def __init__(self, endpoint: TextEndpoint) -> None:
        self._endpoint = endpoint

    async def Rerank(self, request: pb.RerankRequest, context: Context) -> pb.RerankResponse:
        return await self._endpoint.answer(Call(SERVICE, "Rerank", context), _rerank, request)

    async def RerankStream(
        self, requests: AsyncIterator[pb.RerankStreamRequest], context: Context
    ) -> pb.RerankResponse:
        arrived = time.monotonic()
        scored: list[_Scored] = []

        async def keep(one: _Scored) -> None:
            self._endpoint.limits.check_rows(len(scored) + 1)
            if scored and not scored[0].request.return_text:
                one = replace(one, request=pb.RerankStreamRequest())
            scored.append(one)

        await self._endpoint.answer_stream(Call(SERVICE, "RerankStream", context), _score, requests, keep)
        if not scored:
            raise InvalidArgument("the stream brought no text, expected one at least")
        first = scored[0].request
        logits, scores_B = np.array([(one.logit, one.score) for one in scored]).T
        texts = [one.request.text for one in scored]
        ranks = _ranks(logits, logits if first.raw_scores else scores_B, texts, first.return_text)
        return pb.RerankResponse(ranks=ranks, metadata=_together([one.metadata for one in scored], arrived))


async def _rerank(text_request: TextRequest, request: pb.RerankRequest) -> pb.RerankResponse:
    check_can(text_request.manifest, "Rerank")
    text_request.limits.check_rows(len(request.texts))
    if not request.texts:
        raise InvalidArgument("texts is empty, expected one text at least")
    for index, text in enumerate(request.texts):
        _check_pair(request.query, text, f"texts[{index}]")
    texts, queries = list(request.texts), [request.query] * len(request.texts)
    characters = sum(map(len, queries)) + sum(map(len, texts))
    logits_B1, metadata = await text_request.compute(queries, texts, "logits", side_of(request), characters)
    scores_B1 = logits_B1 if request.raw_scores else scores(logits_B1, text_request.manifest.label_activation)
    ranks = _ranks(logits_B1[:, 0], scores_B1[:, 0], texts, request.return_text)
    return pb.RerankResponse(ranks=ranks, metadata=metadata)


async def _score(text_request: TextRequest, request: pb.RerankStreamRequest) -> _Scored:
    check_can(text_request.manifest, "Rerank")
    _check_pair(request.query, request.text, "text")
    characters = len(request.query) + len(request.text)
    logits_B1, metadata = await text_request.compute(
        [request.query], [request.text], "logits", side_of(request), characters
    )
    scores_B1 = scores(logits_B1, text_request.manifest.label_activation)
    return _Scored(request, float(logits_B1[0, 0]), float(scores_B1[0, 0]), metadata)


def _check_pair(query: str, text: str, where: str) -> None:
    if not query and not text:
        raise InvalidArgument(f"query and {where} are empty, expected a text in one of them")


def _ranks(logits_B: Floats, scores_B: Floats, texts: list[str], return_text: bool) -> Iterable[pb.Rank]:
    for index in best_first(logits_B):
        yield pb.Rank(index=index, score=scores_B[index], text=texts[index] if return_text else None)


def _together(parts: list[pb.Metadata], arrived: float) -> pb.Metadata:
    """Characters and tokens of all texts; of the times the mean of a text, but for the total."""
    return pb.Metadata(
        compute_chars=sum(part.compute_chars for part in parts),
        compute_tokens=sum(part.compute_tokens for part in parts),
        total_time_ns=nanoseconds(time.monotonic() - arrived),
        tokenization_time_ns=sum(part.tokenization_time_ns for part in parts) // len(parts),
        queue_time_ns=sum(part.queue_time_ns for part in parts) // len(parts),
        inference_time_ns=sum(part.inference_time_ns for part in parts) // len(parts),
    )
