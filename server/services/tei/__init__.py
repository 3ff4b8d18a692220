"""`tei.v1`, the gRPC API of text-embeddings-inference: the text door.

door.py     from a text to the answer about it, alone or on a stream
abilities   what which model can do
"""

import grpc

from protos import tei_pb2_grpc as wire
from protos.tei_pb2 import DESCRIPTOR
from server.record import Observers
from server.registry import Registry
from server.security.calls import Slots
from server.services.tei.door import Door
from server.services.tei.embed import EmbedService
from server.services.tei.info import InfoService
from server.services.tei.predict import PredictService
from server.services.tei.rerank import RerankService
from server.services.tei.tokens import TokenizeService
from server.settings import Settings

TEXT_SERVICES = [service.full_name for service in DESCRIPTOR.services_by_name.values()]


class TextDoor:
    """All services of the door."""

    def __init__(self, registry: Registry, settings: Settings, observers: Observers, slots: Slots) -> None:
        """`observers` are told of every request, `slots` count those on streams."""
        self._door = Door(registry, settings, observers, slots)
        self._info = InfoService(registry, settings)

    def add_to(self, server: grpc.aio.Server) -> None:
        wire.add_InfoServicer_to_server(self._info, server)
        wire.add_EmbedServicer_to_server(EmbedService(self._door), server)
        wire.add_PredictServicer_to_server(PredictService(self._door), server)
        wire.add_RerankServicer_to_server(RerankService(self._door), server)
        wire.add_TokenizeServicer_to_server(TokenizeService(self._door), server)

    def end_streams(self) -> None:
        """Streams read nothing more and end when what they have read is answered."""
        self._door.streams.end()
