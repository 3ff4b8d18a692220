"""`tei.v1`, the gRPC API of text-embeddings-inference: the text door.

door.py     from a text to the answer about it, alone or on a stream
abilities   what which model can do
"""

import grpc

from heed.protos import tei_pb2_grpc as wire
from heed.protos.tei_pb2 import DESCRIPTOR
from heed.server.protocols.tei.embed import EmbedService
from heed.server.protocols.tei.info import InfoService
from heed.server.protocols.tei.predict import PredictService
from heed.server.protocols.tei.rerank import RerankService
from heed.server.protocols.tei.service import TextEndpoint
from heed.server.protocols.tei.tokenize import TokenizeService
from heed.server.repository.registry import ModelRegistry
from heed.server.settings import Settings
from heed.server.telemetry.request_trace import Observers
from heed.server.transport.interceptors import ConcurrencyLimit

TEXT_SERVICES = [service.full_name for service in DESCRIPTOR.services_by_name.values()]


class TeiServices:
    """All services of the door."""

    def __init__(
        self, registry: ModelRegistry, settings: Settings, observers: Observers, slots: ConcurrencyLimit
    ) -> None:
        """`observers` are told of every request, `slots` count those on streams."""
        self._endpoint = TextEndpoint(registry, settings, observers, slots)
        self._info = InfoService(registry, settings)

    def add_to(self, server: grpc.aio.Server) -> None:
        wire.add_InfoServicer_to_server(self._info, server)
        wire.add_EmbedServicer_to_server(EmbedService(self._endpoint), server)
        wire.add_PredictServicer_to_server(PredictService(self._endpoint), server)
        wire.add_RerankServicer_to_server(RerankService(self._endpoint), server)
        wire.add_TokenizeServicer_to_server(TokenizeService(self._endpoint), server)

    def end_streams(self) -> None:
        """Streams read nothing more and end when what they have read is answered."""
        self._endpoint.streams.end()
