"""HTTP/2 by hand: what no well-behaved client sends. RFC 9113."""

import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0x0, 0x1, 0x3, 0x4, 0x6, 0x7
ACK, END_STREAM, END_HEADERS = 0x1, 0x1, 0x4
MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 0x3, 0x4
NO_ERROR, ENHANCE_YOUR_CALM = 0x0, 0xB


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def error(self) -> int:
        """Of a GOAWAY."""
        return int(struct.unpack_from(">I", self.payload, 4)[0])

    @property
    def settings(self) -> dict[int, int]:
        return dict(struct.iter_unpack(">HI", self.payload))


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def settings(**values: int) -> bytes:
    """`window`: how much a server may send on each stream before the client says that it has read it."""
    payload = struct.pack(">HI", INITIAL_WINDOW_SIZE, values["window"]) if values else b""
    return frame(SETTINGS, payload=payload)


def _string(value: bytes) -> bytes:
    """As it is, after its length (RFC 7541, 5.1 and 5.2)."""
    if len(value) < 127:
        return bytes([len(value)]) + value
    rest, length = len(value) - 127, b"\x7f"
    while rest >= 128:
        length += bytes([rest % 128 + 128])
        rest //= 128
    return length + bytes([rest]) + value


def raw_headers(stream: int, fields: Iterable[tuple[bytes, bytes]], flags: int = END_HEADERS) -> bytes:
    """Any fields, which no table remembers (RFC 7541, 6.2.2)."""
    block = b"".join(b"\0" + _string(name) + _string(value) for name, value in fields)
    return frame(HEADERS, flags, stream, block)


def call_fields(method: bytes) -> dict[bytes, bytes]:
    """What every gRPC call begins with."""
    return {
        b":method": b"POST",
        b":scheme": b"http",
        b":path": method,
        b":authority": b"localhost",
        b"content-type": b"application/grpc",
        b"te": b"trailers",
    }


def headers(stream: int, method: str) -> bytes:
    """The beginning of a gRPC call."""
    return raw_headers(stream, call_fields(method.encode()).items())


def message(stream: int, wire: bytes, end: bool = False) -> bytes:
    """A gRPC message, not compressed."""
    return frame(DATA, END_STREAM * end, stream, b"\0" + struct.pack(">I", len(wire)) + wire)


class Connection:
    """Sends what it is told, and nothing by itself: neither acknowledgements nor window updates."""

    def __init__(self, raw: socket.socket) -> None:
        self.raw = raw
        self._read = b""

    def send(self, *parts: bytes) -> None:
        self.raw.sendall(b"".join(parts))

    def _take(self, count: int) -> bytes:
        while len(self._read) < count:
            came = self.raw.recv(65536)
            if not came:
                raise ConnectionResetError("the server closed the connection")
            self._read += came
        taken, self._read = self._read[:count], self._read[count:]
        return taken

    def frames(self) -> Iterator[Frame]:
        """What comes, until the server closes the connection."""
        while True:
            try:
                head = self._take(9)
                kind, flags, stream = struct.unpack(">BBI", head[3:])
                payload = self._take(int.from_bytes(head[:3], "big"))
            except ConnectionError:
                return
            yield Frame(kind, flags, stream, payload)

    def next(self, kind: int) -> Frame:
        """The next frame of this kind; others are passed over."""
        for one in self.frames():
            if one.kind == kind and not (kind == SETTINGS and one.flags & ACK):
                return one
        raise AssertionError(f"the server closed the connection, and no frame of kind {kind} had come")


@contextmanager
def connected(address: str, seconds: float = 60) -> Iterator[Connection]:
    """A TCP connection on which nothing was said. `seconds`: how long to wait for anything."""
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=seconds) as raw:
        yield Connection(raw)
