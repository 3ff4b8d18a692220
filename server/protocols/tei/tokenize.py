"""Texts to tokens and back."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from heed.protos import tei_pb2 as pb
from heed.protos.tei_pb2_grpc import TokenizeServicer
from heed.server.errors import InvalidArgument
from heed.server.protocols.tei.capabilities import check_text
from heed.server.protocols.tei.service import Context, TextEndpoint, TextRequest, prompted
from heed.server.requests.preprocess import INLINE_CHARACTERS
from heed.server.requests.tokenizer import Piece, TextTokenizer
from heed.server.telemetry.request_trace import Call

Found = TypeVar("Found")

SERVICE = "tei.v1.Tokenize"


class TokenizeService(TokenizeServicer):
    def __init__(self, endpoint: TextEndpoint) -> None:
        self._endpoint = endpoint

    async def Tokenize(self, request: pb.EncodeRequest, context: Context) -> pb.EncodeResponse:
        return await self._endpoint.answer(Call(SERVICE, "Tokenize", context), _tokenize, request)

    async def TokenizeStream(self, requests: AsyncIterator[pb.EncodeRequest], context: Context) -> None:
        await self._endpoint.answer_stream(Call(SERVICE, "TokenizeStream", context), _tokenize, requests, context.write)

    async def Decode(self, request: pb.DecodeRequest, context: Context) -> pb.DecodeResponse:
        return await self._endpoint.answer(Call(SERVICE, "Decode", context), _decode, request)

    async def DecodeStream(self, requests: AsyncIterator[pb.DecodeRequest], context: Context) -> None:
        await self._endpoint.answer_stream(Call(SERVICE, "DecodeStream", context), _decode, requests, context.write)


def _encoder(text_request: TextRequest) -> TextTokenizer:
    check_text(text_request.manifest)
    assert text_request.served.model.tokenizer  # as the manifest takes text
    return text_request.served.model.tokenizer


async def _found(find: Callable[[], Found], size: int) -> Found:
    """Large requests are looked at in a thread."""
    return await asyncio.to_thread(find) if size > INLINE_CHARACTERS else find()


async def _tokenize(text_request: TextRequest, request: pb.EncodeRequest) -> pb.EncodeResponse:
    encoder = _encoder(text_request)
    text = prompted(text_request.manifest, request)
    text_request.limits.check_texts("inputs", [request.inputs])

    def find() -> pb.EncodeResponse:
        return pb.EncodeResponse(tokens=map(_token, encoder.pieces(text, request.add_special_tokens)))

    return await _found(find, len(text))


def _token(piece: Piece) -> pb.SimpleToken:
    start, stop = piece.span or (None, None)
    return pb.SimpleToken(id=piece.id, text=piece.text, special=piece.span is None, start=start, stop=stop)


async def _decode(text_request: TextRequest, request: pb.DecodeRequest) -> pb.DecodeResponse:
    encoder = _encoder(text_request)
    if not request.ids:
        raise InvalidArgument("ids is empty, expected one token at least")
    ids = list(request.ids)
    text = await _found(lambda: encoder.decode(ids, request.skip_special_tokens), len(ids))
    return pb.DecodeResponse(text=text)
