"""What both clients are made of."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from heed.client.connection import Connection, Tls
from heed.client.servers import Servers, Turn
from heed.client.wire import Inputs, infer_request
from heed.protos import open_inference_pb2 as pb

DEFAULT_TIMEOUT = 30.0  # seconds
REQUEST_ROWS = 32
REQUESTS_AT_ONCE = 8

Door = TypeVar("Door")


class Common(ABC, Generic[Door]):
    """One model on one server, or on several that share the load."""

    def __init__(
        self,
        addresses: str | Sequence[str],
        model: str,
        version: str = "",
        timeout: float = DEFAULT_TIMEOUT,
        *,
        tls: bool | Tls = False,
        token: str | Path | None = None,
        token_in_clear: bool = False,
        request_rows: int = REQUEST_ROWS,
        requests_at_once: int = REQUESTS_AT_ONCE,
    ) -> None:
        """
        Args:
            addresses: `host:port`, or a list of them: they are called in turn, and one that is gone is passed over. A
                name with several addresses is called in turn, too.
            version: empty for the newest that is ready.
            timeout: seconds for each request, retries included; a batch that is cut is several requests.
            tls: True to trust who gRPC trusts; `Tls` for a CA or a certificate of one's own. Without it, plain text.
            token: sent as `authorization: Bearer ...`; a `Path` is a file that is read again when it changes.
            token_in_clear: sends the token without TLS to other machines, too.
            request_rows: rows of a larger batch that go in one request.
            requests_at_once: how many requests of a larger batch are under way at a time.

        Raises:
            ValueError: no address, or a token that may not or cannot be sent.
            OSError: a certificate, key or token file cannot be read.
        """
        self._model, self._version, self._timeout = model, version, timeout
        self._request_rows, self._requests_at_once = request_rows, requests_at_once
        self._connection = Connection.of(addresses, tls, token, token_in_clear)
        self._servers = Servers(self._open(address) for address in self._connection.addresses)

    @abstractmethod
    def _open(self, address: str) -> Door:
        """How one server is asked."""

    def _turn(self, timeout: float | None) -> Turn[Door]:
        return self._servers.turn(self._timeout if timeout is None else timeout)

    def _infer_request(self, inputs: Inputs, outputs: Iterable[str], truncate: bool) -> pb.ModelInferRequest:
        return infer_request(self._model, self._version, inputs, outputs, truncate)

    def _info_request(self) -> pb.ModelMetadataRequest:
        return pb.ModelMetadataRequest(name=self._model, version=self._version)
