"""Vectors of texts, and of their tokens.

Letters: B batch, L length, D width.
"""

from collections.abc import AsyncIterator
from typing import Any

import numpy as np

from heed.bundle import Manifest
from heed.bundle.sequence_packing import Floats
from heed.protos import tei_pb2 as pb
from heed.protos.tei_pb2_grpc import EmbedServicer
from heed.server.errors import FailedPrecondition, InvalidArgument, Unimplemented
from heed.server.protocols.tei.capabilities import check_can
from heed.server.protocols.tei.service import Context, TextEndpoint, TextRequest, prompted, side_of
from heed.server.telemetry.request_trace import Call

NO_SPARSE = "heed has no sparse embeddings; Embed gives one dense vector for a text, EmbedAll one for each token"
SHORTEST = 1e-12  # a shorter vector is not made longer than it is, as in torch


def _output(manifest: Manifest, normalize: bool) -> str:
    """The output to ask for.

    Raises:
        FailedPrecondition: the bundle cannot say what the vectors are before they are scaled.
    """
    if normalize or manifest.unit_length is False:
        return "sentence_embedding"
    if any(spec.name == "unnormalized_embedding" for spec in manifest.outputs):
        return "unnormalized_embedding"
    raise FailedPrecondition(
        f"{manifest.name} was exported before heed kept vectors that are not normalized: "
        "export it again with `heed export`, or leave out normalize"
    )


def _dimensions(request: pb.EmbedRequest, width: int) -> int:
    """How many to answer with."""
    if not request.HasField("dimensions"):
        return width
    if not 1 <= request.dimensions <= width:
        raise InvalidArgument(f"dimensions is {request.dimensions}, expected 1 to {width}")
    return request.dimensions


def _normalized(vector_D: Floats) -> Floats:
    wide_D = vector_D.astype(np.float64)
    return wide_D / max(float(np.linalg.norm(wide_D)), SHORTEST)


def _varint(number: int) -> bytes:
    """As protobuf writes it: seven bits in a byte, the lowest first."""
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def _fill(message: pb.EmbedResponse | pb.TokenEmbedding, vector_D: Floats) -> None:
    """Sets `embeddings`, field 1 of both. Handing over the bytes spares a Python object for each number."""
    raw = vector_D.astype("<f4").tobytes()
    message.MergeFromString(b"\x0a" + _varint(len(raw)) + raw)


SERVICE = "tei.v1.Embed"


class EmbedService(EmbedServicer):
    def __init__(self, endpoint: TextEndpoint) -> None:
        self._endpoint = endpoint

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:
        return await self._endpoint.answer(Call(SERVICE, "Embed", context), _embed, request)

    async def EmbedStream(self, requests: AsyncIterator[pb.EmbedRequest], context: Context) -> None:
        await self._endpoint.answer_stream(Call(SERVICE, "EmbedStream", context), _embed, requests, context.write)

    async def EmbedAll(self, request: pb.EmbedAllRequest, context: Context) -> pb.EmbedAllResponse:
        return await self._endpoint.answer(Call(SERVICE, "EmbedAll", context), _embed_all, request)

    async def EmbedAllStream(self, requests: AsyncIterator[pb.EmbedAllRequest], context: Context) -> None:
        await self._endpoint.answer_stream(
            Call(SERVICE, "EmbedAllStream", context), _embed_all, requests, context.write
        )

    async def EmbedSparse(self, request: Any, context: Context) -> Any:
        raise Unimplemented(NO_SPARSE)

    async def EmbedSparseStream(self, requests: Any, context: Context) -> None:
        raise Unimplemented(NO_SPARSE)


async def _embed(text_request: TextRequest, request: pb.EmbedRequest) -> pb.EmbedResponse:
    manifest = text_request.manifest
    check_can(manifest, "Embed")
    normalize = request.normalize if request.HasField("normalize") else True
    output = _output(manifest, normalize)
    width = next(spec.shape[-1] for spec in manifest.outputs if spec.name == output)
    dimensions = _dimensions(request, width)
    text = prompted(manifest, request)
    (vector_D,), metadata = await text_request.compute([text], None, output, side_of(request), len(request.inputs))
    if normalize and not (manifest.unit_length and dimensions == width):
        vector_D = _normalized(vector_D[:dimensions])
    response = pb.EmbedResponse(metadata=metadata)
    _fill(response, vector_D[:dimensions])
    return response


async def _embed_all(text_request: TextRequest, request: pb.EmbedAllRequest) -> pb.EmbedAllResponse:
    check_can(text_request.manifest, "EmbedAll")
    text = prompted(text_request.manifest, request)
    side = side_of(request)
    (hidden_LD,), metadata = await text_request.compute([text], None, "last_hidden_state", side, len(request.inputs))
    response = pb.EmbedAllResponse(metadata=metadata)
    for vector_D in hidden_LD:
        _fill(response.token_embeddings.add(), vector_D)
    return response
