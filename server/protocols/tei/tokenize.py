"""Texts to tokens and back."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from heed.protos import tei_pb2 as pb
from heed.protos.tei_pb2_grpc import TokenizeServicer
from heed.server.errors import InvalidArgument
from heed.server.protocols.tei.capabilities import check_text
from heed.server.protocols.tei.service import Asked, Context, Door, prompted
from heed.server.repository.served_model import INLINE_CHARACTERS
from heed.server.requests.tokenizer import Piece, TextEncoder
from heed.server.telemetry.request_trace import Call
from heed.server.transport.status import guarded

Found = TypeVar("Found")

SERVICE = "tei.v1.Tokenize"


class TokenizeService(TokenizeServicer):
    def __init__(self, door: Door) -> None:
        self._door = door

    @guarded
    async def Tokenize(self, request: pb.EncodeRequest, context: Context) -> pb.EncodeResponse:
        return await self._door.answer(Call(SERVICE, "Tokenize", context), _tokenize, request)

    @guarded
    async def TokenizeStream(self, requests: AsyncIterator[pb.EncodeRequest], context: Context) -> None:
        await self._door.answer_all(Call(SERVICE, "TokenizeStream", context), _tokenize, requests, context.write)

    @guarded
    async def Decode(self, request: pb.DecodeRequest, context: Context) -> pb.DecodeResponse:
        return await self._door.answer(Call(SERVICE, "Decode", context), _decode, request)

    @guarded
    async def DecodeStream(self, requests: AsyncIterator[pb.DecodeRequest], context: Context) -> None:
        await self._door.answer_all(Call(SERVICE, "DecodeStream", context), _decode, requests, context.write)


def _encoder(asked: Asked) -> TextEncoder:
    check_text(asked.manifest)
    assert asked.serving.model.text  # as the manifest takes text
    return asked.serving.model.text


async def _found(find: Callable[[], Found], size: int) -> Found:
    """Large requests are looked at in a thread."""
    return await asyncio.to_thread(find) if size > INLINE_CHARACTERS else find()


async def _tokenize(asked: Asked, request: pb.EncodeRequest) -> pb.EncodeResponse:
    encoder = _encoder(asked)
    text = prompted(asked.manifest, request)
    asked.serving.limits.check_texts("inputs", [request.inputs])

    def find() -> pb.EncodeResponse:
        return pb.EncodeResponse(tokens=map(_token, encoder.pieces(text, request.add_special_tokens)))

    return await _found(find, len(text))


def _token(piece: Piece) -> pb.SimpleToken:
    start, stop = piece.span or (None, None)
    return pb.SimpleToken(id=piece.id, text=piece.text, special=piece.span is None, start=start, stop=stop)


async def _decode(asked: Asked, request: pb.DecodeRequest) -> pb.DecodeResponse:
    encoder = _encoder(asked)
    if not request.ids:
        raise InvalidArgument("ids is empty, expected one token at least")
    ids = list(request.ids)
    text = await _found(lambda: encoder.decode(ids, request.skip_special_tokens), len(ids))
    return pb.DecodeResponse(text=text)
