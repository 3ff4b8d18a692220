"""What the examples share: a server in a process of its own, and a client for it."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from heed.client import CallError, Client


def heed(*arguments: str) -> list[str]:
    """A command line."""
    return [sys.executable, "-m", "heed", *arguments]


def free_port(preferred: int = 8001) -> int:
    """That one if nobody listens there, else any other."""
    for port in (preferred, 0):
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(listener.getsockname()[1])
    raise RuntimeError("no port is free")


@contextmanager
def served(bundle: Path, address: str) -> Iterator[Client]:
    """Serves a bundle until the block ends; the model has the folder's name."""
    port = address.rsplit(":", 1)[1]
    process = subprocess.Popen(
        heed("serve", str(bundle), "--port", port, "--metrics-port", "-1", "--linger-seconds", "0")
    )
    try:
        with Client(address, bundle.name) as client:
            while not is_ready(client):
                if process.poll() is not None:
                    sys.exit("the server did not start; its message stands above")
                time.sleep(0.1)
            yield client
    finally:
        process.terminate()
        process.wait()


def is_ready(client: Client) -> bool:
    """Whether the server takes calls: it says UNAVAILABLE until it does, and no model takes a call without inputs."""
    try:
        client.infer({})
    except CallError as error:
        return error.code.name == "INVALID_ARGUMENT"
    return True
