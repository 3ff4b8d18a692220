import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pytest

from client import AsyncClient, Client

# Embeds texts by a new client for the addresses, each given number of them in a call of its own.
Embed = Callable[..., list[np.ndarray]]


def by_client(addresses: str | Sequence[str], *calls: Iterable[str], **options: Any) -> list[np.ndarray]:
    with Client(addresses, "echo", **options) as client:
        return [client.embed(texts) for texts in calls]


def by_async_client(addresses: str | Sequence[str], *calls: Iterable[str], **options: Any) -> list[np.ndarray]:
    async def run() -> list[np.ndarray]:
        async with AsyncClient(addresses, "echo", **options) as client:
            return [await client.embed(texts) for texts in calls]

    return asyncio.run(run())


@pytest.fixture(params=[by_client, by_async_client], ids=["sync", "async"])
def embed(request: pytest.FixtureRequest) -> Embed:
    """Each client in turn."""
    found: Embed = request.param
    return found
