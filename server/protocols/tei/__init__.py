"""`tei.v1`, the gRPC API of text-embeddings-inference, whose requests are texts.

service.py       from a text to the answer about it, for a unary call or on a stream
capabilities.py  the methods that a model has
embed.py, predict.py, rerank.py, tokenize.py, info.py  one service each
"""

import grpc

from heed.protos import tei_pb2_grpc as wire
from heed.protos.tei_pb2 import DESCRIPTOR
from heed.server.protocols.streams import Streams
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
    """All services of the API."""

    def __init__(
        self,
        registry: ModelRegistry,
        settings: Settings,
        observers: Observers,
        concurrency: ConcurrencyLimit,
        streams: Streams,
    ) -> None:
        """See `TextEndpoint`."""
        self._endpoint = TextEndpoint(registry, settings, observers, concurrency, streams)
        self._info = InfoService(registry, settings)

    def add_to(self, server: grpc.aio.Server) -> None:
        wire.add_InfoServicer_to_server(self._info, server)
        wire.add_EmbedServicer_to_server(EmbedService(self._endpoint), server)
        wire.add_PredictServicer_to_server(PredictService(self._endpoint), server)
        wire.add_RerankServicer_to_server(RerankService(self._endpoint), server)
        wire.add_TokenizeServicer_to_server(TokenizeService(self._endpoint), server)
