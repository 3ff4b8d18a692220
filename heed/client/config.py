"""What both clients are configured with."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from heed.client.connection import Connection, Tls

DEFAULT_TIMEOUT = 30.0  # seconds
REQUEST_ROWS = 32
REQUESTS_AT_ONCE = 8


@dataclass(frozen=True)
class ClientConfig:
    """The arguments of a client; see `ClientBase`."""

    connection: Connection
    model: str
    version: str
    timeout: float  # seconds
    request_rows: int
    requests_at_once: int


class ClientBase(ABC):
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
            timeout: seconds for each request, retries included; a batch that is split is several requests.
            tls: True to trust the authorities that gRPC trusts; `Tls` for a CA or a client certificate of your own.
                Without it, plain text.
            token: sent as `authorization: Bearer ...`; a `Path` is a file that is read again when it changes.
            token_in_clear: sends the token without TLS to other machines, too.
            request_rows: the most rows of a larger batch that one request carries.
            requests_at_once: the most requests of a larger batch that are in flight at a time.

        Raises:
            ValueError: no address, or a token that may not or cannot be sent.
            OSError: a certificate, key or token file cannot be read.
        """
        connection = Connection.of(addresses, tls, token, token_in_clear)
        self._configure(ClientConfig(connection, model, version, timeout, request_rows, requests_at_once))

    @abstractmethod
    def _configure(self, config: ClientConfig) -> None:
        """Finishes the construction."""
