"""How a server is reached: channel options, certificates, tokens."""

import ipaddress
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

MAX_MESSAGE = 2**31 - 1  # bytes; the server sets the limit that counts

OPTIONS: tuple[tuple[str, Any], ...] = (
    # A name with several addresses is called in turn.
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    # Connecting may take 5 s, and a server that is gone is tried again every second, which is sooner than a call's
    # attempts end. gRPC's defaults are 20 s, and up to two minutes.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.initial_reconnect_backoff_ms", 200),
)

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Tls:
    """How the server is authenticated, and the client to it. The files are PEM and are read when the client is made.

    Args:
        ca: certificates of the authorities that sign the servers' certificates; without it those that gRPC brings.
        certificate, key: the client's own, for a server that asks for them. Both or neither.
        name: the name in the servers' certificates, where it is not the host of their addresses.
    """

    ca: str | Path | None = None
    certificate: str | Path | None = None
    key: str | Path | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("a client's certificate and its key come together; one of them is missing")

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises OSError if a file cannot be read."""
        ca, key, certificate = (path and Path(path).read_bytes() for path in (self.ca, self.key, self.certificate))
        return grpc.ssl_channel_credentials(ca or None, key or None, certificate or None)


class Token:
    """A bearer token: a string, or a file that is read again when it has changed."""

    def __init__(self, given: str | Path) -> None:
        """Raises OSError if the file cannot be read, ValueError if there is no usable token."""
        self._file = given if isinstance(given, Path) else None
        self._stamp: tuple[int, ...] = ()
        self._metadata = self._read() if isinstance(given, Path) else _authorization(given, "the token")

    def metadata(self) -> Metadata:
        """The metadata of a call. While the file is missing or unusable, the last token is sent."""
        if self._file:
            with suppress(OSError, ValueError):
                self._metadata = self._read()
        return self._metadata

    def _read(self) -> Metadata:
        assert self._file
        status = os.stat(self._file)
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        if stamp == self._stamp:
            return self._metadata
        metadata = _authorization(self._file.read_text("utf-8").strip(), f"the token in {self._file}")
        self._stamp = stamp
        return metadata


def _authorization(token: str, what: str) -> Metadata:
    """The header of RFC 6750. No message says what the token is."""
    if not token:
        raise ValueError(f"{what} is empty")
    if not all("!" <= letter <= "~" for letter in token):
        raise ValueError(f"{what} has characters that no header can carry; letters, digits and -._~+/= are expected")
    return (("authorization", f"Bearer {token}"),)


def is_loopback(address: str) -> bool:
    """Whether data sent to this address certainly stays on this machine."""
    if address.startswith("unix:"):
        return True
    host = address.rsplit(":", 1)[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Connection:
    """The addresses of a client's servers, and how each is connected to."""

    addresses: Sequence[str]
    credentials: grpc.ChannelCredentials | None  # None: plain text
    tls_name: str  # the name in the servers' certificates; empty: the host of the address
    token: Token | None

    @classmethod
    def of(
        cls, addresses: str | Sequence[str], tls: bool | Tls, token: str | Path | None, token_in_clear: bool
    ) -> "Connection":
        """Raises ValueError, OSError: see `Client`."""
        listed = [addresses] if isinstance(addresses, str) else list(addresses)
        if not listed:
            raise ValueError("no address; give host:port, or a list of them")
        secured = (tls if isinstance(tls, Tls) else Tls()) if tls else None
        if token is not None and not secured and not token_in_clear:
            for address in listed:
                if not is_loopback(address):
                    raise ValueError(
                        f"the token would travel to {address} in plain text; give tls=True, or token_in_clear=True if "
                        "something else protects the way there"
                    )
        credentials = secured.credentials() if secured else None
        return cls(listed, credentials, secured.name if secured else "", None if token is None else Token(token))

    def metadata(self) -> Metadata:
        """The metadata of a call."""
        return self.token.metadata() if self.token else ()

    def channel_options(self, address: str) -> list[tuple[str, Any]]:
        options = list(OPTIONS)
        if self.tls_name:
            options += [("grpc.ssl_target_name_override", self.tls_name)]
        if is_loopback(address):  # a proxy of the environment would take it elsewhere
            options += [("grpc.enable_http_proxy", 0)]
        return options
